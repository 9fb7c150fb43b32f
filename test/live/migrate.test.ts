/** Migration of a guest that checks every block it reads, between two roots. */
import assert from 'node:assert/strict'
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_PAUSED_POSTCOPY,
  VIR_DOMAIN_RUNNING,
  VIR_DOMAIN_RUNNING_MIGRATED,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_SHUTOFF_MIGRATED,
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_NON_SHARED_DISK,
  VIR_MIGRATE_PERSIST_DEST,
  VIR_MIGRATE_STREAM_DISKS,
} from '../../src/index.js'
import {
  agentOf,
  diskXml,
  qemuPid,
  recordEvents,
  reopen,
  startGuest,
  testRoot,
  until,
  virError,
} from '../support/domain.js'
import { backingOf, patternImage } from '../support/images.js'
import { run, RunError } from '../../src/util/run.js'
import { moveGuest } from '../support/move.js'
import { requires } from '../support/requires.js'
import { assertRight } from '../support/streamed.js'

const STREAM = VIR_MIGRATE_LIVE | VIR_MIGRATE_STREAM_DISKS

test('a guest runs at the destination at once, and its disk follows while it writes', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const [here, there] = [await testRoot(t), await testRoot(t)]
  const [from, to] = [join(here.folder, 'disk.qcow2'), join(there.folder, 'disk.qcow2')]
  const { path: base, size, seed } = await patternImage(here.folder)
  await run('qemu-img', ['convert', '-O', 'qcow2', base, from])
  const { dom, guest } = await startGuest(t, here, { devices: diskXml('vda', from) })
  await guest.base('vda', seed, size)
  await guest.work('vda')
  const events = recordEvents(here.conn)
  const xml = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
  const moved = await dom.migrate(
    there.conn,
    { destinationXML: xml, diskStreamBandwidth: 1 << 20 },
    STREAM | VIR_MIGRATE_PERSIST_DEST,
  )
  assert.deepEqual(await moved.getState(), { state: VIR_DOMAIN_RUNNING, reason: VIR_DOMAIN_RUNNING_MIGRATED })
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_PAUSED, reason: VIR_DOMAIN_PAUSED_POSTCOPY })
  const agent = await agentOf(t, there.folder)
  await until('it streams', async () => (await moved.streamDiskInfo()).length === 1)
  const [state] = await moved.streamDiskInfo()
  assert.equal(state?.mode, 'migration')
  assert.equal(await mayWrite(from, 'qcow2'), false)
  await moved.blockJobSetSpeed('vda', 0)
  await until('the source is let go of', async () => (await dom.getState()).state === VIR_DOMAIN_SHUTOFF)
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_SHUTOFF, reason: VIR_DOMAIN_SHUTOFF_MIGRATED })
  await assertRight(agent)
  assert.equal(await backingOf(to), undefined)
  assert.equal(await mayWrite(from, 'qcow2'), true)
  await until('nothing is left of it', () => migrationsIn(here.folder).length + migrationsIn(there.folder).length === 0)
  assert.ok(events.some(({ kind }) => kind === 'job-completed'))
})

test('whoever dies while disks follow is replaced: both drivers, and the QEMU that serves', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon')) return
  const { here, there, moved, guest } = await moveGuest(t, {
    ...{ format: 'raw', size: 64 << 20, bandwidth: 2 << 20, flags: VIR_MIGRATE_PERSIST_DEST },
  })
  const from = join(here.folder, 'disk.qcow2')
  await guest.base('vda', here.seed, here.size)
  await guest.work('vda')
  await reopen(there)
  const again = await there.conn.domainLookupByName('guest')
  await until('the source is back', async () => (await again.streamDiskInfo())[0]?.status === 'running')
  await reopen(here)
  const dom = await here.conn.domainLookupByName('guest')
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_PAUSED, reason: VIR_DOMAIN_PAUSED_POSTCOPY })
  await assert.rejects(dom.resume(), virError('VIR_ERR_OPERATION_INVALID', /has been migrated/))
  await assert.rejects(dom.undefine(), virError('VIR_ERR_OPERATION_INVALID', /has been migrated/))
  await assert.rejects(dom.destroy(), virError('VIR_ERR_OPERATION_INVALID', /still reads its disks from here/))
  assert.equal(await mayWrite(from, 'raw'), false)
  process.kill(qemuPid(here, dom), 'SIGKILL')
  await until('it is gone', async () => (await dom.getState()).state === VIR_DOMAIN_SHUTOFF)
  await assert.rejects(dom.create(), virError('VIR_ERR_OPERATION_INVALID', /has been migrated/))
  await until('a daemon serves it', async () => !(await mayWrite(from, 'raw')))
  await again.blockJobSetSpeed('vda', 0)
  await until(
    'nothing is left of it',
    () => migrationsIn(here.folder).length + migrationsIn(there.folder).length === 0,
    120_000,
  )
  await assertRight(guest)
  assert.equal(moved.uuid, dom.uuid)
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_SHUTOFF, reason: VIR_DOMAIN_SHUTOFF_MIGRATED })
})

test('a guest comes back with what it wrote elsewhere, while its disk was still on its way', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { here, there, dom, moved, guest } = await moveGuest(t, {
    ...{ size: 64 << 20, bandwidth: 1 << 20, flags: VIR_MIGRATE_PERSIST_DEST },
  })
  await guest.base('vda', here.seed, here.size)
  await guest.work('vda')
  await until('a part of it is there', async () => ((await moved.streamDiskInfo())[0]?.offset ?? 0) > 2 << 20)
  await dom.abortJob()
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_RUNNING, reason: VIR_DOMAIN_RUNNING_MIGRATED })
  const agent = await agentOf(t, here.folder)
  await assertRight(agent)
  await until('nothing is left of it', () => migrationsIn(here.folder).length + migrationsIn(there.folder).length === 0)
  assert.deepEqual(await there.conn.listAllDomains(), [])
  assert.equal(existsSync(join(there.folder, 'disk.qcow2')), false)
})

test('mirrored disks are all there when the guest arrives', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const [here, there] = [await testRoot(t), await testRoot(t)]
  const { path: base, size, seed } = await patternImage(here.folder)
  await run('qemu-img', ['convert', '-O', 'qcow2', base, join(here.folder, 'disk.qcow2')])
  const { dom, guest } = await startGuest(t, here, { devices: diskXml('vda', join(here.folder, 'disk.qcow2')) })
  await guest.base('vda', seed, size)
  await guest.work('vda')
  const xml = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
  const raw = xml.replace("type='qcow2'", "type='raw'")
  const moved = await dom.migrate(there.conn, { destinationXML: raw }, VIR_MIGRATE_LIVE | VIR_MIGRATE_NON_SHARED_DISK)
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_SHUTOFF, reason: VIR_DOMAIN_SHUTOFF_MIGRATED })
  assert.deepEqual(await moved.streamDiskInfo(), [])
  const agent = await agentOf(t, there.folder)
  await assertRight(agent)
})

/** Whether another program may write to an image, as far as QEMU's locks tell. */
async function mayWrite(path: string, format: string): Promise<boolean> {
  try {
    await run('qemu-io', ['-f', format, '-c', 'write 0 0', path])
    return true
  } catch (error) {
    assert.ok(error instanceof RunError)
    assert.match(error.stderr, /Failed to get "write" lock/)
    return false
  }
}

function migrationsIn(folder: string): string[] {
  return readdirSync(join(folder, 'root/run/migration')).filter((name) => name !== 'tunnel.sock')
}
