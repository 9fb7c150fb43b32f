/** Streams of disks whose domain does not run, and what happens to them when it starts and stops. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readdirSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC,
  VIR_DOMAIN_BLOCK_JOB_CANCELED,
  VIR_DOMAIN_BLOCK_JOB_COMPLETED,
  VIR_DOMAIN_BLOCK_JOB_FAILED,
  VIR_DOMAIN_START_PAUSED,
  VIR_STREAM_DISK_ONE,
  VIR_STREAM_DISK_START,
  VIR_STREAM_DISK_STOP,
  Connect,
  type ConnectEvent,
} from '../../src/index.js'
import {
  agentOf,
  diskXml,
  guestXml,
  plainXml,
  powerOff,
  recordEvents,
  reopen,
  startGuest,
  testRoot,
  until,
  virError,
} from '../support/domain.js'
import { RunError } from '../../src/util/run.js'
import { driverProcess } from '../support/driver-process.js'
import { assertNoDaemon, daemonPid, offlineDir, offsetOf } from '../support/offline.js'
import { startNbdkit } from '../support/nbd-server.js'
import { backingOf, bytesOnDisk, checkImage, overlay, ownBytes, patternImage } from '../support/images.js'
import { checkPattern } from '../support/pattern.js'
import { killerOf } from '../support/killer.js'
import { requires } from '../support/requires.js'
import { untilWaits } from '../support/streamed.js'

const MiB = 1024 * 1024
const needed = ['program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon'] as const

const statuses = (events: readonly ConnectEvent[]): number[] =>
  events.flatMap((event) => (event.kind === 'block-job' ? [event.status] : []))

/** `killed`: a QEMU that was killed may have left clusters that nothing refers to, which cost space and nothing else. */
async function assertContent(path: string, seed: number, blocks: number, killed = false): Promise<void> {
  if (killed) await assertSound(path)
  else await checkImage(path)
  const { bad, base } = await checkPattern(path, 'qcow2', seed)
  assert.deepEqual({ bad, base }, { bad: 0, base: blocks })
}

async function assertSound(path: string): Promise<void> {
  await checkImage(path).catch((error: unknown) => {
    assert.ok(error instanceof RunError && error.status === 3, String(error))
  })
}

for (const engine of ['job', 'pull'] as const)
  test(`a disk is streamed to its end while its domain is shut off, by engine '${engine}'`, async (t) => {
    if (!requires(t, ...needed)) return
    const root = await testRoot(t)
    const base = await patternImage(root.folder, 32 * MiB)
    const path = await overlay(root.folder, base.path)
    const dom = await root.conn.domainDefineXML(plainXml({ name: 'off', devices: diskXml('vda', path) }))
    assert.deepEqual(await dom.streamDiskInfo(), [])
    assert.equal(await dom.blockJobInfo('vda'), undefined)
    const events = recordEvents(root.conn)
    const stream = await dom.stream('vda', { bandwidth: 16 * MiB, engine })
    const [state] = await dom.streamDiskInfo()
    assert.deepEqual(state, {
      path: 'virtio-disk0',
      offset: state?.offset,
      size: 32 * MiB,
      disk: 'vda',
      mode: 'offline',
      engine,
      bandwidth: 16 * MiB,
      status: 'running',
    })
    assert.equal(await dom.isActive(), false)
    const offsets: number[] = []
    for await (const { offset } of stream) offsets.push(offset)
    await stream.finished
    assert.equal(offsets.at(-1), 32 * MiB)
    assert.deepEqual(statuses(events), [VIR_DOMAIN_BLOCK_JOB_COMPLETED])
    assertNoDaemon(root)
    assert.equal(await backingOf(path), undefined)
    assert.doesNotMatch(await dom.getXMLDesc(), /<backingStore type/)
    await rm(base.path)
    await assertContent(path, base.seed, base.size / 4096)
    await assert.rejects(dom.stream('vda'), virError('VIR_ERR_OPERATION_INVALID', /no backing image/))
    await dom.create(VIR_DOMAIN_START_PAUSED)
    await dom.destroy()
  })

test('a definition that names the chain no longer does so when its disk has been streamed', async (t) => {
  if (!requires(t, ...needed)) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 8 * MiB)
  const path = await overlay(root.folder, base.path)
  const chain = `<backingStore type='file'><format type='raw'/><source file='${base.path}'/><backingStore/></backingStore>`
  const devices = diskXml('vda', path, { extra: chain })
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'named', devices }))
  await dom.blockPull('vda')
  await until('it is done', async () => (await dom.blockJobInfo('vda')) === undefined)
  assert.doesNotMatch(await dom.getXMLDesc(), /<backingStore type/)
  await reopen(root)
  const again = await root.conn.domainLookupByName('named')
  assert.doesNotMatch(await again.getXMLDesc(), /<backingStore type/)
  await rm(base.path)
  await again.create(VIR_DOMAIN_START_PAUSED)
  await again.destroy()
})

test('a stream of a domain that is shut off is limited, stopped, and goes on from where it was', async (t) => {
  if (!requires(t, ...needed)) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 64 * MiB)
  const path = await overlay(root.folder, base.path)
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'off', devices: diskXml('vda', path) }))
  const events = recordEvents(root.conn)
  await dom.blockPull('vda', 4)
  assert.equal((await dom.blockJobInfo('vda', 1))?.bandwidth, 4 * MiB)
  await until('8 MiB are copied', async () => (await offsetOf(dom)) >= 8 * MiB)
  const reached = await offsetOf(dom)
  await dom.blockJobAbort('vda')
  assertNoDaemon(root)
  assert.equal(await backingOf(path), base.path)
  assert.ok((await ownBytes(path)) > 0)
  // what has been copied is not copied again: that would take longer than is waited for
  await dom.streamDisk('vda', 0, VIR_STREAM_DISK_START, { bandwidth: MiB / 16 })
  await until('it is where it was', async () => (await offsetOf(dom)) >= reached)
  await dom.blockJobAbort('vda', VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC)
  await until('it is stopped', () => statuses(events).length === 2)
  const stream = await dom.stream('vda', { bandwidth: 1 })
  await dom.blockJobSetSpeed('vda', 0)
  await stream.finished
  assert.deepEqual(statuses(events), [
    VIR_DOMAIN_BLOCK_JOB_CANCELED,
    VIR_DOMAIN_BLOCK_JOB_CANCELED,
    VIR_DOMAIN_BLOCK_JOB_COMPLETED,
  ])
  await assertContent(path, base.seed, base.size / 4096)
})

test('two disks are streamed at once, each to its own base, by one daemon', async (t) => {
  if (!requires(t, ...needed)) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 16 * MiB)
  const middle = await overlay(root.folder, base.path, { name: 'middle.qcow2' })
  const first = await overlay(root.folder, middle, { name: 'first.qcow2', backingFormat: 'qcow2' })
  const second = await overlay(root.folder, base.path, { name: 'second.qcow2' })
  const devices = diskXml('vda', first) + diskXml('vdb', second)
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'two', devices }))
  await dom.streamDisk('vdb', 0, VIR_STREAM_DISK_START, { bandwidth: 1 })
  await (
    await dom.stream('vda', { base: base.path })
  ).finished
  assert.equal(await backingOf(first), base.path)
  assert.equal(readdirSync(offlineDir(root)).length, 1)
  const again = await dom.stream('vda')
  assert.deepEqual((await dom.streamDiskInfo()).map(({ disk }) => disk).toSorted(), ['vda', 'vdb'])
  await again.finished
  assert.equal(await backingOf(first), undefined)
  await dom.blockJobSetSpeed('vdb', 0)
  await until('both are done', () => readdirSync(offlineDir(root)).length === 0)
  assertNoDaemon(root)
  for (const path of [first, second]) await assertContent(path, base.seed, base.size / 4096)
})

for (const engine of ['job', 'pull'] as const)
  test(`starting the domain in the middle of a stream hands it over to the guest's QEMU, engine '${engine}'`, async (t) => {
    if (!requires(t, ...needed)) return
    const root = await testRoot(t)
    const base = await patternImage(root.folder, 64 * MiB)
    const path = await overlay(root.folder, base.path)
    const dom = await root.conn.domainDefineXML(await guestXml(root.folder, { devices: diskXml('vda', path) }))
    const events = recordEvents(root.conn)
    const stream = await dom.stream('vda', { bandwidth: 4 * MiB, engine })
    await until('8 MiB are copied', async () => (await offsetOf(dom)) >= 8 * MiB)
    await stream.setBandwidth(MiB)
    await dom.create()
    assert.ok((await ownBytes(path)) > 4 * MiB, 'what was copied is on disk')
    await until('it goes on in the guest', async () => (await dom.streamDiskInfo())[0]?.mode === 'full')
    const [state] = await dom.streamDiskInfo()
    assert.ok(state !== undefined && state.offset >= 8 * MiB, `not from the start: ${JSON.stringify(state)}`)
    assert.equal(state.bandwidth, MiB)
    assert.deepEqual(readdirSync(offlineDir(root)), [])
    const guest = await agentOf(t, root.folder)
    await guest.base('vda', base.seed, base.size)
    await guest.work('vda')
    await stream.setBandwidth(0)
    await stream.finished
    assert.deepEqual(statuses(events), [VIR_DOMAIN_BLOCK_JOB_COMPLETED])
    await rm(base.path)
    await guest.stop()
    assert.equal((await guest.verify('vda')).bad, 0)
    const digest = await guest.digest('vda')
    await powerOff(dom, guest)
    const report = await checkPattern(path, 'qcow2', base.seed, base.size)
    assert.deepEqual([report.bad, report.digest], [0, digest])
  })

test("a guest that shuts down leaves a stream with onShutdown 'continue' to a daemon, one without ends", async (t) => {
  if (!requires(t, ...needed)) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 48 * MiB)
  const path = await overlay(root.folder, base.path)
  const { dom, guest } = await startGuest(t, root, { devices: diskXml('vda', path) })
  await guest.base('vda', base.seed, base.size)
  const events = recordEvents(root.conn)
  const stream = await dom.stream('vda', { bandwidth: MiB, onShutdown: 'continue' })
  assert.equal((await stream.info())?.onShutdown, 'continue')
  await until('some of it is there', async () => (await offsetOf(dom)) >= 2 * MiB)
  await powerOff(dom, guest)
  await until('it goes on', async () => (await dom.streamDiskInfo())[0]?.mode === 'offline')
  assert.ok((await offsetOf(dom)) >= 2 * MiB)
  assert.deepEqual(statuses(events), [])
  await dom.create(VIR_DOMAIN_START_PAUSED)
  await until('it is back in QEMU', async () => (await dom.streamDiskInfo())[0]?.mode === 'full')
  await dom.destroy()
  await until('it goes on again', async () => (await dom.streamDiskInfo())[0]?.mode === 'offline')
  await stream.setBandwidth(0)
  await stream.finished
  assert.deepEqual(statuses(events), [VIR_DOMAIN_BLOCK_JOB_COMPLETED])
  assertNoDaemon(root)
  const { bad } = await checkPattern(path, 'qcow2', base.seed, base.size)
  assert.equal(bad, 0)
})

test('a daemon that is killed has failed its stream; the image is whole and the next stream ends', async (t) => {
  if (!requires(t, ...needed)) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 64 * MiB)
  const path = await overlay(root.folder, base.path)
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'killed', devices: diskXml('vda', path) }))
  const events = recordEvents(root.conn)
  const stream = await dom.stream('vda', { bandwidth: 2 * MiB })
  await until('it was flushed at least once', async () => (await ownBytes(path)) > 4 * MiB)
  process.kill(daemonPid(root), 'SIGKILL')
  await assert.rejects(stream.finished, virError('VIR_ERR_OPERATION_FAILED', /storage daemon .* is gone/))
  assert.deepEqual(statuses(events), [VIR_DOMAIN_BLOCK_JOB_FAILED])
  assertNoDaemon(root)
  await assertSound(path)
  assert.equal(await backingOf(path), base.path)
  assert.ok((await ownBytes(path)) > 4 * MiB, 'what was flushed is kept')
  await (
    await dom.stream('vda')
  ).finished
  await assertContent(path, base.seed, base.size / 4096, true)
})

for (const engine of ['job', 'pull'] as const)
  test(`our process is killed in mid-stream: the next one finds the daemon and finishes the stream, engine '${engine}'`, async (t) => {
    if (!requires(t, ...needed, 'program:nbdkit')) return
    const root = await testRoot(t)
    const base = await patternImage(root.folder, 32 * MiB)
    const server = await startNbdkit(t, { plugin: ['file', base.path], socket: `${root.folder}/base.sock` })
    const path = await overlay(root.folder, server.uri, { size: base.size })
    await root.conn.domainDefineXML(plainXml({ name: 'orphan', devices: diskXml('vda', path) }))
    await root.conn.close()
    const other = driverProcess(t, root.uri, { name: 'orphan', do: 'stream', bandwidth: 2 * MiB, engine })
    assert.equal(await other.said, 'ready')
    const pid = daemonPid(root)
    await until('some of it is there', () => bytesOnDisk(path) > MiB)
    await other.kill()
    root.conn = await Connect.open(root.uri)
    assert.equal(daemonPid(root), pid, 'it is the same daemon')
    const dom = await root.conn.domainLookupByName('orphan')
    const events = recordEvents(root.conn)
    const stream = await dom.attachStream('vda')
    await until('it moves', async () => (await offsetOf(dom)) >= 4 * MiB)
    assert.equal((await stream.info())?.mode, 'offline')
    await stream.setBandwidth(0)
    await stream.finished
    assert.deepEqual(statuses(events), [VIR_DOMAIN_BLOCK_JOB_COMPLETED])
    assertNoDaemon(root, [server.pid])
    await assertContent(path, base.seed, base.size / 4096)
  })

test('a stream that has ended, or whose daemon has died, while nobody was there is tidied up', async (t) => {
  if (!requires(t, ...needed)) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 8 * MiB)
  const path = await overlay(root.folder, base.path)
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'alone', devices: diskXml('vda', path) }))
  await dom.streamDisk('vda', 0, VIR_STREAM_DISK_START, { bandwidth: 1 })
  const pid = daemonPid(root)
  await root.conn.close()
  await killerOf(t, pid)()
  root.conn = await Connect.open(root.uri)
  const again = await root.conn.domainLookupByName('alone')
  assert.deepEqual(await again.streamDiskInfo(), [])
  assertNoDaemon(root)
  await again.streamDisk('vda', 0, VIR_STREAM_DISK_START, { bandwidth: 16 * MiB })
  await root.conn.close()
  await until('all is copied', () => bytesOnDisk(path) >= base.size)
  root.conn = await Connect.open(root.uri)
  await until('the next process finishes it', () => readdirSync(offlineDir(root)).length === 0)
  assertNoDaemon(root)
  await assertContent(path, base.seed, base.size / 4096, true)
})

test('a remote base: requests in parallel, and a stream that waits while the server is away', async (t) => {
  if (!requires(t, ...needed, 'program:nbdkit')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 32 * MiB)
  const server = await startNbdkit(t, { plugin: ['file', base.path], socket: `${root.folder}/base.sock` })
  const path = await overlay(root.folder, server.uri, { size: base.size })
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'remote', devices: diskXml('vda', path) }))
  const stream = await dom.stream('vda', { bandwidth: 2 * MiB })
  assert.equal((await stream.info())?.engine, 'pull')
  await until('it moves', async () => (await offsetOf(dom)) > 0)
  await server.kill()
  assert.match((await untilWaits(dom)).error ?? '', /base does not answer/)
  await server.start()
  await stream.setBandwidth(0)
  await stream.finished
  await assertContent(path, base.seed, base.size / 4096)
})

test('an image that another process has open is not fought over: the refusal names that process', async (t) => {
  if (!requires(t, ...needed)) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 8 * MiB)
  const path = await overlay(root.folder, base.path)
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'busy', devices: diskXml('vda', path) }))
  const ready = join(root.folder, 'holder.pid')
  const image = `driver=qcow2,node-name=n,file.driver=file,file.filename=${path}`
  const holder = spawn('qemu-storage-daemon', ['--blockdev', image, '--pidfile', ready])
  t.after(() => holder.kill('SIGKILL'))
  const writes = `process ${holder.pid ?? 0} \\('qemu-storage-daemon'\\)`
  // its last step
  await until('it has the image', () => existsSync(ready))
  const refusal = virError('VIR_ERR_RESOURCE_BUSY', new RegExp(`^image '${path}' is in use by ${writes}$`))
  await assert.rejects(dom.stream('vda'), refusal)
  assert.deepEqual(readdirSync(offlineDir(root)), [])
  holder.kill('SIGTERM')
  await once(holder, 'exit')
  await (
    await dom.stream('vda')
  ).finished
  assert.equal(await backingOf(path), undefined)
})

test('a start that fails leaves the stream to a daemon again', async (t) => {
  if (!requires(t, ...needed)) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 16 * MiB)
  const path = await overlay(root.folder, base.path)
  const devices = diskXml('vda', path) + diskXml('vdb', `${root.folder}/gone`, { format: 'raw' })
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'lame', devices }))
  const stream = await dom.stream('vda', { bandwidth: MiB / 4 })
  const pid = daemonPid(root)
  await assert.rejects(dom.create(), /gone/)
  await until('it goes on', async () => (await dom.streamDiskInfo())[0]?.mode === 'offline' && daemonPid(root) !== pid)
  await stream.setBandwidth(0)
  await stream.finished
  assert.equal(await backingOf(path), undefined)
})

test('single units are streamed without a guest, and nobody has the image between them', async (t) => {
  if (!requires(t, ...needed)) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 4 * MiB)
  const path = await overlay(root.folder, base.path)
  const other = await overlay(root.folder, base.path, { name: 'other.qcow2' })
  const devices = diskXml('vda', path) + diskXml('vdb', other)
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'units', devices }))
  const one = (offset: number): Promise<number> => dom.streamDisk('vda', offset, VIR_STREAM_DISK_ONE, { unit: MiB })
  assert.equal(await one(0), MiB)
  assertNoDaemon(root)
  assert.equal(await backingOf(path), base.path)
  assert.equal(await ownBytes(path), MiB)
  await assert.rejects(one(base.size + 1), virError('VIR_ERR_INVALID_ARG', /behind the end/))
  assertNoDaemon(root)
  // the last unit first: what is left is found from the beginning
  assert.equal(await one(3 * MiB), 4 * MiB)
  assert.equal(await backingOf(path), base.path)

  // the other disk has the daemon anyway
  await dom.streamDisk('vdb', 0, VIR_STREAM_DISK_START, { bandwidth: 1 })
  await assert.rejects(
    dom.streamDisk('vdb', 0, VIR_STREAM_DISK_ONE),
    virError('VIR_ERR_OPERATION_INVALID', /already in active block job/),
  )
  assert.equal(await one(0), 2 * MiB)
  assert.equal(readdirSync(offlineDir(root)).length, 1)
  const events = recordEvents(root.conn)
  assert.equal(await one(2 * MiB), 4 * MiB)
  await until('it is told', () => statuses(events).length === 1)
  assert.deepEqual(statuses(events), [VIR_DOMAIN_BLOCK_JOB_COMPLETED])
  assert.equal(await backingOf(path), undefined)
  assert.equal((await dom.streamDiskInfo())[0]?.disk, 'vdb')
  await dom.blockJobAbort('vdb')
  assertNoDaemon(root)
  await assertContent(path, base.seed, base.size / 4096)
  await assert.rejects(one(0), virError('VIR_ERR_OPERATION_INVALID', /no backing image/))
  assertNoDaemon(root)
})

test('what cannot be done to a domain that is shut off is refused, and nothing is left behind', async (t) => {
  if (!requires(t, ...needed)) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 8 * MiB)
  const path = await overlay(root.folder, base.path)
  const cdrom = `<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>`
  const devices = diskXml('vda', path) + diskXml('vdb', base.path, { format: 'raw' }) + cdrom
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'off', devices }))
  const invalid = (words: RegExp) => virError('VIR_ERR_OPERATION_INVALID', words)
  const none = invalid(/does not have an active block job/)
  await assert.rejects(dom.streamDisk('vda', 0, VIR_STREAM_DISK_STOP), none)
  await assert.rejects(dom.blockJobAbort('vda'), none)
  await assert.rejects(dom.blockJobSetSpeed('vda', 1), none)
  await assert.rejects(dom.blockPull('sda'), invalid(/no medium/))
  await assert.rejects(dom.blockPull('vdb'), virError('VIR_ERR_CONFIG_UNSUPPORTED', /no backing image/))
  await assert.rejects(dom.blockPull('vdz'), virError('VIR_ERR_INVALID_ARG', /invalid path 'vdz'/))
  await assert.rejects(dom.blockJobInfo('vdz'), virError('VIR_ERR_INVALID_ARG', /invalid path 'vdz'/))
  await assert.rejects(dom.stream('vda', { base: '/no/such' }), virError('VIR_ERR_INVALID_ARG', /'\/no\/such'/))
  assertNoDaemon(root)

  await dom.streamDisk('vda', 0, VIR_STREAM_DISK_START, { bandwidth: 1 })
  await assert.rejects(dom.blockPull(path), invalid(/already in active block job/))
  await assert.rejects(dom.undefine(), invalid(/while a disk of it is streamed/))
  await assert.rejects(dom.destroy(), invalid(/domain is not running/))
  await root.conn.domainDefineXML(await dom.getXMLDesc())
  assert.equal((await dom.streamDiskInfo()).length, 1, 'a new definition leaves it alone')
  await dom.streamDisk('vda', 0, VIR_STREAM_DISK_STOP)
  assertNoDaemon(root)
  await dom.undefine()
})
