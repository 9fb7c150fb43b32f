/** `writeBack`: what a guest writes after it has moved is in the images of its source as well, until its disks are there. */
import assert from 'node:assert/strict'
import { copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST,
  VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
  VIR_DOMAIN_RUNNING,
  VIR_DOMAIN_SHUTOFF,
  VIR_MIGRATE_PERSIST_DEST,
  type Domain,
} from '../../src/index.js'
import { agentOf, processesOf, qemuPid, reopen, until } from '../support/domain.js'
import type { Guest } from '../support/guest.js'
import { backingOf, type Cleanup } from '../support/images.js'
import { leftOf, type Moved, moveGuest } from '../support/move.js'
import { checkPattern } from '../support/pattern.js'
import { killerOf } from '../support/killer.js'
import { requires } from '../support/requires.js'
import { assertRight } from '../support/streamed.js'

test('a destination that is lost takes no write along that the guest was told is done', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon')) return
  const { here, there, dom, moved, guest } = await writingGuest(t)
  assert.equal((await guest.stop('vda')).errors, 0)
  const digest = await guest.digest('vda')
  // the host with all that is on it; nor do caches of the QEMU that serves have any of it alone
  const lost = qemuPid(there, moved)
  await there.conn.close()
  for (const pid of [lost, qemuPid(here, dom)]) await killerOf(t, pid)()
  const copy = join(here.folder, 'copy.qcow2')
  await copyFile(join(here.folder, 'disk.qcow2'), copy)
  const found = await checkPattern(copy, 'qcow2', here.seed)
  assert.ok(found.written > 0)
  assert.deepEqual({ bad: found.bad, digest: found.digest }, { bad: 0, digest })

  await until('a daemon serves', () => leftOf(here).length === 2)
  await dom.abortJob(VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST)
  await dom.create()
  const home = await agentOf(t, here.folder)
  await home.base('vda', here.seed, here.size)
  const { bad, err, written } = await home.adopt('vda')
  assert.deepEqual({ bad, err, written }, { bad: 0, err: 0, written: found.written })
})

test('what is written back is written back no more when all disks are there', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon')) return
  const { here, there, dom, guest } = await writingGuest(t)
  await reopen(there)
  const again = await there.conn.domainLookupByName('guest')
  assert.deepEqual(await mirrorsOf(again), ['mirror-vda'])
  process.kill(qemuPid(here, dom), 'SIGKILL')
  await again.blockJobSetSpeed('vda', 0)
  await until('nothing is left of it', () => leftOf(here).length === 0 && leftOf(there).length === 1)
  assert.deepEqual(await mirrorsOf(again), [])
  assert.equal(await backingOf(join(there.folder, 'disk.qcow2')), undefined)
  assert.equal((await dom.getState()).state, VIR_DOMAIN_SHUTOFF)
  await assertWhole(guest)
})

test('a guest whose writes went back comes back, and nothing is copied for that', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { here, there, dom } = await writingGuest(t)
  await dom.abortJob()
  assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)
  await assertWhole(await agentOf(t, here.folder))
  await until('nothing is left of it', () => leftOf(here).length === 1 && leftOf(there).length === 0)
  assert.deepEqual(processesOf(join(there.folder, 'root/run/qemu')), [])
})

test('a guest whose writes wait for a source that has given it up is paused when its host is back', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { there, dom } = await writingGuest(t)
  await there.conn.close()
  await dom.abortJob(VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST)
  await reopen(there)
  const again = await there.conn.domainLookupByName('guest')
  await until('it is paused', async () => (await again.getState()).reason === VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
  await until('nothing is streamed', async () => (await again.streamDiskInfo()).length === 0)
  await again.destroy()
  await until('nothing is left of it', () => leftOf(there).length === 0)
})

/** It writes at the destination, and its disk follows slowly. */
async function writingGuest(t: Cleanup): Promise<Moved> {
  const moved = await moveGuest(t, { flags: VIR_MIGRATE_PERSIST_DEST, params: { writeBack: true } })
  const { here, guest } = moved
  await guest.base('vda', here.seed, here.size)
  await guest.work('vda')
  await until('it writes', async () => (await guest.stat()).writes > 100)
  return moved
}

async function assertWhole(guest: Guest): Promise<void> {
  await assertRight(guest)
}

/** The jobs of its QEMU that are no streams. */
async function mirrorsOf(dom: Domain): Promise<string[]> {
  const answer = JSON.parse(await dom.qemuMonitorCommand('{"execute":"query-jobs"}')) as { return: { id: string }[] }
  return answer.return.map(({ id }) => id).filter((id) => !id.startsWith('stream-'))
}
