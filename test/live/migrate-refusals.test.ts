/** Migrations that do not come about: whatever fails before the switch, the guest stays, and nothing is left elsewhere. */
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { existsSync, readdirSync } from 'node:fs'
import { mkdir, rmdir } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  lockDriver,
  VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY,
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_PAUSED_USER,
  VIR_DOMAIN_RUNNING,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_SHUTOFF_CRASHED,
  VIR_DOMAIN_SHUTOFF_MIGRATED,
  VIR_DOMAIN_START_PAUSED,
  VIR_DOMAIN_XML_INACTIVE,
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_COMPRESSED,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_NON_SHARED_DISK,
  VIR_MIGRATE_OFFLINE,
  VIR_MIGRATE_PARALLEL,
  VIR_MIGRATE_PERSIST_DEST,
  VIR_MIGRATE_STREAM_DISKS,
  VIR_MIGRATE_TLS,
  VIR_STREAM_DISK_STOP,
  type Domain,
} from '../../src/index.js'
import { sessionOf } from '../../src/api/session.js'
import {
  diskXml,
  processesOf,
  qemuPid,
  startPlain,
  testRoot,
  until,
  virError,
  type TestRoot,
} from '../support/domain.js'
import { emptyImage, overlay, patternImage, temporaryFolder, type Cleanup } from '../support/images.js'
import { requires } from '../support/requires.js'
import { stepsOf } from '../support/apart.js'

const STREAM = VIR_MIGRATE_LIVE | VIR_MIGRATE_STREAM_DISKS

test('what cannot be run at the destination is refused there, and the guest stays', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { here, there, dom, xml } = await twoRoots(t)
  await dom.resume()
  const refused = async (changed: string, code: Parameters<typeof virError>[0], words: RegExp): Promise<void> => {
    await assert.rejects(dom.migrate(there.conn, { destinationXML: changed }, STREAM), virError(code, words))
    await assertStays(here, there, dom)
  }
  await refused(
    xml.replace("<vcpu placement='static'>1<", "<vcpu placement='static'>2<"),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /'vcpu/,
  )
  await refused(
    xml.replace(/<memory unit='KiB'>\d+</, "<memory unit='KiB'>131072<"),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /'memory'/,
  )
  await refused(xml.replace("type='qcow2'", "type='vmdk'"), 'VIR_ERR_CONFIG_UNSUPPORTED', /'vda' has format 'vmdk'/)
  const raw = xml.replace("type='qcow2'", "type='raw'")
  const writingBack = dom.migrate(there.conn, { destinationXML: raw, writeBack: true }, STREAM)
  await assert.rejects(writingBack, virError('VIR_ERR_CONFIG_UNSUPPORTED', /'vda' is raw at the destination/))
  await assertStays(here, there, dom)
  await refused(raw.replaceAll(there.folder, here.folder), 'VIR_ERR_OPERATION_FAILED', /exists already/)
  await refused(xml.replaceAll(there.folder, here.folder), 'VIR_ERR_OPERATION_FAILED', /exists already/)
  await refused('<domain', 'VIR_ERR_XML_DETAIL', /./)
  await refused(xml.replace('<name>guest<', '<name>other<'), 'VIR_ERR_CONFIG_UNSUPPORTED', /'name' 'other'/)
  const keep = async (persistXML: string, code: Parameters<typeof virError>[0], words: RegExp): Promise<void> => {
    const kept = dom.migrate(there.conn, { destinationXML: xml, persistXML }, STREAM | VIR_MIGRATE_PERSIST_DEST)
    await assert.rejects(kept, virError(code, words))
    await assertStays(here, there, dom)
  }
  await keep('<domain', 'VIR_ERR_XML_DETAIL', /./)
  await keep(xml.replace(/<uuid>[^<]*/, `<uuid>${randomUUID()}`), 'VIR_ERR_CONFIG_UNSUPPORTED', /to keep has uuid/)
  const known = (words: RegExp, code: Parameters<typeof virError>[0] = 'VIR_ERR_OPERATION_INVALID'): Promise<void> =>
    assert.rejects(dom.migrate(there.conn, { destinationXML: xml }, STREAM), virError(code, words))
  const other = await startPlain(there, { devices: '' })
  await known(/domain 'guest' already exists with uuid/, 'VIR_ERR_OPERATION_FAILED')
  await other.destroy()
  await other.undefine()
  const twin = await there.conn.domainCreateXML(xml.replace(/<disk[^]*<\/disk>/, ''), VIR_DOMAIN_START_PAUSED)
  await known(/'guest' is already active/)
  await twin.destroy()
  const foreign = { uri: 'virstream+unix:///nowhere/at/all' }
  await assert.rejects(
    dom.migrate(there.conn, { destinationXML: xml, ...foreign }, STREAM),
    virError('VIR_ERR_OPERATION_FAILED', /cannot be reached/),
  )
  await assertStays(here, there, dom)
})

test('a guest that cannot be let run at the destination goes on here, with the reason alone', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { here, there, dom, xml } = await twoRoots(t)
  await dom.resume()
  // the definition to keep cannot be written down, which is found out when all of its memory is there
  const inTheWay = join(there.folder, 'root/etc/qemu/guest.xml')
  await mkdir(inTheWay, { recursive: true })
  const kept = dom.migrate(there.conn, { destinationXML: xml }, STREAM | VIR_MIGRATE_PERSIST_DEST)
  await assert.rejects(kept, virError('VIR_ERR_SYSTEM_ERROR', /guest\.xml[^;]*$/))
  assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)
  await assertStays(here, there, dom)
  await rmdir(inTheWay)
  // nor can that it runs there
  stepsOf(join(there.folder, 'root'))('< write record.json streaming', () => {
    throw new Error('no space left on device')
  })
  const full = dom.migrate(there.conn, { destinationXML: xml }, STREAM | VIR_MIGRATE_PERSIST_DEST)
  await assert.rejects(full, virError('VIR_ERR_SYSTEM_ERROR', /record\.json[^;]*$/))
  assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)
  await assertStays(here, there, dom)

  const moved = await dom.migrate(there.conn, { destinationXML: xml }, STREAM | VIR_MIGRATE_PERSIST_DEST)
  const places = await moved.getXMLDesc(VIR_DOMAIN_XML_INACTIVE)
  assert.match(places, new RegExp(`<source file='${join(there.folder, 'disk.qcow2')}'/>`))
})

test('flags and parameters that make no sense are refused by name', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { here, there, dom, xml } = await twoRoots(t)
  const refused = (params: object, flags: number, code: Parameters<typeof virError>[0], words: RegExp): Promise<void> =>
    assert.rejects(dom.migrate(there.conn, params, flags), virError(code, words))
  await refused({}, STREAM | VIR_MIGRATE_NON_SHARED_DISK, 'VIR_ERR_INVALID_ARG', /mutually exclusive/)
  await refused({}, VIR_MIGRATE_OFFLINE | VIR_MIGRATE_LIVE, 'VIR_ERR_INVALID_ARG', /mutually exclusive/)
  await refused({}, STREAM | VIR_MIGRATE_PARALLEL, 'VIR_ERR_ARGUMENT_UNSUPPORTED', /VIR_MIGRATE_PARALLEL/)
  await refused({ writeBack: true, diskStreamEngine: 'job' }, STREAM, 'VIR_ERR_INVALID_ARG', /'writeBack' needs/)
  await refused({ writeBack: true }, VIR_MIGRATE_LIVE, 'VIR_ERR_INVALID_ARG', /'writeBack' needs/)
  await refused({ bandwith: 1 }, STREAM, 'VIR_ERR_INVALID_ARG', /no migration parameter 'bandwith'/)
  await refused({ migrateDisks: ['vdz'] }, STREAM, 'VIR_ERR_INVALID_ARG', /'vdz'/)
  await refused({ listenAddress: '127.0.0.1' }, STREAM, 'VIR_ERR_ARGUMENT_UNSUPPORTED', /'listenAddress'/)
  const tls = dom.migrate(there.conn, { destinationXML: xml }, STREAM | VIR_MIGRATE_TLS)
  await assert.rejects(tls, virError('VIR_ERR_OPERATION_UNSUPPORTED', /is not encrypted, as VIR_MIGRATE_TLS/))
  await refused({ compression: 'lzma' }, STREAM, 'VIR_ERR_ARGUMENT_UNSUPPORTED', /'lzma'/)
  const cache = { compressionXbzrleCache: 5000 }
  await refused(cache, STREAM, 'VIR_ERR_INVALID_ARG', /needs the flag VIR_MIGRATE_COMPRESSED/)
  await refused(cache, STREAM | VIR_MIGRATE_COMPRESSED, 'VIR_ERR_INVALID_ARG', /a power of two.*not '5000'/)
  await assert.rejects(
    dom.migrate(here.conn, {}, STREAM),
    virError('VIR_ERR_INVALID_ARG', /the connection that it is on/),
  )
  await assert.rejects(dom.abortJob(), virError('VIR_ERR_OPERATION_INVALID', /no job is active/))
  await assertStays(here, there, dom)
})

test('a migration that is called off, or whose destination dies, leaves the guest where it is; one whose source dies leaves nothing elsewhere', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { here, there, dom, xml } = await twoRoots(t)
  await dom.resume()
  const slow = { destinationXML: xml, bandwidth: 1 }
  const going = dom.migrate(there.conn, slow, STREAM)
  going.catch(() => undefined)
  await until('memory goes over', async () => (await dom.getJobStats()).memProcessed > 0)
  await dom.abortJob()
  await assert.rejects(going, virError('VIR_ERR_OPERATION_ABORTED', /was canceled/))
  await assertStays(here, there, dom)
  const dying = dom.migrate(there.conn, slow, STREAM)
  dying.catch(() => undefined)
  await until('memory goes over', async () => (await dom.getJobStats()).memProcessed > 0)
  for (const pid of processesOf(there.folder)) process.kill(pid, 'SIGKILL')
  await assert.rejects(dying, virError('VIR_ERR_OPERATION_FAILED', /could not be migrated/))
  await assertStays(here, there, dom)
  const lost = dom.migrate(there.conn, slow, STREAM)
  lost.catch(() => undefined)
  await until('memory goes over', async () => (await dom.getJobStats()).memProcessed > 0)
  process.kill(qemuPid(here, dom), 'SIGKILL')
  await assert.rejects(lost, virError('VIR_ERR_OPERATION_FAILED', /stopped while it was migrated/))
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_SHUTOFF, reason: VIR_DOMAIN_SHUTOFF_CRASHED })
  await assertNothingThere(here, there)
})

test('a guest that is suspended on its way moves and runs there; one that was called off is saved and restored', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { there, dom, xml } = await twoRoots(t)
  await dom.resume()
  const slow = { destinationXML: xml, bandwidth: 1 }
  const calledOff = dom.migrate(there.conn, slow, STREAM)
  calledOff.catch(() => undefined)
  await until('memory goes over', async () => (await dom.getJobStats()).memProcessed > 0)
  await dom.abortJob()
  await assert.rejects(calledOff, virError('VIR_ERR_OPERATION_ABORTED', /was canceled/))
  await dom.managedSave()
  await dom.create()
  assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)

  const going = dom.migrate(there.conn, slow, STREAM)
  await until('memory goes over', async () => (await dom.getJobStats()).memProcessed > 0)
  await dom.suspend()
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_PAUSED, reason: VIR_DOMAIN_PAUSED_USER })
  await dom.migrateSetMaxSpeed(0)
  const moved = await going
  assert.equal((await moved.getState()).state, VIR_DOMAIN_RUNNING)
  assert.equal(await dom.migrateGetMaxSpeed(), 8_796_093_022_207)
  await until('the source is free', async () => (await dom.getState()).state === VIR_DOMAIN_SHUTOFF)
})

test('speed and downtime of migrations can be set and asked for', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { dom } = await twoRoots(t)
  const postcopy = VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY
  assert.deepEqual([await dom.migrateGetMaxDowntime(), await dom.migrateGetMaxSpeed(postcopy)], [300, 0])
  await dom.migrateSetMaxDowntime(77)
  await dom.migrateSetMaxSpeed(12)
  await dom.migrateSetMaxSpeed(34, postcopy)
  assert.equal(await dom.migrateGetMaxDowntime(), 77)
  assert.deepEqual([await dom.migrateGetMaxSpeed(), await dom.migrateGetMaxSpeed(postcopy)], [12, 34])
  await assert.rejects(dom.migrateSetMaxDowntime(3e6), virError('VIR_ERR_OVERFLOW', /at most 2000000 ms/))
  await assert.rejects(dom.migrateSetMaxSpeed(1e13), virError('VIR_ERR_OVERFLOW', /at most 8796093022207 MiB/))
  await assert.rejects(dom.migrateStartPostCopy(), virError('VIR_ERR_OPERATION_INVALID', /while outgoing migration/))
  assert.equal(await dom.migrateGetCompressionCache(), 64 << 20)
  await dom.migrateSetCompressionCache(2 << 20)
  assert.equal(await dom.migrateGetCompressionCache(), 2 << 20)
  for (const size of [0, 2048, 3 << 20])
    await assert.rejects(
      dom.migrateSetCompressionCache(size),
      virError('VIR_ERR_INVALID_ARG', new RegExp(`power of two of at least 4096, not '${size}'`)),
    )
  await dom.destroy()
  await dom.migrateSetMaxSpeed(56)
  assert.equal(await dom.migrateGetMaxSpeed(), 56)
  await assert.rejects(dom.migrateGetMaxDowntime(), virError('VIR_ERR_OPERATION_INVALID', /not running/))
})

test('images that both sides see go over with their locks', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const folder = await temporaryFolder(t)
  const options = { lockManager: await lockDriver('ofd', { directory: join(folder, 'locks') }) }
  const [here, there] = [await testRoot(t, options), await testRoot(t, options)]
  const path = await emptyImage(folder, 'qcow2', 16 << 20, 'disk.qcow2')
  const dom = await startPlain(here, { devices: diskXml('vda', path) })
  const moved = await dom.migrate(there.conn, {}, VIR_MIGRATE_LIVE)
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_SHUTOFF, reason: VIR_DOMAIN_SHUTOFF_MIGRATED })
  assert.equal(await moved.isActive(), true)
  await assert.rejects(dom.create(), virError('VIR_ERR_RESOURCE_BUSY', /disk\.qcow2/))
  const back = await moved.migrate(here.conn, {}, VIR_MIGRATE_LIVE)
  assert.equal(await back.isActive(), true)
  assert.deepEqual(await there.conn.listAllDomains(), [])
})

async function twoRoots(t: Cleanup): Promise<{ here: TestRoot; there: TestRoot; dom: Domain; xml: string }> {
  const [here, there] = [await testRoot(t), await testRoot(t)]
  const path = await emptyImage(here.folder, 'qcow2', 16 << 20, 'disk.qcow2')
  const dom = await startPlain(here, { devices: diskXml('vda', path) })
  const xml = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
  return { here, there, dom, xml }
}

test('a domain that is streamed, or gets another disk, since its migration was begun does not go', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const [here, there] = [await testRoot(t), await testRoot(t)]
  const base = await patternImage(here.folder, 16 << 20)
  const path = await overlay(here.folder, base.path, { name: 'disk.qcow2' })
  const dom = await startPlain(here, { devices: diskXml('vda', path) })
  const xml = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
  const [source, destination] = [sessionOf(here.conn), sessionOf(there.conn)]
  const ref = { name: dom.name, uuid: dom.uuid, id: dom.id }
  const refused = async (change: () => Promise<unknown>, refusal: ReturnType<typeof virError>): Promise<void> => {
    const begun = await source.call('domainMigrateBegin', () => [ref, {}, STREAM])
    const { cookie, uri } = await destination.call('domainMigratePrepare', () => [{}, STREAM, begun.cookie, xml])
    await change()
    await assert.rejects(
      source.call('domainMigratePerform', () => [ref, {}, STREAM, cookie, uri, undefined]),
      refusal,
    )
    await destination.call('domainMigrateFinish', () => [{}, STREAM, cookie, true])
    await source.call('domainMigrateConfirm', () => [ref, {}, STREAM, cookie, true])
    await assertStays(here, there, dom)
  }
  await refused(
    () => dom.stream('vda', { bandwidth: 1 << 20 }),
    virError('VIR_ERR_OPERATION_INVALID', /^domain has active block job$/),
  )
  const [stream] = await dom.streamDiskInfo()
  assert.equal(stream?.status, 'running')
  await dom.streamDisk('vda', 0, VIR_STREAM_DISK_STOP)
  const image = await emptyImage(here.folder, 'qcow2', 1 << 20)
  await refused(
    () => dom.attachDevice(diskXml('vdb', image)),
    virError('VIR_ERR_OPERATION_FAILED', /^domain 'guest' has been stopped or changed since its migration began$/),
  )
  await dom.destroy()
})

test('a migration that was only begun is called off by abortJob, also in the moment in which it goes on', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { here, there, dom, xml } = await twoRoots(t)
  const [source, destination] = [sessionOf(here.conn), sessionOf(there.conn)]
  const ref = { name: dom.name, uuid: dom.uuid, id: dom.id }
  const nothing = virError('VIR_ERR_OPERATION_INVALID', /^no job is active on domain 'guest'$/)
  await source.call('domainMigrateBegin', () => [ref, {}, STREAM])
  await dom.abortJob()
  await assert.rejects(dom.abortJob(), nothing)
  const begun = await source.call('domainMigrateBegin', () => [ref, {}, STREAM])
  const { cookie, uri } = await destination.call('domainMigratePrepare', () => [{}, STREAM, begun.cookie, xml])
  const performed = assert.rejects(
    source.call('domainMigratePerform', () => [ref, {}, STREAM, cookie, uri, undefined]),
    virError('VIR_ERR_OPERATION_ABORTED', /^migration of domain 'guest' was canceled$/),
  )
  await dom.abortJob()
  await performed
  await destination.call('domainMigrateFinish', () => [{}, STREAM, cookie, true])
  await source.call('domainMigrateConfirm', () => [ref, {}, STREAM, cookie, true])
  await assert.rejects(dom.abortJob(), nothing)
  await assertStays(here, there, dom)
  await dom.destroy()
})

/** It runs here as it did, and there is no trace of it. */
async function assertStays(here: TestRoot, there: TestRoot, dom: Domain): Promise<void> {
  assert.equal(await dom.isActive(), true)
  await assertNothingThere(here, there)
}

async function assertNothingThere(here: TestRoot, there: TestRoot): Promise<void> {
  await until('nothing is left there', () => processesOf(there.folder).length === 0)
  assert.deepEqual(await there.conn.listAllDomains(), [])
  assert.equal(existsSync(join(there.folder, 'disk.qcow2')), false)
  for (const { folder } of [here, there])
    assert.deepEqual(
      readdirSync(join(folder, 'root/run/migration')).filter((name) => name !== 'tunnel.sock'),
      [],
    )
}
