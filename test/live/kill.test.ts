/** kill -9, of QEMU and of our own process, in the middle of things; and what the next process makes of it. */
import assert from 'node:assert/strict'
import { closeSync, openSync, readFileSync, readSync } from 'node:fs'
import { chmod, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { test } from 'node:test'
import * as c from '../../src/index.js'
import { Monitor } from '../../src/qemu/monitor/monitor.js'
import {
  agentOf,
  assertNothingRuns,
  diskXml,
  guestXml,
  lifecycleOf,
  plainXml,
  powerOff,
  processesOf,
  qemuPid,
  recordEvents,
  reopen,
  startGuest,
  startPlain,
  testRoot,
  until,
  virError,
} from '../support/domain.js'
import { driverProcess } from '../support/driver-process.js'
import { backingOf, bytesOnDisk, checkImage, overlay, ownBytes, patternImage } from '../support/images.js'
import { checkPattern } from '../support/pattern.js'
import { findProgram, requires } from '../support/requires.js'
import { assertRight } from '../support/streamed.js'

const MiB = 1024 * 1024
const ENGINES = ['job', 'pull'] as const
const CRASHED = { state: c.VIR_DOMAIN_SHUTOFF, reason: c.VIR_DOMAIN_SHUTOFF_CRASHED }
const STOPPED_CRASHED = `${c.VIR_DOMAIN_EVENT_STOPPED}/${c.VIR_DOMAIN_EVENT_STOPPED_CRASHED}`

/** Does it run? One that ended but was not waited for by its parent (us) does not. */
function alive(pid: number): boolean {
  try {
    return !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return false
  }
}

for (const engine of ENGINES)
  test(`a QEMU that is killed in mid-stream costs some seconds of progress and nothing else, engine '${engine}'`, async (t) => {
    if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
    const root = await testRoot(t)
    const base = await patternImage(root.folder, 64 * MiB)
    const path = await overlay(root.folder, base.path)
    const dom = await startPlain(root, { name: 'killed', devices: diskXml('vda', path) })
    const events = recordEvents(root.conn)
    const stream = await dom.stream('vda', { bandwidth: 2 * MiB, engine })
    let flushed = 0
    await until('what is copied is written down', async () => (flushed = await ownBytes(path)) > 2 * MiB)
    const reached = (await stream.info())?.offset ?? 0
    process.kill(qemuPid(root, dom), 'SIGKILL')
    await assert.rejects(stream.finished, virError('VIR_ERR_OPERATION_FAILED', /QEMU of domain 'killed' is gone/))
    await until('the domain is shut off', async () => !(await dom.isActive()))

    assert.deepEqual(await dom.getState(), CRASHED)
    assert.deepEqual(lifecycleOf(events), [STOPPED_CRASHED])
    const jobs = events.flatMap((event) => (event.kind === 'block-job' ? [event.status] : []))
    assert.deepEqual(jobs, [c.VIR_DOMAIN_BLOCK_JOB_FAILED])
    assertNothingRuns(root)
    await checkImage(path)
    assert.equal(await backingOf(path), base.path)
    const kept = await ownBytes(path)
    t.diagnostic(`kept ${kept / MiB} of ${reached / MiB} MiB`)
    assert.ok(kept >= flushed && reached > 0, `${kept} of ${flushed} bytes were kept`)

    await dom.create(c.VIR_DOMAIN_START_PAUSED)
    await (
      await dom.stream('vda')
    ).finished
    await dom.destroy()
    await checkImage(path)
    assert.equal(await backingOf(path), undefined)
    assert.equal((await checkPattern(path, 'qcow2', base.seed)).bad, 0)
  })

for (const engine of ENGINES)
  test(`when our process is killed in mid-stream the guest works on, and the next one finishes the stream, engine '${engine}'`, async (t) => {
    if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
    const root = await testRoot(t)
    const base = await patternImage(root.folder, 64 * MiB)
    const path = await overlay(root.folder, base.path)
    await root.conn.domainDefineXML(await guestXml(root.folder, { devices: diskXml('vda', path) }))
    await root.conn.close()
    const bandwidth = MiB / 2
    const first = driverProcess(t, root.uri, { name: 'guest', do: 'create', bandwidth, engine })
    assert.equal(await first.said, 'ready')
    const guest = await agentOf(t, root.folder)
    await guest.base('vda', base.seed, base.size)
    await guest.work('vda', 'slowly')
    await first.kill()
    const { writes } = await guest.stat()
    await until('the guest works on', async () => (await guest.stat()).writes > writes)

    await reopen(root)
    const dom = await root.conn.domainLookupByName('guest')
    assert.equal((await dom.getState()).state, c.VIR_DOMAIN_RUNNING)
    const [state] = await dom.streamDiskInfo()
    assert.ok(state !== undefined && state.offset > 0 && state.offset < state.size, JSON.stringify(state))
    assert.deepEqual([state.disk, state.bandwidth, state.status], ['vda', bandwidth, 'running'])
    await assert.rejects(dom.stream('vda'), virError('VIR_ERR_OPERATION_INVALID', /already in active block job/))
    const stream = await dom.attachStream('vda')
    await stream.setBandwidth(0)
    await stream.finished
    assert.equal(await backingOf(path), undefined)
    assert.doesNotMatch(await dom.getXMLDesc(c.VIR_DOMAIN_XML_INACTIVE), /<backingStore type/)
    await assertRight(guest)
    const events = recordEvents(root.conn)
    await powerOff(dom, guest)
    assert.ok(lifecycleOf(events).includes(`${c.VIR_DOMAIN_EVENT_STOPPED}/${c.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN}`))
    assert.deepEqual((await dom.getState()).reason, c.VIR_DOMAIN_SHUTOFF_SHUTDOWN)
  })

test('a job of QEMU that has copied all when nobody is there is finished by the next process', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 16 * MiB)
  const path = await overlay(root.folder, base.path)
  await root.conn.domainDefineXML(plainXml({ name: 'ended', devices: diskXml('vda', path) }))
  await root.conn.close()
  const first = driverProcess(t, root.uri, { name: 'ended', do: 'create-paused', bandwidth: 8 * MiB, engine: 'job' })
  assert.equal(await first.said, 'ready')
  first.child.kill('SIGSTOP')
  await until('all is copied', () => bytesOnDisk(path) >= base.size)
  await first.kill()
  assert.equal(await backingOf(path), base.path)

  await reopen(root)
  const dom = await root.conn.domainLookupByName('ended')
  assert.equal(await dom.isActive(), true)
  await until('the stream has ended', async () => (await dom.streamDiskInfo()).length === 0)
  assert.equal(await backingOf(path), undefined)
  await rm(base.path)
  assert.match(await dom.getXMLDesc(0), /<backingStore\/>/)
  const nodes = await dom.qemuMonitorCommand('{"execute":"query-named-block-nodes"}')
  assert.ok(!nodes.includes(base.path), nodes)
  await dom.destroy()
  await dom.create(c.VIR_DOMAIN_START_PAUSED)
  await dom.destroy()
  await checkImage(path)
  assert.equal((await checkPattern(path, 'qcow2', base.seed)).bad, 0)
})

test('a QEMU that is killed the moment its image lets go of the base has lost nothing', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 16 * MiB)
  const chain = `<backingStore type='file'><format type='raw'/><source file='${base.path}'/><backingStore/></backingStore>`
  for (let round = 0; round < 4; round++) {
    const path = await overlay(root.folder, base.path, { name: `round-${round}.qcow2` })
    const dom = await startPlain(root, { name: `round-${round}`, devices: diskXml('vda', path, { extra: chain }) })
    const pid = qemuPid(root, dom)
    await dom.streamDisk('vda', 0, c.VIR_STREAM_DISK_START, { engine: ENGINES[round % 2] ?? 'auto' })
    await withoutBackingFile(path)
    process.kill(pid, 'SIGKILL')
    await until('the domain is shut off', async () => !(await dom.isActive()))
    assert.doesNotMatch(await dom.getXMLDesc(c.VIR_DOMAIN_XML_INACTIVE), /<backingStore type/)
    await checkImage(path)
    const { bad, first } = await checkPattern(path, 'qcow2', base.seed)
    assert.deepEqual({ round, bad, first }, { round, bad: 0, first: -1 })
  }
})

/** Resolves in the moment when the header of a qcow2 image names no backing file any more (bytes 8 to 15: where its name is). */
async function withoutBackingFile(path: string): Promise<void> {
  const fd = openSync(path, 'r')
  const offset = Buffer.alloc(8)
  try {
    do {
      await setImmediate()
      readSync(fd, offset, 0, 8, 8)
    } while (offset.readBigUInt64BE() !== 0n)
  } finally {
    closeSync(fd)
  }
}

const isThrough = ({ status }: { status: string }): boolean => ['pending', 'concluded'].includes(status)

test('a stream that gets to its last step while its QEMU is being taken over is taken to its end', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 8 * MiB)
  const path = await overlay(root.folder, base.path)
  const dom = await startPlain(root, { name: 'late', devices: diskXml('vda', path) })
  await dom.stream('vda', { bandwidth: 8 * MiB })
  const ask = Reflect.get(Monitor.prototype, 'queryNodeNames')
  t.mock.method(Monitor.prototype, 'queryNodeNames', async function (this: Monitor) {
    // it is at its last step, or past it
    await until('the stream has copied all', async () => (await this.queryJobs()).every(isThrough))
    return await ask.call(this)
  })
  await reopen(root)
  const again = await root.conn.domainLookupByName('late')
  await until('the stream has ended', async () => (await again.streamDiskInfo()).length === 0)
  assert.equal(await backingOf(path), undefined)
})

test('a stream that has copied all and a QEMU that was killed, both unseen: base and content are there', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 16 * MiB)
  const path = await overlay(root.folder, base.path)
  const chain = `<backingStore type='file'><format type='raw'/><source file='${base.path}'/><backingStore/></backingStore>`
  const dom = await startPlain(root, { name: 'unseen', devices: diskXml('vda', path, { extra: chain }) })
  const pid = qemuPid(root, dom)
  await dom.stream('vda', { bandwidth: 8 * MiB })
  await root.conn.close()
  await until('all is copied', () => bytesOnDisk(path) >= base.size)
  process.kill(pid, 'SIGKILL')
  await until('QEMU is gone', () => !alive(pid))

  await reopen(root)
  const again = await root.conn.domainLookupByName('unseen')
  assert.deepEqual(await again.getState(), CRASHED)
  assert.equal(await backingOf(path), base.path)
  assert.match(await again.getXMLDesc(c.VIR_DOMAIN_XML_INACTIVE), /<backingStore type/)
  assertNothingRuns(root)
  await again.create(c.VIR_DOMAIN_START_PAUSED)
  await (
    await again.stream('vda')
  ).finished
  await rm(base.path)
  await again.destroy()
  assert.doesNotMatch(await again.getXMLDesc(c.VIR_DOMAIN_XML_INACTIVE), /<backingStore type/)
  await checkImage(path)
  assert.equal((await checkPattern(path, 'qcow2', base.seed)).bad, 0)
})

test('a QEMU that is killed while nobody watches is found crashed, its traces removed', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 16 * MiB)
  const path = await overlay(root.folder, base.path)
  const persistent = await startPlain(root, { name: 'persistent', devices: diskXml('vda', path) })
  const transient = await root.conn.domainCreateXML(plainXml({ name: 'transient', devices: '' }))
  await persistent.stream('vda', { bandwidth: MiB })
  const pids = [qemuPid(root, persistent), qemuPid(root, transient)]
  await root.conn.close()
  for (const pid of pids) process.kill(pid, 'SIGKILL')
  await until('both are gone', () => !pids.some(alive))

  await reopen(root)
  const domains = await root.conn.listAllDomains()
  assert.deepEqual(
    domains.map((dom) => dom.name),
    ['persistent'],
  )
  const dom = await root.conn.domainLookupByName('persistent')
  assert.deepEqual(await dom.getState(), CRASHED)
  assertNothingRuns(root)
  assert.match(await backingOf(path).then(String), /base-7\.raw/)
  await dom.create(c.VIR_DOMAIN_START_PAUSED)
  await (
    await dom.stream('vda')
  ).finished
})

test('a guest that powers off while nobody watches is found shut down', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const { dom, guest } = await startGuest(t, root, { name: 'quiet', devices: '' })
  const pid = qemuPid(root, dom)
  await root.conn.close()
  await guest.command('poweroff').catch(() => undefined)
  await until('QEMU is gone', () => !alive(pid))
  await reopen(root)
  const again = await root.conn.domainLookupByName('quiet')
  assert.deepEqual(await again.getState(), { state: c.VIR_DOMAIN_SHUTOFF, reason: c.VIR_DOMAIN_SHUTOFF_SHUTDOWN })
  assertNothingRuns(root)
})

test('a process that is killed while it starts a domain leaves nothing that runs', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  // comes up slowly, but only as a guest
  const [emulator, go] = [join(root.folder, 'slow-qemu'), join(root.folder, 'go')]
  const qemu = findProgram('qemu-system-x86_64') ?? ''
  const wait = `while [ ! -e ${go} ]; do sleep 0.05; done`
  await writeFile(emulator, `#!/bin/sh\ncase "$*" in *-pidfile*) ${wait};; esac\nexec ${qemu} "$@"\n`)
  await chmod(emulator, 0o755)
  const xml = plainXml({ name: 'early', devices: `<emulator>${emulator}</emulator>` })
  await root.conn.domainDefineXML(xml)
  await root.conn.close()
  const first = driverProcess(t, root.uri, { name: 'early', do: 'create-paused' })
  const status = join(root.folder, 'root/run/qemu/1/status.json')
  await until('QEMU is being started', () => processesOf(root.folder).some((pid) => isStarting(pid)))
  assert.match(readFileSync(status, 'utf8'), /"phase":"starting"/)
  await first.kill()
  await writeFile(go, '')

  await reopen(root)
  const dom = await root.conn.domainLookupByName('early')
  assert.equal(await dom.isActive(), false)
  await until('nothing of it runs', () => processesOf(root.folder).length === 0)
  assertNothingRuns(root)
  await dom.create(c.VIR_DOMAIN_START_PAUSED)
  assert.equal(await dom.isActive(), true)
})

function isStarting(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes('-pidfile')
  } catch {
    return false
  }
}

test('a root that is in use: the second process is told at once which one has it', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const held = new RegExp(`root '.*' is in use by process '${process.pid}'`)
  await assert.rejects(c.Connect.open(root.uri), virError('VIR_ERR_OPERATION_INVALID', held))
  const second = driverProcess(t, root.uri, { name: '', do: 'open' })
  assert.match(await second.said, held)

  await root.conn.close()
  const third = driverProcess(t, root.uri, { name: '', do: 'open' })
  assert.equal(await third.said, 'ready')
  const byThird = new RegExp(`is in use by process '${third.pid}'`)
  await assert.rejects(c.Connect.open(root.uri), virError('VIR_ERR_OPERATION_INVALID', byThird))
  await third.kill()
  await reopen(root)
})

test('domains run on when the connection is closed, and keep their ids', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const one = await startPlain(root, { name: 'one', devices: '' })
  const two = await startPlain(root, { name: 'two', devices: '' })
  const before = await one.getXMLDesc(0)
  await one.resume()
  await reopen(root)
  const found = await root.conn.domainLookupByName('one')
  assert.deepEqual([found.id, found.uuid], [one.id, one.uuid])
  assert.equal(await found.getXMLDesc(0), before)
  assert.equal((await found.getState()).state, c.VIR_DOMAIN_RUNNING)
  assert.equal((await (await root.conn.domainLookupByID(two.id)).getState()).state, c.VIR_DOMAIN_PAUSED)
  const three = await startPlain(root, { name: 'three', devices: '' })
  assert.ok(three.id > two.id)
  await found.destroy()
  assert.deepEqual((await found.getState()).reason, c.VIR_DOMAIN_SHUTOFF_DESTROYED)
})
