/** kill -9 of our process while it gives a disk another base, and what the next one makes of it. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { Connect, VIR_DOMAIN_XML_INACTIVE, type Domain } from '../../src/index.js'
import { Monitor } from '../../src/qemu/monitor/monitor.js'
import { monitorSocket } from '../../src/qemu/monitor/process.js'
import { diskXml, qemuPid, reopen, runDirOf, startPlain, testRoot, type TestRoot, until } from '../support/domain.js'
import { driverProcess } from '../support/driver-process.js'
import { backingOf, overlay, patternImage } from '../support/images.js'
import { startQemuNbd } from '../support/nbd-server.js'
import { checkPattern } from '../support/pattern.js'
import { requires } from '../support/requires.js'
import { nbdUri, qemuNbd } from '../support/servers.js'

const MiB = 1024 * 1024
const programs = ['program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-nbd'] as const

/** An image behind qemu-nbd on a unix socket and on another one, and an overlay of the first. */
async function images(t: TestContext) {
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 16 * MiB)
  const [here, there] = [{ path: join(root.folder, 'here.nbd') }, { path: join(root.folder, 'there.nbd') }]
  const server = await qemuNbd(t, base.path, here)
  await qemuNbd(t, base.path, there)
  return { root, base, server, here, there, path: await overlay(root.folder, nbdUri(here)) }
}

/** Another process gives vda that base and is killed at that step; the root is opened again, after `meanwhile`. */
async function killedAt(
  t: TestContext,
  root: TestRoot,
  { meanwhile, ...task }: { name: string; base: string; at: string; meanwhile?: () => void },
): Promise<Domain> {
  await root.conn.close()
  const { child } = driverProcess(t, root.uri, { do: 'new-base', ...task })
  const [, signal] = (await once(child, 'exit')) as [number | null, string | null]
  assert.equal(signal, 'SIGKILL', task.at)
  meanwhile?.()
  await reopen(root)
  return root.conn.domainLookupByName(task.name)
}

/** Which of the places the running domain reads from, and which its definition names. */
async function namesOf(dom: Domain): Promise<string[][]> {
  const all = await Promise.all([dom.getXMLDesc(), dom.getXMLDesc(VIR_DOMAIN_XML_INACTIVE)])
  return all.map((xml) => ['here.nbd', 'there.nbd'].filter((name) => xml.includes(`/${name}`)))
}

/** The images that QEMU has open, beside the disk's own. */
async function servers(dom: Domain): Promise<string[]> {
  const { return: nodes } = JSON.parse(
    await dom.qemuMonitorCommand('{"execute":"query-named-block-nodes","arguments":{"flat":true}}'),
  ) as { return: { drv: string; file: string }[] }
  return nodes.filter(({ drv }) => drv === 'nbd').map(({ file }) => file)
}

/** A read of the guest's device, for which nobody waits. */
const readAt = (offset: number): string =>
  `qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "aio_read -q ${offset} 65536"`

const offsetOf = async (dom: Domain): Promise<number> => (await dom.streamDiskInfo())[0]?.offset ?? 0

test('a process that is killed while it gives a disk another base leaves the disk with the one or the other', async (t) => {
  if (!requires(t, ...programs)) return
  const { root, base, server, here, there, path } = await images(t)
  let dom = await startPlain(root, { name: 'killed', devices: diskXml('vda', path) })
  const stream = await dom.stream('vda', { bandwidth: MiB / 2, engine: 'job' })
  await until('the stream moves', async () => (await offsetOf(dom)) > 0)
  await server.kill()
  await until('the stream waits', async () => (await stream.info())?.status === 'waiting')

  // QEMU has not heard of the new base yet: the stream waits for the former one
  for (const at of ['> listen here.nbd 1', '> write status.json running 2', '> write killed.xml 1']) {
    dom = await killedAt(t, root, { name: 'killed', base: nbdUri(there), at })
    await until(`it is known after '${at}'`, async () => (await dom.streamDiskInfo())[0]?.status === 'waiting')
    // the definition leaves the chain to the header, as it did
    assert.deepEqual(await namesOf(dom), [['here.nbd'], []], at)
    assert.ok(!existsSync(here.path), at)
    assert.deepEqual(
      (await servers(dom)).map((file) => file.includes(here.path)),
      [true],
      at,
    )
  }
  await server.start()
  const reached = await offsetOf(dom)
  await until('the stream goes on with it', async () => (await offsetOf(dom)) > reached)
  await server.kill()
  await until('the stream waits again', async () => (await dom.streamDiskInfo())[0]?.status === 'waiting')

  // QEMU reads from both: it lets go of the former one
  dom = await killedAt(t, root, { name: 'killed', base: nbdUri(there), at: '> x-blockdev-change 1' })
  await until('QEMU reads from the new base only', async () => {
    const files = await servers(dom)
    return files.length === 1 && files[0]?.includes(there.path) === true
  })
  assert.deepEqual(await namesOf(dom), [['there.nbd'], ['there.nbd']])
  assert.ok(!existsSync(here.path))
  await dom.attachStream('vda').then((again) => again.setBandwidth(0))
  await until('all is streamed', async () => (await dom.streamDiskInfo()).length === 0)
  assert.deepEqual(await servers(dom), [])
  await dom.destroy()
  assert.equal(await backingOf(path), undefined)
  assert.equal((await checkPattern(path, 'qcow2', base.seed)).bad, 0)
})

test('a QEMU that was told of the new base while requests waited for the former one goes on when the root is opened', async (t) => {
  if (!requires(t, ...programs)) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 16 * MiB)
  const [here, there] = [{ path: join(root.folder, 'here.nbd') }, { path: join(root.folder, 'there.nbd') }]
  const server = await startQemuNbd(t, { image: base.path, format: 'raw', export: 'base', socket: here.path })
  await qemuNbd(t, base.path, there)
  const path = await overlay(root.folder, nbdUri(here))
  let dom = await startPlain(root, { name: 'told', devices: diskXml('vda', path) })
  const runDir = runDirOf(root, dom)
  await root.conn.close()
  const { child } = driverProcess(t, root.uri, {
    name: 'told',
    do: 'new-base',
    base: nbdUri(there),
    at: '< x-blockdev-change 1',
  })
  await once(child, 'exit')
  // what that process would have said next, after a read of the guest that its server does not answer
  await server.kill('SIGSTOP')
  const ignore = { onEvent: () => undefined, onClose: () => undefined, onAnomaly: () => undefined }
  const monitor = await Monitor.connect(monitorSocket(runDir), 'told', ignore, 10_000)
  await monitor.humanMonitorCommand(readAt(0))
  const told = monitor.passThrough('x-blockdev-change', { parent: 'node-2-guard', node: 'node-3-format' })
  told.catch(() => undefined)
  const answer = await Promise.race([monitor.queryStatus(), delay(1_000, 'none')])
  assert.equal(answer, 'none')
  monitor.close()
  await server.kill()

  root.conn = await Connect.open(root.uri, root.options)
  dom = await root.conn.domainLookupByName('told')
  const reads = (): Promise<number> =>
    dom.blockStats('vda').then(
      ({ rdReq }) => rdReq,
      () => 0,
    )
  await until('the guest has its block', async () => (await reads()) === 1)
  const next = { execute: 'human-monitor-command', arguments: { 'command-line': readAt(MiB) } }
  await dom.qemuMonitorCommand(JSON.stringify(next))
  await until('the guest has another one', async () => (await reads()) === 2)
  await until('QEMU reads from the new base only', async () => {
    const files = await servers(dom)
    return files.length === 1 && files[0]?.includes(there.path) === true
  })
  assert.deepEqual(await namesOf(dom), [['there.nbd'], ['there.nbd']])
  assert.ok(!existsSync(here.path))
  await (
    await dom.stream('vda')
  ).finished
  await dom.destroy()
  assert.equal((await checkPattern(path, 'qcow2', base.seed)).bad, 0)
})

test('a QEMU that dies with the process, or a domain that does not run, has the new base in its definition and its header', async (t) => {
  if (!requires(t, ...programs)) return
  const { root, base, here, there, path } = await images(t)
  let dom = await startPlain(root, { name: 'rest', devices: diskXml('vda', path) })
  const qemu = qemuPid(root, dom)
  const meanwhile = (): void => void process.kill(qemu, 'SIGKILL')
  dom = await killedAt(t, root, { name: 'rest', base: nbdUri(there), at: '> write status.json running 1', meanwhile })
  assert.equal(await dom.isActive(), false)
  assert.equal(await backingOf(path), nbdUri(there))
  assert.deepEqual((await namesOf(dom))[1], ['there.nbd'])

  dom = await killedAt(t, root, { name: 'rest', base: nbdUri(here), at: '> write status.json offline 1' })
  assert.equal(await backingOf(path), nbdUri(here))
  assert.deepEqual((await namesOf(dom))[1], ['here.nbd'])
  dom = await killedAt(t, root, { name: 'rest', base: nbdUri(there), at: '> write rest.xml 1' })
  assert.equal(await backingOf(path), nbdUri(there))
  assert.deepEqual((await namesOf(dom))[1], ['there.nbd'])
  await (
    await dom.stream('vda')
  ).finished
  assert.equal((await checkPattern(path, 'qcow2', base.seed)).bad, 0)
})
