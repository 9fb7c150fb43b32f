import assert from 'node:assert/strict'
import { readFile, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { VirError } from '../../src/error.js'
import { resolveBackingChain } from '../../src/storage/chain.js'
import { ImageHeaderError, parseHeader } from '../../src/storage/image-header.js'
import { imageInfo } from '../../src/storage/overlay.js'
import { probeImage } from '../../src/storage/probe.js'
import { run } from '../../src/util/run.js'
import { emptyImage, overlay, temporaryFolder } from '../support/images.js'
import { requires } from '../support/requires.js'

const MiB = 1024 * 1024

/** What qemu-img says about the same image. */
async function qemuSays(path: string, format: string) {
  const { stdout } = await run('qemu-img', ['info', '--output=json', '-f', format, path])
  const facts = JSON.parse(stdout) as Record<string, unknown>
  return {
    virtualSize: facts['virtual-size'],
    clusterSize: facts['cluster-size'],
    backing: facts['backing-filename'],
    backingFormat: facts['backing-filename-format'],
    encrypted: facts['encrypted'] ?? false,
  }
}

async function weSay(path: string, format: string) {
  const { virtualSize, clusterSize, backing, encrypted } = await imageInfo(path, format)
  return { virtualSize, clusterSize, backing: backing?.string, backingFormat: backing?.format, encrypted }
}

test('our reading of a header is that of qemu-img, for each kind of image', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const base = await emptyImage(folder, 'raw', 5 * MiB, 'base')
  const kinds: [format: string, options: string, backing: boolean][] = [
    ['qcow2', 'compat=0.10', false],
    ['qcow2', 'compat=0.10', true],
    ['qcow2', 'compat=1.1', true],
    ['qcow2', 'cluster_size=512', true],
    ['qcow2', 'cluster_size=2M', true],
    ['qcow2', 'extended_l2=on,cluster_size=128k', true],
    ['qcow2', 'compression_type=zstd', true],
    ['qcow2', 'lazy_refcounts=on', false],
    ['qcow2', 'preallocation=metadata', false],
    ['qed', 'cluster_size=4096', true],
    ['qed', 'cluster_size=65536', false],
  ]
  for (const [i, [format, options, backing]] of kinds.entries()) {
    const path = join(folder, String(i))
    const args = [
      'create',
      '-q',
      '-f',
      format,
      '-o',
      options,
      ...(backing ? ['-b', base, '-F', 'raw'] : []),
      path,
      '7M',
    ]
    await run('qemu-img', args)
    assert.deepEqual(await weSay(path, format), await qemuSays(path, format), `${format} ${options}`)
  }
})

test('an encrypted image is seen to be one', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const path = join(await temporaryFolder(t), 'image')
  const secret = ['--object', 'secret,id=s,data=abc']
  await run('qemu-img', [
    'create',
    '-q',
    ...secret,
    '-f',
    'qcow2',
    '-o',
    'encrypt.format=aes,encrypt.key-secret=s',
    path,
    '1M',
  ])
  assert.equal((await imageInfo(path, 'qcow2')).encrypted, true)
})

test('a raw image has the size of its file', async (t) => {
  const path = join(await temporaryFolder(t), 'image')
  await writeFile(path, 'x')
  await truncate(path, 12_345)
  assert.equal((await imageInfo(path, 'raw')).virtualSize, 12_345)
  const slice = await probeImage({ type: 'file', path, format: 'raw', slice: { offset: 512, size: 1024 } })
  assert.equal(slice.virtualSize, 1024)
})

/** A small generator, so that a failure can be repeated from its seed. */
function generator(seed: number): (below: number) => number {
  let x = seed | 1
  return (below) => {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    return (x >>> 0) % below
  }
}

function mutate(original: Buffer, next: (below: number) => number): Buffer {
  const bytes = Buffer.from(original)
  const interesting = [0, 1, 0x7f, 0x80, 0xff]
  for (let i = 1 + next(6); i > 0; i--) {
    // most of the meaning is in the first bytes
    const at = next(next(2) === 0 ? 128 : bytes.length)
    const value = next(2) === 0 ? (interesting[next(interesting.length)] ?? 0) : next(256)
    for (let width = next(2) === 0 ? 1 : 4; width > 0; width--)
      bytes[Math.min(at + width - 1, bytes.length - 1)] = value
  }
  return next(8) === 0 ? bytes.subarray(0, next(bytes.length)) : bytes
}

test('no mangled header does more than be refused', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const base = await emptyImage(folder, 'raw', MiB, 'base')
  const next = generator(20_240_229)
  for (const format of ['qcow2', 'qed'] as const) {
    const original = (await readFile(await overlay(folder, base, { format }))).subarray(0, 4096)
    let refused = 0
    for (let i = 0; i < 20_000; i++) {
      const bytes = mutate(original, next)
      try {
        const header = parseHeader(format, bytes)
        assert.ok(header.backing === undefined || Buffer.byteLength(header.backing.string) <= 1023)
        assert.ok(header.clusterSize >= 512)
      } catch (error) {
        assert.ok(error instanceof ImageHeaderError, String(error))
        refused++
      }
    }
    assert.ok(refused > 1000 && refused < 19_000, `${format}: ${refused} refused`)
  }
})

test('no file with a mangled header does more than be refused', { timeout: 60_000 }, async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const base = await emptyImage(folder, 'raw', MiB, 'base')
  const next = generator(7)
  for (const format of ['qcow2', 'qed'] as const) {
    const path = await overlay(folder, base, { format })
    const original = (await readFile(path)).subarray(0, 4096)
    for (let i = 0; i < 300; i++) {
      await writeFile(path, mutate(original, next))
      try {
        await resolveBackingChain({ type: 'file', path, format }, { timeout: 2000 })
      } catch (error) {
        assert.ok(error instanceof VirError, String(error))
      }
    }
  }
})

test('sizes and names that can not be are refused', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const base = await emptyImage(folder, 'raw', MiB, 'base')
  const path = await overlay(folder, base)
  const original = (await readFile(path)).subarray(0, 4096)
  const cases: [what: RegExp, change: (bytes: Buffer) => unknown][] = [
    [/version 4 is not supported/, (b) => b.writeUInt32BE(4, 4)],
    [/cluster size 2\^40 is out of range/, (b) => b.writeUInt32BE(40, 20)],
    [/incompatible features 0x8000000000 are unknown/, (b) => b.writeBigUInt64BE(0x8000000000n, 72)],
    [/external data files are not supported/, (b) => b.writeBigUInt64BE(4n, 72)],
    [/header length 4294967295 is out of range/, (b) => b.writeUInt32BE(0xffffffff, 100)],
    [/backing file name of 1024 bytes is out of range/, (b) => b.writeUInt32BE(1024, 16)],
    [/backing file name lies outside of the first cluster/, (b) => b.writeBigUInt64BE(65530n, 8)],
    [/backing file name lies outside of the first cluster/, (b) => b.writeBigUInt64BE(2n ** 63n, 8)],
    [/backing file name lies outside of the header/, (b) => b.writeBigUInt64BE(60_000n, 8)],
    [/backing file name is not UTF-8/, (b) => b.writeUInt8(0xff, Number(b.readBigUInt64BE(8)))],
    [/backing file name contains a NUL/, (b) => b.writeUInt8(0, Number(b.readBigUInt64BE(8)))],
    [/header extension is too long/, (b) => b.writeUInt32BE(0xffffffff, 108 + b.readUInt32BE(100) - 104)],
  ]
  for (const [message, change] of cases) {
    const bytes = Buffer.from(original)
    change(bytes)
    await writeFile(path, bytes)
    await assert.rejects(imageInfo(path, 'qcow2'), { name: 'VirError', message })
  }
  const huge = Buffer.from(original)
  huge.writeBigUInt64BE(2n ** 60n, 24)
  await writeFile(path, huge)
  await assert.rejects(imageInfo(path, 'qcow2'), { code: 'VIR_ERR_OVERFLOW' })
})
