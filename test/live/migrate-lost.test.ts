/** A destination that is lost while disks follow is given up by its source; it comes back all the same. */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  lockDriver,
  VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST,
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_SHUTOFF_DESTROYED,
  VIR_MIGRATE_PERSIST_DEST,
} from '../../src/index.js'
import { agentOf, reopen, until, virError } from '../support/domain.js'
import { temporaryFolder } from '../support/images.js'
import { leftOf, moveGuest } from '../support/move.js'
import { requires } from '../support/requires.js'
import { assertRight } from '../support/streamed.js'

test('a lost destination is given up: the domain starts again as it left, and the other guest is paused when it is back', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const directory = join(await temporaryFolder(t), 'locks')
  const { here, there, dom, moved, guest } = await moveGuest(t, {
    flags: VIR_MIGRATE_PERSIST_DEST,
    here: { lockManager: await lockDriver('ofd', { directory }) },
  })
  await guest.base('vda', here.seed, here.size)
  await guest.work('vda')
  // its host is not there: nobody answers for it, though its guest may run
  await there.conn.close()
  await until('that is noticed', () =>
    dom.abortJob().then(
      () => assert.fail('it cannot come back'),
      (error: unknown) => /cannot be reached/.test(String(error)),
    ),
  )
  await assert.rejects(dom.abortJob(), virError('VIR_ERR_OPERATION_FAILED', /--destination-is-lost/))
  await assert.rejects(dom.destroy(), virError('VIR_ERR_OPERATION_INVALID', /still reads its disks from here/))
  await dom.abortJob(VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST)
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_SHUTOFF, reason: VIR_DOMAIN_SHUTOFF_DESTROYED })
  await assert.rejects(
    dom.abortJob(VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST),
    virError('VIR_ERR_OPERATION_INVALID', /not running|no job is active/),
  )
  await dom.create()
  const home = await agentOf(t, here.folder)
  await home.base('vda', here.seed, here.size)
  await home.work('vda')

  // a restarted process does not take the new run for the one that left
  await reopen(here)
  assert.equal(await (await here.conn.domainLookupByName('guest')).isActive(), true)
  await reopen(there)
  const again = await there.conn.domainLookupByName('guest')
  await until('it is paused', async () => (await again.getState()).reason === VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
  assert.equal((await again.getState()).state, VIR_DOMAIN_PAUSED)
  await until('the source has nothing of it left', () => leftOf(here).length === 1)
  await assert.rejects(again.resume(), virError('VIR_ERR_OPERATION_INVALID', /was given up by/))
  await until('nothing is streamed', async () => (await again.streamDiskInfo()).length === 0)
  await reopen(there)
  const third = await there.conn.domainLookupByName('guest')
  assert.deepEqual(await third.getState(), { state: VIR_DOMAIN_PAUSED, reason: VIR_DOMAIN_PAUSED_POSTCOPY_FAILED })
  await third.destroy()
  await until('nothing is left of it', () => leftOf(there).length === 0)
  assert.ok(existsSync(join(there.folder, 'disk.qcow2')))
  await assert.rejects(third.create(), /./)

  await assertRight(home)
  assert.equal(moved.uuid, dom.uuid)
})

test('a destination that can be reached is told at once that it is given up', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { here, there, dom, moved, guest } = await moveGuest(t)
  await guest.base('vda', here.seed, here.size)
  await guest.work('vda')
  await dom.abortJob(VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST)
  assert.equal((await moved.getState()).reason, VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
  assert.equal((await dom.getState()).state, VIR_DOMAIN_SHUTOFF)
  assert.deepEqual(leftOf(here), [])
  await moved.destroy()
  await until('nothing is left of it', () => leftOf(there).length === 0)
  assert.deepEqual(await there.conn.listAllDomains(), [])
})
