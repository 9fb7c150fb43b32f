/** Guests that have moved and end while their disks are still on their way: the disks follow without them. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_SHUTOFF_MIGRATED,
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_PERSIST_DEST,
  type Domain,
} from '../../src/index.js'
import { run } from '../../src/util/run.js'
import { agentOf, powerOff, qemuPid, reopen, until, virError, type TestRoot } from '../support/domain.js'
import { backingOf, patternImage } from '../support/images.js'
import { leftOf, moveGuest } from '../support/move.js'
import { killerOf } from '../support/killer.js'
import { requires } from '../support/requires.js'
import { assertRight } from '../support/streamed.js'

const needs = ['program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon'] as const

test('a transient domain that powers down stays until its disk is there, then it goes and its source is let go of', async (t) => {
  if (!requires(t, ...needs)) return
  const { here, there, dom, moved, guest } = await moveGuest(t)
  await powerOff(moved, guest)
  assert.equal(await moved.isPersistent(), false)
  await until('it is streamed without its guest', async () => (await moved.streamDiskInfo()).length === 1)
  await reopen(there)
  const again = await there.conn.domainLookupByName('guest')
  await assert.rejects(again.create(), virError('VIR_ERR_OPERATION_INVALID', /is transient/))
  await until('its stream is back', async () => (await again.streamDiskInfo())[0]?.status === 'running')
  await again.blockJobSetSpeed('vda', 0)
  await finished(here, there, dom)
  await assertWhole(there)
})

test('a transient domain whose QEMU is killed while nobody looks, and that is destroyed in its next run, leaves its disk following', async (t) => {
  if (!requires(t, ...needs)) return
  const { here, there, dom, moved } = await moveGuest(t)
  const pid = qemuPid(there, moved)
  await there.conn.close()
  await killerOf(t, pid)()
  await reopen(there)
  const again = await there.conn.domainLookupByName('guest')
  assert.equal((await again.getState()).state, VIR_DOMAIN_SHUTOFF)
  await until('it is streamed without its guest', async () => (await again.streamDiskInfo())[0]?.status === 'running')
  // a new run of it takes the stream along
  const xml = await again.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)
  const second = await there.conn.domainCreateXML(xml)
  await agentOf(t, there.folder)
  assert.equal((await second.streamDiskInfo()).length, 1)
  await second.destroy()
  await until('it is streamed without its guest', async () => (await again.streamDiskInfo())[0]?.status === 'running')
  await again.blockJobSetSpeed('vda', 0)
  await finished(here, there, dom)
  await assertWhole(there)
})

test('a persistent domain whose QEMU is killed has its disk pulled, and can be started meanwhile', async (t) => {
  if (!requires(t, ...needs)) return
  const { here, there, dom, moved } = await moveGuest(t, { flags: VIR_MIGRATE_PERSIST_DEST })
  process.kill(qemuPid(there, moved), 'SIGKILL')
  await until('it is gone', async () => !(await moved.isActive()))
  await until('it is streamed without its guest', async () => (await moved.streamDiskInfo())[0]?.mode === 'migration')
  await assert.rejects(moved.undefine(), virError('VIR_ERR_OPERATION_INVALID', /while a disk of it is streamed/))
  await moved.create()
  const guest = await agentOf(t, there.folder)
  await guest.base('vda', here.seed, here.size)
  await guest.work('vda')
  await moved.blockJobSetSpeed('vda', 0)
  await until('the source is let go of', async () => (await dom.getState()).state === VIR_DOMAIN_SHUTOFF)
  await assertRight(guest)
})

async function finished(here: TestRoot, there: TestRoot, dom: Domain): Promise<void> {
  await until('the source is let go of', async () => (await dom.getState()).state === VIR_DOMAIN_SHUTOFF)
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_SHUTOFF, reason: VIR_DOMAIN_SHUTOFF_MIGRATED })
  await until('the domain is gone', async () => (await there.conn.listAllDomains()).length === 0)
  await until('nothing is left of it', () => leftOf(here).length + leftOf(there).length === 0)
}

/** Its image needs nobody, and says what the source's says. */
async function assertWhole(there: TestRoot): Promise<void> {
  const path = join(there.folder, 'disk.qcow2')
  assert.equal(await backingOf(path), undefined)
  const { path: pattern } = await patternImage(there.folder, 32 << 20)
  await run('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, pattern])
}
