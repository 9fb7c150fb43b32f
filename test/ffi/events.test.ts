/** Events that a libvirtd tells of a guest, beside those of its life and its block jobs. */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync, readlinkSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { after, test } from 'node:test'
import * as c from '../../src/index.js'
import { Connect } from '../../src/index.js'
import type { ConnectEvent, EventOfKind } from '../../src/index.js'
import { errnoOf } from '../../src/error.js'
import { native } from '../../src/native.js'
import { agentOf, guestXml, recordEvents, testRoot, until } from '../support/domain.js'
import { emptyImage } from '../support/images.js'
import { startNbdkit, trouble } from '../support/nbd-server.js'
import { requires } from '../support/requires.js'
import { daemonFor } from './support.js'

// a connection keeps no process alive, and this test waits for events
const alive = setInterval(() => undefined, 60_000)
after(() => clearInterval(alive))

const AGENT = `<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>`
/** in the guest: the device of that channel */
const PORT = `/dev/$(basename $(dirname $(grep -l org.qemu.guest_agent.0 /sys/class/virtio-ports/*/name)))`

test('events of the agent, of I/O errors and of migrations arrive as libvirtd tells them', async (t) => {
  if (!requires(t, 'program:nbdkit')) return
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const { folder } = daemon
  const conn = await Connect.open(daemon.uri)
  t.after(() => conn.close())
  const events = recordEvents(conn)
  const next = async <Kind extends ConnectEvent['kind']>(
    kind: Kind,
    wanted: (event: EventOfKind<Kind>) => boolean = () => true,
  ): Promise<EventOfKind<Kind>> => {
    const isIt = (event: ConnectEvent): event is EventOfKind<Kind> =>
      event.kind === kind && wanted(event as EventOfKind<Kind>)
    await until(`an event '${kind}' comes`, () => events.some(isIt))
    const [found] = events.filter(isIt)
    assert.ok(found)
    return found
  }

  const broken = trouble(join(folder, 'broken'), 'pread')
  const socket = join(folder, 'nbd')
  await startNbdkit(t, { plugin: ['memory', '16M'], socket, writable: true, ...broken })
  // of a disk whose source has no name libvirt 9.0 does not tell: it cannot put that into a message
  const disk = `<disk type='network' device='disk'><driver name='qemu' type='raw'/>
    <source protocol='nbd' name='disk'><host transport='unix' socket='${socket}'/></source><target dev='vda' bus='virtio'/></disk>`
  const dom = await conn.domainDefineXML(await guestXml(folder, { devices: `${disk}${AGENT}` }))
  await dom.create()
  const guest = await agentOf(t, folder)

  await guest.command(`sh exec 9<>${PORT}; sleep 1`)
  const { VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED: CONNECTED } = c
  const agent = await next('agent', ({ state }) => state === CONNECTED)
  assert.equal(agent.domain.uuid, dom.uuid)
  assert.equal(agent.reason, c.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_REASON_CHANNEL)

  await broken.on()
  await guest.command('sh dd if=/dev/vda of=/dev/null bs=4k count=1 skip=1000')
  const failed = await next('io-error')
  assert.deepEqual([failed.alias, failed.action], ['virtio-disk0', c.VIR_DOMAIN_EVENT_IO_ERROR_REPORT])
  await broken.off()

  const here = await testRoot(t)
  const there = (await dom.getXMLDesc(c.VIR_DOMAIN_XML_MIGRATABLE)).replaceAll('guest.serial', 'moved.serial')
  await dom.migrate(here.conn, { destinationXML: there })
  assert.equal((await next('migration-iteration')).iteration, 1)
  const ended = await next('job-completed')
  assert.equal(ended.operation, c.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT)
  assert.equal(ended.domain.uuid, dom.uuid)
})

test('devices that come and go are told, and a QEMU that says what is no QMP is a control error', async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const conn = await Connect.open(daemon.uri)
  t.after(() => conn.close())
  const events = recordEvents(conn)
  const name = 'garbled'
  // without a guest a disk goes at once on SCSI only
  const devices = "<devices><controller type='scsi' model='virtio-scsi'/></devices>"
  const dom = await conn.domainDefineXML(
    `<domain type='qemu'><name>${name}</name><memory unit='MiB'>16</memory><os><type arch='x86_64'>hvm</type></os>${devices}</domain>`,
  )
  await dom.create(c.VIR_DOMAIN_START_PAUSED)
  const disk = `<disk type='file' device='disk'><driver name='qemu' type='raw'/>
    <source file='${await emptyImage(daemon.folder, 'raw', 1024 * 1024)}'/><target dev='sda' bus='scsi'/></disk>`
  await dom.attachDevice(disk)
  await dom.detachDevice(disk)
  await until('the disk has gone', () => events.some(({ kind }) => kind === 'device-removed'))
  assert.deepEqual(
    events.flatMap((event) => ('alias' in event ? `${event.kind} ${event.alias}` : [])),
    ['device-added scsi0-0-0-0', 'device-removed scsi0-0-0-0'],
  )

  const pid = Number(readFileSync(join(daemon.runDir, 'qemu', `${name}.pid`), 'utf8'))
  assert.ok(sayOnSockets(pid, 'this is no QMP\r\n') > 0)
  await until('it is told', () =>
    events.some((event) => event.kind === 'control-error' && event.domain.uuid === dom.uuid),
  )
})

/** Writes into the connections of another process, as if it did itself; answers into how many. */
function sayOnSockets(pid: number, text: string): number {
  let said = 0
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    if (!readlinkSync(`/proc/${pid}/fd/${fd}`).startsWith('socket:')) continue
    const copy = native.copyFd(pid, Number(fd))
    try {
      writeSync(copy, text)
      said += 1
    } catch (error) {
      // one that listens
      assert.equal(errnoOf(error), 'ENOTCONN')
    } finally {
      native.close(copy)
    }
  }
  return said
}
