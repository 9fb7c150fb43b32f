/** What a storage daemon that streams without a guest may have: labels, locks, and who takes them back. */
import assert from 'node:assert/strict'
import { chmodSync, existsSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  Connect,
  lockDriver,
  VIR_DOMAIN_START_PAUSED,
  VIR_STREAM_DISK_START,
  type Domain,
  type Lease,
} from '../../src/index.js'
import { run } from '../../src/util/run.js'
import { findProgram } from '../support/requires.js'
import { diskXml, plainXml, qemuPid, testRoot, until, virError, type TestRoot } from '../support/domain.js'
import { assertGivenBack, dacRoot, ownerOf, privateImages } from '../support/dac.js'
import { backingOf, checkImage, overlay, patternImage, temporaryFolder } from '../support/images.js'
import { assertNoDaemon, daemonPid, offlineDir, offsetOf } from '../support/offline.js'
import { checkPattern } from '../support/pattern.js'
import { killerOf } from '../support/killer.js'
import { requires } from '../support/requires.js'
import { exclusive, lockManagers, startHolding } from '../locking/support.js'

const MiB = 1024 * 1024
const needed = ['program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon'] as const
const index = new URL('../../src/index.js', import.meta.url).href

const streamSlowly = (dom: Domain, disk = 'vda'): Promise<number> =>
  dom.streamDisk(disk, 0, VIR_STREAM_DISK_START, { bandwidth: MiB })

function leasesOf(root: TestRoot): Lease[] {
  const [name = ''] = readdirSync(offlineDir(root))
  const text = readFileSync(join(offlineDir(root), name, 'status.json'), 'utf8')
  return (JSON.parse(text) as { access?: { leases: Lease[] } }).access?.leases ?? []
}

test('without a guest too images belong to the other user as long as they are streamed, and only as long', async (t) => {
  if (!requires(t, 'root', ...needed)) return
  const { root, folder, theirs, user } = await dacRoot(t)
  const { base, path } = await privateImages(folder, 8 * MiB)
  const second = await overlay(folder, base.path, { name: 'second.qcow2' })
  chmodSync(second, 0o600)
  const devices = diskXml('vda', path) + diskXml('vdb', second)
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'off', devices }))
  await streamSlowly(dom)
  const status = readFileSync(`/proc/${daemonPid(root)}/status`, 'utf8')
  assert.match(status, new RegExp(`^Uid:(\\t${user.uid}){4}$`, 'm'))
  assert.match(status, /^CapEff:\t0+$/m)
  await streamSlowly(dom, 'vdb')
  for (const image of [path, second, base.path]) assert.equal(await ownerOf(image), theirs)
  await dom.blockJobSetSpeed('vda', 0)
  await until('the first is done', async () => (await ownerOf(path)) === '0:0')
  await assertGivenBack(path)
  for (const image of [second, base.path]) assert.equal(await ownerOf(image), theirs)
  await dom.blockJobSetSpeed('vdb', 0)
  await until('the second is done', () => readdirSync(offlineDir(root)).length === 0)
  await assertGivenBack(path, second, base.path, join(folder, 'root/log/qemu/off.log'))
  assert.doesNotMatch(await dom.getXMLDesc(), /seclabel/)
  for (const image of [path, second]) assert.equal((await checkPattern(image, 'qcow2', base.seed)).bad, 0)
})

test('a daemon that is killed, with us or without, leaves everything to its owner', async (t) => {
  if (!requires(t, 'root', ...needed)) return
  const { root, folder, theirs } = await dacRoot(t)
  const { base, path } = await privateImages(folder, 16 * MiB)
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'off', devices: diskXml('vda', path) }))
  await streamSlowly(dom)
  assert.equal(await ownerOf(path), theirs)
  process.kill(daemonPid(root), 'SIGKILL')
  await until('it is noticed', () => readdirSync(offlineDir(root)).length === 0)
  await assertGivenBack(path, base.path)

  await streamSlowly(dom)
  const pid = daemonPid(root)
  await root.conn.close()
  await killerOf(t, pid)()
  assert.equal(await ownerOf(path), theirs)
  root.conn = await Connect.open(root.uri)
  await assertGivenBack(path, base.path)
  assertNoDaemon(root)

  // a guest gets what the daemon had
  const again = await root.conn.domainLookupByName('off')
  await streamSlowly(again)
  await again.create(VIR_DOMAIN_START_PAUSED)
  assert.equal(await ownerOf(path), theirs)
  await again.destroy()
  await assertGivenBack(path, base.path)
})

test('when our process is killed while it starts a storage daemon, the next one leaves no trace', async (t) => {
  if (!requires(t, 'root', ...needed)) return
  const { root, folder, user } = await dacRoot(t)
  const { base, path } = await privateImages(folder, MiB)
  await root.conn.domainDefineXML(plainXml({ name: 'off', devices: diskXml('vda', path) }))
  await root.conn.close()
  // dies at the Nth label: of the folder, the log, the image, its base
  const script = `import { Connect, securityDriver } from '${index}'
    let left = Number(process.argv[1])
    const dac = await securityDriver('dac', { user: '${user.name}' })
    const fuse = { ...dac, setImageLabel: async (def, target, note) => {
      await dac.setImageLabel(def, target, note)
      if (--left === 0) process.kill(process.pid, 'SIGKILL')
    } }
    const conn = await Connect.open('${root.uri}', { security: [fuse] })
    await (await conn.domainLookupByName('off')).blockPull('vda')`
  for (const at of [2, 3, 4]) {
    const args = ['--input-type=module', '-e', script, String(at)]
    await assert.rejects(run(process.execPath, args), { reason: 'signal' }, String(at))
    root.conn = await Connect.open(root.uri)
    await assertGivenBack(path, base.path)
    assertNoDaemon(root)
    await root.conn.close()
  }
})

for (const manager of lockManagers)
  test(`a storage daemon has the locks of what it streams, and they end with it: ${manager.name}`, async (t) => {
    if (!requires(t, ...needed)) return
    const lockManager = await manager.start(t)
    if (lockManager === undefined) return
    const [a, b] = [await testRoot(t, { lockManager }), await testRoot(t, { lockManager })]
    const base = await patternImage(a.folder, 16 * MiB)
    const path = await overlay(a.folder, base.path)
    const second = await overlay(a.folder, base.path, { name: 'second.qcow2' })
    const devices = diskXml('vda', path) + diskXml('vdb', second)
    const one = await a.conn.domainDefineXML(plainXml({ name: 'one', devices }))
    const two = await b.conn.domainDefineXML(plainXml({ name: 'two', devices }))
    const start = (): Promise<boolean> => two.create(VIR_DOMAIN_START_PAUSED).then(() => true, () => false) // prettier-ignore
    const refused = virError('VIR_ERR_RESOURCE_BUSY', /in use by/)
    await streamSlowly(one)
    const pid = daemonPid(a)
    await streamSlowly(one, 'vdb')
    assert.deepEqual([...new Set(leasesOf(a).map(({ owner }) => owner.pid))], [pid])
    assert.deepEqual(
      leasesOf(a).map(({ resources: [resource] }) => [resource?.path, resource?.mode]),
      [path, base.path, second, base.path].map((image) => [image, image === base.path ? 'read-only' : 'exclusive']),
    )
    await assert.rejects(two.create(VIR_DOMAIN_START_PAUSED), refused)
    await assert.rejects(two.blockPull('vdb'), refused)
    await one.blockJobAbort('vda')
    await two.streamDisk('vda', 0, VIR_STREAM_DISK_START, { bandwidth: 1 })
    await two.blockJobAbort('vda')

    // nobody of us is there, and the daemon dies
    await a.conn.close()
    process.kill(pid, 'SIGKILL')
    await until('the locks are free', start)
    await two.destroy()
    a.conn = await Connect.open(a.uri, a.options)

    // the guest's QEMU has them next
    const again = await a.conn.domainLookupByName('one')
    await streamSlowly(again)
    await again.create(VIR_DOMAIN_START_PAUSED)
    await assert.rejects(two.create(VIR_DOMAIN_START_PAUSED), refused)
    await again.destroy()
    await until('they are free again', start)
  })

test('a start that finds an image in use names who has it', async (t) => {
  if (!requires(t, ...needed)) return
  const [a, b] = [await testRoot(t), await testRoot(t)]
  const base = await patternImage(a.folder, 4 * MiB)
  const path = await overlay(a.folder, base.path)
  const one = await a.conn.domainDefineXML(plainXml({ name: 'one', devices: diskXml('vda', path) }))
  const two = await b.conn.domainDefineXML(plainXml({ name: 'two', devices: diskXml('vda', path) }))
  await one.create(VIR_DOMAIN_START_PAUSED)
  const byDomain = `image '${path}' is in use by domain 'one' \\(process ${qemuPid(a, one)}\\)`
  await assert.rejects(
    two.create(VIR_DOMAIN_START_PAUSED),
    virError('VIR_ERR_RESOURCE_BUSY', new RegExp(`^${byDomain}$`)),
  )
  await assert.rejects(two.blockPull('vda'), virError('VIR_ERR_RESOURCE_BUSY', new RegExp(`^${byDomain}$`)))
  await one.destroy()
  await streamSlowly(one)
  const byDaemon = `image '${path}' is in use by process ${daemonPid(a)} \\('qemu-storage-daemon'\\)`
  await assert.rejects(
    two.create(VIR_DOMAIN_START_PAUSED),
    virError('VIR_ERR_RESOURCE_BUSY', new RegExp(`^${byDaemon}$`)),
  )
})

test('a stream without a guest fails when another has got the lock of its image', async (t) => {
  if (!requires(t, ...needed)) return
  const lockManager = await lockDriver('ofd', { directory: await temporaryFolder(t) })
  const root = await testRoot(t, { lockManager })
  const base = await patternImage(root.folder, 16 * MiB)
  const path = await overlay(root.folder, base.path)
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'robbed', devices: diskXml('vda', path) }))
  const stream = await dom.stream('vda', { bandwidth: MiB })
  const failed = assert.rejects(stream.finished, { name: 'VirError', code: 'VIR_ERR_OPERATION_FAILED' })
  const [lease] = leasesOf(root)
  assert.ok(lease !== undefined)
  await lockManager.release(lease)
  const thief = await startHolding(t, lockManager, 'thief', [exclusive(path)])
  await failed
  await until('nothing is left of it', () => readdirSync(offlineDir(root)).length === 0)
  const busy = virError('VIR_ERR_RESOURCE_BUSY', /is in use by .*'thief'/)
  await assert.rejects(dom.stream('vda'), busy)
  assertNoDaemon(root, [thief.owner.pid])
  await checkImage(path)
  assert.equal(await backingOf(path), base.path)
})

test('a storage daemon that is gone right after its first answer is noticed at once', async (t) => {
  if (!requires(t, 'root', ...needed)) return
  const { root, folder } = await dacRoot(t)
  const { base, path } = await privateImages(folder, MiB)
  // next to the emulator, so that it is the one that is used
  const emulator = join(folder, 'qemu-system-x86_64')
  symlinkSync(findProgram('qemu-system-x86_64') ?? '', emulator)
  const program = join(folder, 'qemu-storage-daemon')
  const script = `#!${process.execPath}
    const { createServer } = require('node:net')
    const fd = Number(/fd=(\\d+)/.exec(process.argv.find((arg) => arg.startsWith('socket,')))[1])
    const version = { qemu: { major: 7, minor: 2, micro: 0 }, package: '' }
    createServer((socket) => {
      socket.write(JSON.stringify({ QMP: { version, capabilities: [] } }) + '\\n')
      socket.once('data', (text) => {
        const { id } = JSON.parse(text)
        socket.write(JSON.stringify({ return: {}, id }) + '\\n', () => process.exit(1))
      })
    }).listen({ fd })`
  writeFileSync(program, script)
  chmodSync(program, 0o755)
  const devices = `<emulator>${emulator}</emulator>${diskXml('vda', path)}`
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'brief', devices }))
  await assert.rejects(dom.blockPull('vda'), { name: 'VirError', message: /monitor of domain 'brief' is lost/ })
  assert.deepEqual(await dom.streamDiskInfo(), [])
  await assertGivenBack(path, base.path)
  assertNoDaemon(root)
  // with one that stays everything goes on
  rmSync(program)
  await (
    await dom.stream('vda')
  ).finished
  assert.equal(await backingOf(path), undefined)
})

/** A process that uses the root and dies: at a lock of a guest's QEMU or of a storage daemon, or when the guest's status says that it runs. */
async function dieAt(root: TestRoot, directory: string, at: Move['at'], work: string): Promise<void> {
  const script = `import fs from 'node:fs'
    import { syncBuiltinESMExports } from 'node:module'
    import { Connect, lockDriver, VIR_DOMAIN_START_PAUSED, VIR_STREAM_DISK_START } from '${index}'
    const locks = await lockDriver('ofd', { directory: '${directory}' })
    let armed = false
    const fuse = { ...locks, hold: (resources) => locks.hold(resources), acquire: (owner, ...rest) => {
      if (armed && '${at}' === (owner.id < 0 ? 'daemon' : 'qemu')) process.kill(process.pid, 'SIGKILL')
      return locks.acquire(owner, ...rest)
    } }
    const { renameSync } = fs
    fs.renameSync = (from, to) => {
      renameSync(from, to)
      const { phase, state } = armed && '${at}' === 'status' && /run.qemu.*status/.test(to) ? JSON.parse(fs.readFileSync(to)) : {}
      // paused as the user wants it, no more as it is while it starts up
      if (phase === 'running' && state.reason === 1) process.kill(process.pid, 'SIGKILL')
    }
    syncBuiltinESMExports()
    const conn = await Connect.open('${root.uri}', { lockManager: fuse })
    const dom = await conn.domainLookupByName('moving')
    ${work}`
  await assert.rejects(run(process.execPath, ['--input-type=module', '-e', script]), { reason: 'signal' })
}

/** Opens the root; a child that was to become QEMU has it for a moment longer than its parent. */
const isFree = (root: TestRoot): Promise<boolean> =>
  Connect.open(root.uri).then(
    (conn) => {
      root.conn = conn
      return true
    },
    (error: unknown) => {
      assert.match(String(error), /is in use by process/)
      return false
    },
  )

interface Move {
  name: string
  at: 'qemu' | 'daemon' | 'status'
  work: string
  /** where the next process finds the stream */
  mode: 'full' | 'offline'
}

const begin =
  "await dom.streamDisk('vda', 0, VIR_STREAM_DISK_START, { bandwidth: 4194304, onShutdown: 'continue', engine: 'job' })"
const moves: Move[] = [
  {
    name: 'the daemon had ended and no QEMU had begun',
    at: 'qemu',
    work: `${begin}; armed = true; await dom.create(VIR_DOMAIN_START_PAUSED)`,
    mode: 'offline',
  },
  {
    name: 'QEMU had begun, its streams had not',
    at: 'status',
    work: `${begin}; armed = true; await dom.create(VIR_DOMAIN_START_PAUSED)`,
    mode: 'full',
  },
  {
    name: 'QEMU had ended and no daemon had begun',
    at: 'daemon',
    work: `await dom.create(VIR_DOMAIN_START_PAUSED); ${begin}; armed = true; await dom.destroy(); await conn.close()`,
    mode: 'offline',
  },
]

for (const move of moves)
  test(`our process is killed while a stream moves, when ${move.name}: the next one lets it go on`, async (t) => {
    if (!requires(t, ...needed)) return
    const root = await testRoot(t)
    const base = await patternImage(root.folder, 16 * MiB)
    const path = await overlay(root.folder, base.path)
    await root.conn.domainDefineXML(plainXml({ name: 'moving', devices: diskXml('vda', path) }))
    await root.conn.close()
    await dieAt(root, join(root.folder, 'locks'), move.at, move.work)
    await until('its last child is gone too', () => isFree(root))
    const dom = await root.conn.domainLookupByName('moving')
    await until('it goes on', async () => (await offsetOf(dom)) >= 0)
    const stream = await dom.attachStream('vda')
    assert.equal((await stream.info())?.mode, move.mode)
    assert.equal((await stream.info())?.onShutdown, 'continue')
    await stream.setBandwidth(0)
    await stream.finished
    if (move.mode === 'full') await dom.destroy()
    assertNoDaemon(root)
    assert.deepEqual(readdirSync(join(root.folder, 'root/run/qemu')), [])
    assert.equal(await backingOf(path), undefined)
    await checkImage(path)
    const { bad, base: blocks } = await checkPattern(path, 'qcow2', base.seed)
    assert.deepEqual([bad, blocks], [0, base.size / 4096])
    assert.equal(existsSync(base.path), true)
  })
