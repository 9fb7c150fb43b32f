/** Many streams of one root: a bandwidth shared by weight, and no more than so many at once. Real QEMU, no guest. */
import assert from 'node:assert/strict'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import {
  VIR_DOMAIN_BLOCK_JOB_CANCELED,
  VIR_DOMAIN_BLOCK_JOB_COMPLETED,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_START_PAUSED,
  VIR_STREAM_DISK_ONE,
  VIR_STREAM_DISK_START,
  VIR_STREAM_DISK_STOP,
  type ConnectEvent,
  type Domain,
  type StreamDiskState,
  type StreamOptions,
} from '../../src/index.js'
import {
  diskXml,
  plainXml,
  qemuPid,
  recordEvents,
  reopen,
  startGuest,
  startPlain,
  testRoot,
  until,
  virError,
  type TestRoot,
} from '../support/domain.js'
import { driverProcess } from '../support/driver-process.js'
import { backingOf, overlay, patternImage } from '../support/images.js'
import { requires } from '../support/requires.js'
import { nbdUri, qemuNbd } from '../support/servers.js'

const KiB = 1024
const MiB = 1024 * KiB
const START = VIR_STREAM_DISK_START

async function rootWith(t: TestContext, streams: object): Promise<TestRoot> {
  const root = await testRoot(t)
  await root.conn.close()
  await settings(root, { streams })
  await reopen(root)
  return root
}

async function settings(root: TestRoot, content: object): Promise<void> {
  await mkdir(join(root.folder, 'root/etc'), { recursive: true })
  await writeFile(join(root.folder, 'root/etc/qemu.json'), JSON.stringify(content))
}

/** XML of disks vda, vdb … of a domain, each a thin overlay of `base`. */
async function disks(root: TestRoot, name: string, base: string, count: number): Promise<string> {
  const xml = ['a', 'b', 'c'].slice(0, count).map(async (letter) => {
    const path = await overlay(root.folder, base, { name: `${name}-vd${letter}.qcow2` })
    return diskXml(`vd${letter}`, path)
  })
  return (await Promise.all(xml)).join('\n')
}

/** The bytes/s that QEMU's own jobs have been told, by disk. */
async function qemuSpeeds(dom: Domain): Promise<Record<string, number>> {
  const text = await dom.qemuMonitorCommand('{"execute":"query-block-jobs"}')
  const jobs = (JSON.parse(text) as { return: { device: string; speed: number }[] }).return
  return Object.fromEntries(jobs.map(({ device, speed }) => [device.replace('stream-', ''), speed]))
}

async function states(...doms: Domain[]): Promise<Record<string, StreamDiskState>> {
  const all = await Promise.all(
    doms.map(async (dom) => {
      // a QEMU that was killed may not be known to be gone yet
      const found = await dom.streamDiskInfo().catch(() => [])
      return found.map((state) => [`${dom.name} ${state.disk}`, state] as const)
    }),
  )
  return Object.fromEntries(all.flat())
}

/** 'running', or the place in the queue. */
async function queue(...doms: Domain[]): Promise<Record<string, string>> {
  const place = ({ status, error = '' }: StreamDiskState): string =>
    status === 'waiting' ? (/^it is number (\d+) in the queue/.exec(error)?.[1] ?? error) : status
  return Object.fromEntries(Object.entries(await states(...doms)).map(([name, state]) => [name, place(state)]))
}

const untilQueue = (what: string, doms: Domain[], expected: Record<string, string>): Promise<void> =>
  until(what, async () => JSON.stringify(await queue(...doms)) === JSON.stringify(expected))

/** Begins a stream, which QEMU's own job moves unless `options` say otherwise: QEMU tells what that has been told. */
async function begin(dom: Domain, disk: string, options: StreamOptions = {}): Promise<void> {
  await dom.streamDisk(disk, 0, START, { engine: 'job', ...options })
}

const ends = (events: readonly ConnectEvent[]): string[] =>
  events.flatMap((event) => (event.kind === 'block-job' ? [`${event.disk} ${event.status}`] : []))

test('streams share a bandwidth by weight, as they come, change and end, whoever moves their data', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await rootWith(t, { totalBandwidth: 1200 * KiB })
  const base = await patternImage(root.folder, 64 * MiB)
  const weighted = `<metadata><v:streams xmlns:v='urn:virstream:stream:1' weight='2'/></metadata>`
  const a = await startPlain(root, { name: 'a', devices: await disks(root, 'a', base.path, 2) })
  const b = await startPlain(root, { name: 'b', devices: await disks(root, 'b', base.path, 1), extra: weighted })
  const shares = async (): Promise<Record<string, number>> =>
    Object.fromEntries(Object.entries(await states(a, b)).map(([name, { share }]) => [name, (share ?? 0) / KiB]))
  const speeds = (dom: Domain, expected: Record<string, number>): Promise<void> =>
    until(`QEMU has been told ${JSON.stringify(expected)}`, async () => {
      const told = Object.entries(await qemuSpeeds(dom)).map(([disk, speed]) => [disk, speed / KiB])
      return JSON.stringify(Object.fromEntries(told)) === JSON.stringify(expected)
    })

  await begin(a, 'vda')
  assert.deepEqual(await shares(), { 'a vda': 1200 })
  await speeds(a, { vda: 1200 })
  await begin(b, 'vda')
  await begin(a, 'vdb', { engine: 'pull', weight: 3 })
  assert.deepEqual(await shares(), { 'a vda': 200, 'a vdb': 600, 'b vda': 400 })
  await speeds(a, { vda: 200 })
  await speeds(b, { vda: 400 })
  // what one does not want is for the others
  await a.blockJobSetSpeed('vdb', 300 * KiB, 1)
  assert.deepEqual(await shares(), { 'a vda': 300, 'a vdb': 300, 'b vda': 600 })
  assert.equal((await states(a))['a vdb']?.bandwidth, 300 * KiB)
  // more than its share is what it asks for, not what it gets
  await a.blockJobSetSpeed('vda', 1000 * KiB, 1)
  assert.deepEqual(await shares(), { 'a vda': 300, 'a vdb': 300, 'b vda': 600 })
  await a.streamDisk('vdb', 0, VIR_STREAM_DISK_STOP)
  assert.deepEqual(await shares(), { 'a vda': 400, 'b vda': 800 })
  await speeds(b, { vda: 800 })
  await b.destroy()
  assert.deepEqual(await shares(), { 'a vda': 1000 })
  await speeds(a, { vda: 1000 })
  // a single unit has a share too, until it is paid for
  const path = await overlay(root.folder, base.path, { name: 'c.qcow2' })
  const c = await startPlain(root, { name: 'c', devices: diskXml('vda', path) })
  await c.streamDisk('vda', 0, VIR_STREAM_DISK_ONE, { unit: 32 * MiB })
  await speeds(a, { vda: 600 })
  const signal = AbortSignal.timeout(100)
  const aborted = virError('VIR_ERR_OPERATION_ABORTED', /while it waited/)
  await assert.rejects(c.streamDisk('vda', 0, VIR_STREAM_DISK_ONE, { signal }), aborted)
})

test('more streams than there may be wait in the order of their coming, and begin by themselves', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon')) return
  const root = await rootWith(t, { maxStreams: 1 })
  const base = await patternImage(root.folder, 16 * MiB)
  const a = await startPlain(root, { name: 'a', devices: await disks(root, 'a', base.path, 3) })
  const b = await root.conn.domainDefineXML(plainXml({ name: 'b', devices: await disks(root, 'b', base.path, 1) }))
  const events = recordEvents(root.conn)
  await begin(a, 'vda', { bandwidth: 1 })
  await begin(b, 'vda')
  await begin(a, 'vdb')
  await begin(a, 'vdc', { engine: 'pull', bandwidth: 5 })
  const [waiting] = await b.streamDiskInfo()
  assert.deepEqual(waiting, {
    path: 'virtio-disk0',
    offset: 0,
    size: 16 * MiB,
    disk: 'vda',
    mode: 'offline',
    engine: 'job',
    bandwidth: 0,
    status: 'waiting',
    error: "it is number 1 in the queue: 'maxStreams' lets 1 stream move at once",
  })
  assert.deepEqual(await queue(a, b), { 'a vda': 'running', 'a vdb': '2', 'a vdc': '3', 'b vda': '1' })
  assert.deepEqual(Object.keys(await qemuSpeeds(a)), ['vda'])
  await assert.rejects(begin(a, 'vdb'), virError('VIR_ERR_OPERATION_INVALID', /already in active/))
  // one that waits is stopped, and changed
  await a.streamDisk('vdb', 0, VIR_STREAM_DISK_STOP)
  await a.blockJobSetSpeed('vdc', 0)
  assert.deepEqual(await queue(a, b), { 'a vda': 'running', 'a vdc': '2', 'b vda': '1' })
  assert.equal((await states(a))['a vdc']?.bandwidth, 0)
  // without a limit of their own the others come to their ends, one after the other
  const last = await a.attachStream('vdc')
  await a.streamDisk('vda', 0, VIR_STREAM_DISK_STOP)
  await last.finished
  await until('the last event', () => ends(events).length === 4)
  assert.deepEqual(ends(events), [
    `vdb ${VIR_DOMAIN_BLOCK_JOB_CANCELED}`,
    `vda ${VIR_DOMAIN_BLOCK_JOB_CANCELED}`,
    `vda ${VIR_DOMAIN_BLOCK_JOB_COMPLETED}`,
    `vdc ${VIR_DOMAIN_BLOCK_JOB_COMPLETED}`,
  ])
  assert.deepEqual(await queue(a, b), {})
  assert.equal(await backingOf(join(root.folder, 'b-vda.qcow2')), undefined)
  assert.equal(await backingOf(join(root.folder, 'a-vdc.qcow2')), undefined)
})

test('a QEMU that is killed and a domain that is destroyed leave their slots to the next', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await rootWith(t, { maxStreams: 2 })
  const base = await patternImage(root.folder, 16 * MiB)
  const doms: Domain[] = []
  for (const name of ['a', 'b', 'c', 'd'])
    doms.push(await startPlain(root, { name, devices: await disks(root, name, base.path, 1) }))
  for (const dom of doms) await begin(dom, 'vda', { bandwidth: 1 })
  const [a, b, c, d] = doms
  assert.ok(a && b && c && d)
  assert.deepEqual(await queue(...doms), { 'a vda': 'running', 'b vda': 'running', 'c vda': '1', 'd vda': '2' })
  process.kill(qemuPid(root, a), 'SIGKILL')
  await untilQueue('the next one runs', doms, { 'b vda': 'running', 'c vda': 'running', 'd vda': '1' })
  // one that waits goes with its domain, and is counted no more
  await d.destroy()
  await b.destroy()
  await a.create(VIR_DOMAIN_START_PAUSED)
  await begin(a, 'vda')
  await until('the stream of a is at its end', async () => (await a.streamDiskInfo()).length === 0)
  assert.equal(await backingOf(join(root.folder, 'a-vda.qcow2')), undefined)
  assert.deepEqual(await queue(...doms), { 'c vda': 'running' })
})

test('the queue outlives our process, its order, weights and bandwidths too; less room than before is shared in order', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await rootWith(t, { maxStreams: 2, totalBandwidth: 900 * KiB })
  const base = await patternImage(root.folder, 32 * MiB)
  const a = await startPlain(root, { name: 'a', devices: await disks(root, 'a', base.path, 2) })
  const b = await startPlain(root, { name: 'b', devices: await disks(root, 'b', base.path, 2) })
  await begin(b, 'vda', { weight: 2 })
  await begin(a, 'vdb', { engine: 'pull' })
  await begin(b, 'vdb', { bandwidth: 100 * KiB, weight: 7 })
  await begin(a, 'vda')
  const before = { 'a vda': '2', 'a vdb': 'running', 'b vda': 'running', 'b vdb': '1' }
  const named = async (): Promise<Record<string, string>> => {
    const [again, other] = [await root.conn.domainLookupByName('a'), await root.conn.domainLookupByName('b')]
    return Object.fromEntries(Object.entries(await queue(again, other)).toSorted())
  }
  assert.deepEqual(await named(), before)
  await reopen(root)
  assert.deepEqual(await named(), before)
  await root.conn.close()
  await settings(root, { streams: { maxStreams: 1, totalBandwidth: 900 * KiB } })
  await reopen(root)
  assert.deepEqual(await named(), { 'a vda': '3', 'a vdb': '1', 'b vda': 'running', 'b vdb': '2' })
  const again = await root.conn.domainLookupByName('b')
  await until('the others rest', async () => (await qemuSpeeds(again))['vda'] === 900 * KiB)
  await again.streamDisk('vda', 0, VIR_STREAM_DISK_STOP)
  assert.equal((await named())['a vdb'], 'running')
  await (await root.conn.domainLookupByName('a')).destroy()
  await until('the one that waited runs', async () => (await named())['b vdb'] === 'running')
  await until('as fast as it wants to', async () => (await qemuSpeeds(again))['vdb'] === 100 * KiB)
})

test('a process that was killed leaves the queue as it was', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await rootWith(t, { maxStreams: 1 })
  const base = await patternImage(root.folder, 8 * MiB)
  const a = await startPlain(root, { name: 'a', devices: await disks(root, 'a', base.path, 1) })
  await root.conn.domainDefineXML(plainXml({ name: 'b', devices: await disks(root, 'b', base.path, 1) }))
  await begin(a, 'vda', { bandwidth: 1 })
  await root.conn.close()
  const other = driverProcess(t, root.uri, { name: 'b', do: 'create-paused', bandwidth: 0 })
  assert.equal(await other.said, 'ready')
  await other.kill()
  await reopen(root)
  const [first, second] = [await root.conn.domainLookupByName('a'), await root.conn.domainLookupByName('b')]
  assert.deepEqual(await queue(first, second), { 'a vda': 'running', 'b vda': '1' })
  const stream = await second.attachStream('vda')
  await first.streamDisk('vda', 0, VIR_STREAM_DISK_STOP)
  await stream.finished
})

test('a stream without a guest keeps its slot, or its place, when its domain starts and when it is shut off', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon')) return
  const root = await rootWith(t, { maxStreams: 1 })
  const base = await patternImage(root.folder, 16 * MiB)
  const doms: Domain[] = []
  for (const name of ['a', 'b', 'c'])
    doms.push(await root.conn.domainDefineXML(plainXml({ name, devices: await disks(root, name, base.path, 1) })))
  const [a, b, c] = doms
  assert.ok(a && b && c)
  for (const dom of doms) await begin(dom, 'vda', { bandwidth: 1, onShutdown: 'continue' })
  const order = { 'a vda': 'running', 'b vda': '1', 'c vda': '2' }
  assert.deepEqual(await queue(...doms), order)
  for (const dom of [c, a]) await dom.create(VIR_DOMAIN_START_PAUSED)
  await untilQueue('all are there again', doms, order)
  assert.deepEqual(
    Object.values(await states(...doms)).map(({ mode }) => mode),
    ['full', 'offline', 'full'],
  )
  for (const dom of [c, a]) await dom.destroy()
  await until('both are shut off', async () => (await c.getState()).state === VIR_DOMAIN_SHUTOFF)
  await untilQueue('and all are there once more', doms, order)
})

test('a stream whose base is gone leaves its slot to the next, and comes back when there is one', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-nbd', 'program:qemu-img')) return
  const root = await rootWith(t, { maxStreams: 1, totalBandwidth: 4 * MiB })
  const base = await patternImage(root.folder, 32 * MiB)
  const at = { path: join(root.folder, 'base.sock') }
  const server = await qemuNbd(t, base.path, at)
  const remote = await overlay(root.folder, nbdUri(at), { name: 'remote.qcow2', size: 32 * MiB })
  const a = await startPlain(root, { name: 'a', devices: diskXml('vda', remote) })
  const b = await startPlain(root, { name: 'b', devices: await disks(root, 'b', base.path, 1) })
  const stream = await a.stream('vda')
  await begin(b, 'vda', { bandwidth: 1 })
  assert.deepEqual(await queue(a, b), { 'a vda': 'running', 'b vda': '1' })
  await server.kill()
  await until('the next one moves', async () => (await queue(a, b))['b vda'] === 'running')
  assert.match((await queue(a, b))['a vda'] ?? '', /the base does not answer/)
  await server.start()
  await until('the first one waits for its turn', async () => (await queue(a, b))['a vda'] === '1')
  await b.streamDisk('vda', 0, VIR_STREAM_DISK_STOP)
  await stream.finished
  assert.equal(await backingOf(remote), undefined)
})

test('an idle stream leaves its slot while its guest works, and has it back when the guest is quiet and there is one', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await rootWith(t, { maxStreams: 1, totalBandwidth: MiB })
  const base = await patternImage(root.folder, 32 * MiB)
  const { dom, guest } = await startGuest(t, root, { devices: await disks(root, 'guest', base.path, 2) })
  await guest.base('vda', base.seed, base.size)
  await guest.work('vda', 'slowly')
  await begin(dom, 'vda', { policy: 'idle' })
  await begin(dom, 'vdb')
  await until('the other one moves', async () => (await queue(dom))['guest vdb'] === 'running')
  assert.equal((await states(dom))['guest vdb']?.share, MiB)
  await guest.stop()
  await until('the idle one waits for its turn', async () => (await queue(dom))['guest vda'] === '1')
  await dom.streamDisk('vdb', 0, VIR_STREAM_DISK_STOP)
  await until('it moves', async () => (await qemuSpeeds(dom))['vda'] === MiB)
  const stream = await dom.attachStream('vda')
  await reopen(root)
  await assert.rejects(stream.finished, virError('VIR_ERR_INVALID_CONN', /goes on/))
  const again = await root.conn.domainLookupByName('guest')
  await until('it moves again', async () => (await qemuSpeeds(again))['vda'] === MiB)
})

test('an idle stream of a domain that does not run has no guest to wait for', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 8 * MiB)
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'a', devices: await disks(root, 'a', base.path, 2) }))
  for (const [disk, engine] of [
    ['vda', 'job'],
    ['vdb', 'pull'],
  ] as const)
    await (
      await dom.stream(disk, { policy: 'idle', engine })
    ).finished
})

test('settings of streams that are wrong keep the root closed, and the wrong value is named', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  for (const [streams, message] of [
    [{ totalBandwidth: -5 }, /setting 'streams\.totalBandwidth' must be >= 0, not '-5'/],
    [{ totalBandwidth: '10M' }, /setting 'streams\.totalBandwidth' must be integer, not '10M'/],
    [{ maxStreams: 1.5 }, /setting 'streams\.maxStreams' must be integer, not '1\.5'/],
    [{ maxStream: 3 }, /there is no setting 'streams\.maxStream'/],
    [7, /setting 'streams' must be object, not '7'/],
  ] as const) {
    await settings(root, { streams })
    await assert.rejects(reopen(root), virError('VIR_ERR_CONF_SYNTAX', message))
  }
  await settings(root, {})
  await reopen(root)
})

test('weights that are none are refused', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, MiB)
  const devices = await disks(root, 'a', base.path, 1)
  for (const [metadata, message] of [
    [`<v:streams xmlns:v='urn:virstream:stream:1' weight='0'/>`, /'0' is not a weight, a whole number from 1 to 1000/],
    [`<v:streams xmlns:v='urn:virstream:stream:1' wait='2'/>`, /element 'streams' has no attribute 'wait'/],
    [`<v:stream xmlns:v='urn:virstream:stream:1' disk='vda' weight='1e3'/>`, /'1e3' is not a weight/],
  ] as const) {
    const xml = plainXml({ name: 'a', devices, extra: `<metadata>${metadata}</metadata>` })
    await assert.rejects(root.conn.domainDefineXML(xml), virError('VIR_ERR_XML_ERROR', message))
  }
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'a', devices }))
  for (const weight of [0, 1001])
    await assert.rejects(
      begin(dom, 'vda', { weight }),
      virError('VIR_ERR_INVALID_ARG', new RegExp(`from 1 to 1000, not '${weight}'`)),
    )
})
