/** Memory that follows its guest: real guests that know what their memory and their disk must hold. */
import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { Stack } from '../../scripts/program.js'
import { mayMakeHosts, twoHosts } from '../../scripts/two-hosts.js'
import {
  VIR_DOMAIN_ABORT_JOB_POSTCOPY,
  VIR_DOMAIN_EVENT_RESUMED,
  VIR_DOMAIN_EVENT_RESUMED_MIGRATED,
  VIR_DOMAIN_EVENT_RESUMED_POSTCOPY,
  VIR_DOMAIN_EVENT_SUSPENDED,
  VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY,
  VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY,
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_PAUSED_POSTCOPY,
  VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
  VIR_DOMAIN_RUNNING,
  VIR_DOMAIN_RUNNING_MIGRATED,
  VIR_DOMAIN_RUNNING_POSTCOPY,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_SHUTOFF_MIGRATED,
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_NON_SHARED_DISK,
  VIR_MIGRATE_PERSIST_DEST,
  VIR_MIGRATE_POSTCOPY,
  VIR_MIGRATE_POSTCOPY_RESUME,
  VIR_MIGRATE_STREAM_DISKS,
  type Domain,
  type MigrateParams,
} from '../../src/index.js'
import { run } from '../../src/util/run.js'
import { diskXml, lifecycleOf, recordEvents, startPlain, testRoot, until, virError } from '../support/domain.js'
import { reconnect, stepsOf, twoApart } from '../support/apart.js'
import { dacRoot } from '../support/dac.js'
import { daemonRoot } from '../support/daemon-root.js'
import { emptyImage, temporaryFolder } from '../support/images.js'
import { assertWhole, guestWithMemory, start, type Side, untilServing } from '../support/memory-guest.js'
import { leftOf } from '../support/move.js'
import { requires } from '../support/requires.js'

const POSTCOPY = VIR_MIGRATE_LIVE | VIR_MIGRATE_POSTCOPY
const MiB = 1 << 20

test('memory follows a guest that runs elsewhere already, and its disk follows as well', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const [here, there] = [await testRoot(t), await testRoot(t)]
  const { dom, params, guest, memory } = await guestWithMemory(t, here, there)
  await guest.work('vda')
  const [left, arrived] = [recordEvents(here.conn), recordEvents(there.conn)]
  // what cannot be written down just then costs nothing: there is no way back
  const full: string[] = []
  const [hereAt, thereAt] = [here, there].map(({ folder }) => stepsOf(join(folder, 'root')))
  const isFull = (step: string): never => {
    full.push(step)
    throw new Error('no space left on device')
  }
  hereAt?.('< write record.json switched', () => isFull('switched'))
  thereAt?.('< write record.json loaded', () => {
    thereAt('< write record.json streaming', () => isFull('streaming'))
    isFull('loaded')
  })
  await mkdir(join(there.folder, 'root/etc/qemu/guest.xml'), { recursive: true })
  const going = start(
    dom,
    there,
    { ...params, bandwidth: 1, diskStreamBandwidth: MiB },
    POSTCOPY | VIR_MIGRATE_STREAM_DISKS | VIR_MIGRATE_PERSIST_DEST,
  )
  await until('memory goes over', async () => (await dom.getJobStats()).memProcessed > 0)
  await dom.migrateStartPostCopy()
  const moved = await going
  assert.deepEqual(full.sort(), ['loaded', 'streaming', 'switched'])
  assert.equal(await moved.isPersistent(), false)
  assert.deepEqual(await moved.getState(), { state: VIR_DOMAIN_RUNNING, reason: VIR_DOMAIN_RUNNING_MIGRATED })
  assert.deepEqual(lifecycleOf(arrived).slice(-2), [
    `${VIR_DOMAIN_EVENT_RESUMED}/${VIR_DOMAIN_EVENT_RESUMED_POSTCOPY}`,
    `${VIR_DOMAIN_EVENT_RESUMED}/${VIR_DOMAIN_EVENT_RESUMED_MIGRATED}`,
  ])
  assert.deepEqual(lifecycleOf(left), [`${VIR_DOMAIN_EVENT_SUSPENDED}/${VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY}`])
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_PAUSED, reason: VIR_DOMAIN_PAUSED_POSTCOPY })
  assert.ok(((await dom.getJobStats()).memPostcopyRequests ?? 0) > 0)
  await until('its disk follows', async () => (await moved.streamDiskInfo()).length === 1)
  await moved.blockJobSetSpeed('vda', 0)
  await until('the source is free', async () => (await dom.getState()).state === VIR_DOMAIN_SHUTOFF)
  await assertWhole(t, there, memory)
})

test('a process that is killed while memory follows is replaced at either side, and the rest goes over; then a daemon serves the disks', async (context) => {
  if (!requires(context, 'root', 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon'))
    return
  const t = new Stack()
  context.after(() => t.undo((text) => context.diagnostic(text)))
  const [here, there] = [await daemonRoot(t), await daemonRoot(t)]
  const { dom, params, guest, memory } = await guestWithMemory(t, here, there)
  await guest.work('vda', 'slowly')
  const slow = { ...params, uri: there.uri, bandwidth: 1, bandwidthPostcopy: 1, diskStreamBandwidth: MiB }
  const how = POSTCOPY | VIR_MIGRATE_STREAM_DISKS | VIR_MIGRATE_PERSIST_DEST
  const going = start(dom, there, { ...slow, serve: 'external' }, how)
  await until('memory goes over', async () => (await dom.getJobStats()).memProcessed > 0)
  await dom.migrateStartPostCopy()
  const moved = await there.conn.domainLookupByName('guest')
  const postcopy = { state: VIR_DOMAIN_RUNNING, reason: VIR_DOMAIN_RUNNING_POSTCOPY }
  await until('it runs there', async () => (await moved.getState()).reason === postcopy.reason)
  await assert.rejects(dom.abortJob(), virError('VIR_ERR_OPERATION_INVALID', /in post-copy mode/))
  await assert.rejects(moved.suspend(), virError('VIR_ERR_OPERATION_INVALID', /is being migrated from/))

  const failed = { state: VIR_DOMAIN_PAUSED, reason: VIR_DOMAIN_PAUSED_POSTCOPY_FAILED }
  await dom.abortJob(VIR_DOMAIN_ABORT_JOB_POSTCOPY)
  await until('it is interrupted', async () => (await dom.getState()).reason === failed.reason)
  const resumed = start(dom, there, {}, POSTCOPY | VIR_MIGRATE_POSTCOPY_RESUME)
  await until('it goes on', async () => (await dom.getState()).reason === VIR_DOMAIN_PAUSED_POSTCOPY)

  await here.crash()
  await assert.rejects(going)
  await assert.rejects(resumed)
  await until('it goes on', async () => (await moved.getState()).reason === postcopy.reason)
  await there.crash()
  const again = await there.conn.domainLookupByName('guest')
  await until('it goes on', async () => (await again.getState()).reason === postcopy.reason)
  const source = await here.conn.domainLookupByName('guest')
  await source.migrateSetMaxSpeed(0, VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY)
  await until('all is there', async () => (await again.getState()).reason === VIR_DOMAIN_RUNNING_MIGRATED)
  await until('its QEMU is gone', async () => (await source.getState()).state === VIR_DOMAIN_SHUTOFF)
  assert.deepEqual(await source.getState(), { state: VIR_DOMAIN_SHUTOFF, reason: VIR_DOMAIN_SHUTOFF_MIGRATED })
  const left = (what: string): number => readdirSync(join(here.folder, 'root/run', what)).length
  await until('a daemon serves in its place', () => left('qemu') === 0 && left('offline') === 1)
  await until('its disk follows', async () => (await again.streamDiskInfo())[0]?.status === 'running')
  await again.blockJobSetSpeed('vda', 0)
  await until('nothing is left of it', () => leftOf(here).length === 0)
  await assertWhole(t, there, memory)
})

test('a link that is cut while memory follows is waited for, twice, and the rest goes over', async (context) => {
  if (!requires(context, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:ip', 'program:openssl')) return
  if (!(await mayMakeHosts())) {
    context.skip('network namespaces cannot be made here')
    return
  }
  // newest first: guests, daemons, their namespaces
  const t = new Stack()
  context.after(() => t.undo((text) => context.diagnostic(text)))
  const { link, here, there } = await twoHosts(t, await temporaryFolder(t), 400)
  const { dom, params, memory } = await guestWithMemory(t, here, there)
  const slow = { ...params, uri: there.uri, bandwidth: 1, bandwidthPostcopy: 1 }
  const going = start(dom, there, slow, POSTCOPY | VIR_MIGRATE_STREAM_DISKS)
  await until('memory goes over', async () => (await dom.getJobStats()).memProcessed > 0)
  await dom.migrateStartPostCopy()
  const stateOf = async (): Promise<number> => (await dom.getState()).reason
  const cut = (state: 'up' | 'down') => run('env', [...link.receiver, 'ip', 'link', 'set', 'vs0', state])
  await untilServing(here)
  for (let times = 0; times < 2; times++) {
    await until('its memory follows', async () => (await stateOf()) === VIR_DOMAIN_PAUSED_POSTCOPY)
    await cut('down')
    await until('the source notices', async () => (await stateOf()) === VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
    await cut('up')
  }
  await until('it goes on', async () => (await stateOf()) === VIR_DOMAIN_PAUSED_POSTCOPY)
  await dom.migrateSetMaxSpeed(0, VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY)
  const moved = await going
  assert.deepEqual(await moved.getState(), { state: VIR_DOMAIN_RUNNING, reason: VIR_DOMAIN_RUNNING_MIGRATED })
  await assertWhole(t, there, memory)
  await until('the source is free', async () => (await dom.getState()).state === VIR_DOMAIN_SHUTOFF)
})

test('memory follows a guest whose disk was mirrored, and one whose disk both hosts see; where it is given back at once it is lost with the link', async (context) => {
  if (!requires(context, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const t = new Stack()
  context.after(() => t.undo((text) => context.diagnostic(text)))
  const apart = await twoApart(t)
  const { here, there, link } = apart
  const { dom, params, memory } = await guestWithMemory(t, here, there)
  const follow = async (from: Domain, to: Side, how: MigrateParams, flags = 0): Promise<Domain> => {
    const going = start(from, to, { ...how, bandwidth: 1 }, POSTCOPY | flags)
    await until('memory goes over', async () => (await from.getJobStats()).memProcessed > 0)
    await from.migrateStartPostCopy()
    return going
  }
  const moved = await follow(dom, there, { ...params, uri: there.uri }, VIR_MIGRATE_NON_SHARED_DISK)
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_SHUTOFF, reason: VIR_DOMAIN_SHUTOFF_MIGRATED })
  await assertWhole(t, there, memory)

  const destinationXML = (await moved.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replace(
    join(there.folder, 'guest.serial'),
    join(here.folder, 'guest.serial'),
  )
  const back = await follow(moved, here, { destinationXML })
  assert.deepEqual(await there.conn.listAllDomains(), [])
  await assertWhole(t, here, memory)

  await reconnect(apart)
  const lost = follow(back, there, { uri: there.uri, releaseRam: true, bandwidthPostcopy: 1 })
  await until('its memory follows', async () => (await back.getState()).reason === VIR_DOMAIN_PAUSED_POSTCOPY)
  await untilServing(here)
  await assert.rejects(
    back.abortJob(VIR_DOMAIN_ABORT_JOB_POSTCOPY),
    virError('VIR_ERR_OPERATION_INVALID', /cannot be interrupted \(releaseRam\)/),
  )
  link.cut()
  await assert.rejects(lost, virError('VIR_ERR_OPERATION_FAILED', /'guest' is lost,.*releaseRam/))
  const failed = { state: VIR_DOMAIN_PAUSED, reason: VIR_DOMAIN_PAUSED_POSTCOPY_FAILED }
  assert.deepEqual(await back.getState(), failed)
  link.mend()
  await assert.rejects(back.resume(), virError('VIR_ERR_OPERATION_INVALID', /has been migrated/))
  await back.destroy()
  const [rest] = await there.direct.listAllDomains()
  await rest?.destroy()
  await until('nothing is left of it', () => leftOf(here).length + leftOf(there).length === 0)
})

test('QEMU that may not have userfaultfd is refused at the destination, and the guest stays', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  if (readFileSync('/proc/sys/vm/unprivileged_userfaultfd', 'utf8').trim() !== '0') {
    t.skip('every program may have userfaultfd here')
    return
  }
  const [here, { root: there }] = [await testRoot(t), await dacRoot(t)]
  const path = await emptyImage(here.folder, 'qcow2', 16 * MiB, 'disk.qcow2')
  const dom = await startPlain(here, { devices: diskXml('vda', path) })
  const destinationXML = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
  await assert.rejects(
    dom.migrate(there.conn, { destinationXML }, POSTCOPY | VIR_MIGRATE_STREAM_DISKS),
    virError('VIR_ERR_OPERATION_UNSUPPORTED', /post-copy of memory is not possible.*it needs userfaultfd/),
  )
  await assert.rejects(
    dom.migrate(there.conn, { destinationXML, writeBack: true }, POSTCOPY | VIR_MIGRATE_STREAM_DISKS),
    virError('VIR_ERR_ARGUMENT_UNSUPPORTED', /does not go with VIR_MIGRATE_POSTCOPY/),
  )
  assert.equal(await dom.isActive(), true)
  assert.deepEqual(await there.conn.listAllDomains(), [])
  assert.equal(existsSync(join(there.folder, 'disk.qcow2')), false)
})
