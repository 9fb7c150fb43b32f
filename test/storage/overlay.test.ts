import assert from 'node:assert/strict'
import { chmod, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import type { StorageSource } from '../../src/conf/domain-def.js'
import { blockInfo } from '../../src/storage/block-info.js'
import { resolveBackingChain } from '../../src/storage/chain.js'
import { createOverlay, imageInfo } from '../../src/storage/overlay.js'
import { run } from '../../src/util/run.js'
import { emptyImage, patternImage, temporaryFolder } from '../support/images.js'
import { startQemuNbd, startNbdkit, trouble } from '../support/nbd-server.js'
import { checkPattern } from '../support/pattern.js'
import { requires } from '../support/requires.js'

const MiB = 1024 * 1024

test('an overlay shows its base, and its chain can be walked', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const base = await patternImage(folder, 2 * MiB)
  const backing: StorageSource = { type: 'file', path: base.path, format: 'raw' }
  for (const format of ['qcow2', 'qed'] as const) {
    const path = join(folder, `a b,c.${format}`)
    await createOverlay({ path, format, backing, options: { clusterSize: 131072 } })
    const info = await imageInfo(path, format)
    assert.deepEqual([info.virtualSize, info.clusterSize], [base.size, 131072])
    const source: StorageSource = { type: 'file', path, format }
    await resolveBackingChain(source)
    assert.deepEqual(source.backingStore, { ...backing, backingStore: null })
    assert.equal((await checkPattern(path, format, base.seed)).bad, 0)
    assert.equal((await stat(path)).mode & 0o777, 0o600)
  }
})

test('an overlay may be larger than its base, and lie over a slice or a server', async (t) => {
  if (!requires(t, 'program:qemu-img', 'program:qemu-nbd')) return
  const folder = await temporaryFolder(t)
  const base = await patternImage(folder, 2 * MiB)
  const larger = join(folder, 'larger')
  await createOverlay({
    path: larger,
    format: 'qcow2',
    size: 3 * MiB,
    backing: { type: 'file', path: base.path, format: 'raw' },
  })
  const report = await checkPattern(larger, 'qcow2', base.seed, base.size)
  assert.deepEqual([report.blocks, report.bad], [768, 0])

  const sliced: StorageSource = { type: 'file', path: base.path, format: 'raw', slice: { offset: MiB, size: MiB } }
  await createOverlay({ path: join(folder, 'sliced'), format: 'qcow2', backing: sliced })
  const source: StorageSource = { type: 'file', path: join(folder, 'sliced'), format: 'qcow2' }
  await resolveBackingChain(source)
  assert.deepEqual(source.backingStore, { ...sliced, backingStore: null })
  await run('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', source.path, join(folder, 'raw')])
  const half = (await readFile(base.path)).subarray(MiB)
  assert.ok((await readFile(join(folder, 'raw'))).equals(half))

  const server = await startQemuNbd(t, { image: base.path, format: 'raw', export: 'x' })
  const remote = join(folder, 'remote')
  await createOverlay({ path: remote, format: 'qcow2', backing: { ...server.source, format: 'raw' } })
  assert.equal((await checkPattern(remote, 'qcow2', base.seed)).bad, 0)
})

test('a file that is there already is never touched', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const base = await emptyImage(folder, 'raw', MiB)
  const path = join(folder, 'precious')
  await writeFile(path, 'precious')
  const request = { path, format: 'qcow2', backing: { type: 'file', path: base, format: 'raw' } } as const
  await assert.rejects(createOverlay(request), {
    code: 'VIR_ERR_OPERATION_FAILED',
    message: `image '${path}' exists already`,
  })
  assert.equal(await readFile(path, 'utf8'), 'precious')
})

test('nothing half-made remains of an overlay that fails, and the error has the words of qemu-img', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const backing = { type: 'file', path: join(folder, 'missing'), format: 'raw' } as const
  const path = join(folder, 'overlay')
  await assert.rejects(createOverlay({ path, format: 'qcow2', backing }), {
    code: 'VIR_ERR_OPERATION_FAILED',
    message: new RegExp(`^cannot create image '${path}': .*missing.*No such file or directory`, 's'),
  })
  const base = { type: 'file', path: await emptyImage(folder, 'raw', MiB), format: 'raw' } as const
  const aborted = createOverlay({ path, format: 'qcow2', backing: base, signal: AbortSignal.abort() })
  await assert.rejects(aborted, /was aborted/)
  const long: StorageSource = { type: 'file', path: `/${'x'.repeat(1100)}`, format: 'raw' }
  await assert.rejects(createOverlay({ path, format: 'qcow2', backing: long }), { code: 'VIR_ERR_INVALID_ARG' })
  await assert.rejects(createOverlay({ path: 'relative', format: 'qcow2', backing: base }), /is not absolute/)
  const lazy = createOverlay({ path, format: 'qed', backing: base, options: { lazyRefcounts: true } })
  await assert.rejects(lazy, { code: 'VIR_ERR_CONFIG_UNSUPPORTED' })
  assert.deepEqual(await readdir(folder), ['image.raw'])
  if (process.getuid?.() === 0) return
  await chmod(folder, 0o500)
  await assert.rejects(createOverlay({ path, format: 'qcow2', backing: base }), { code: 'VIR_ERR_SYSTEM_ERROR' })
  await chmod(folder, 0o700)
})

test('block info tells what the guest sees, what is allocated, and how long the file is', async (t) => {
  if (!requires(t, 'program:qemu-img', 'program:qemu-nbd')) return
  const folder = await temporaryFolder(t)
  const { path, size } = await patternImage(folder, 2 * MiB)
  const raw = await blockInfo({ type: 'file', path, format: 'raw' })
  assert.deepEqual([raw.capacity, raw.physical], [size, size])
  assert.ok(raw.allocation > 0 && raw.allocation < size, `allocation ${raw.allocation}`)

  const thin = await emptyImage(folder, 'qcow2', 64 * MiB)
  const info = await blockInfo({ type: 'file', path: thin, format: 'qcow2' })
  assert.equal(info.capacity, 64 * MiB)
  assert.ok(info.physical > 0 && info.physical < MiB && info.allocation < MiB)

  const server = await startQemuNbd(t, { image: thin, format: 'qcow2' })
  assert.equal((await blockInfo({ ...server.source, format: 'raw' })).capacity, 64 * MiB)
  const vdi = await emptyImage(folder, 'vdi', 8 * MiB)
  assert.equal((await blockInfo({ type: 'file', path: vdi, format: 'vdi' })).capacity, 8 * MiB)
})

test('a server of the tests dies, comes back at the same place, and makes trouble when told to', async (t) => {
  if (!requires(t, 'program:qemu-img', 'program:nbdkit')) return
  const folder = await temporaryFolder(t)
  const base = await patternImage(folder, MiB)
  const faults = trouble(join(folder, 'trouble'), 'pread')
  const socket = join(folder, 's')
  const server = await startNbdkit(t, { plugin: ['file', base.path], socket, ...faults })
  const check = () => checkPattern(server.uri, 'raw', base.seed)
  assert.equal((await check()).bad, 0)
  await faults.on()
  await assert.rejects(check(), /Input\/output error/)
  await faults.off()
  assert.equal((await check()).bad, 0)
  const pid = server.pid
  await server.kill()
  await assert.rejects(check(), /Connection refused|No such file/)
  await server.start()
  assert.notEqual(server.pid, pid)
  assert.equal((await check()).bad, 0)
})
