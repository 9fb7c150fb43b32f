/** `writeBack`: what a guest writes after it has moved is in the images of its source as well, until its disks are there. */
import assert from 'node:assert/strict'
import { copyFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { VIR_DOMAIN_RUNNING, VIR_DOMAIN_SHUTOFF, type Domain } from '../../src/index.js'
import { agentOf, processesOf, qemuPid, reopen, testRoot, until, type TestRoot } from '../support/domain.js'
import { backingOf } from '../support/images.js'
import { migrationsIn, moveGuest } from '../support/migrate.js'
import { checkPattern } from '../support/pattern.js'
import { requires } from '../support/requires.js'

const SLOW = { writeBack: true, diskStreamBandwidth: 1 << 20 }

test('a destination that is lost takes no write along that the guest was told is done', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon')) return
  const [here, there] = [await testRoot(t), await testRoot(t)]
  const { dom, moved, guest, seed } = await moveGuest(t, here, there, SLOW)
  await guest.work('vda')
  await until('it writes', async () => (await guest.stat()).writes > 200)
  const { errors } = await guest.stop('vda')
  assert.equal(errors, 0)
  const digest = await guest.digest('vda')
  process.kill(qemuPid(there, moved), 'SIGKILL')
  // nor do caches of the QEMU that serves have any of it alone
  process.kill(qemuPid(here, dom), 'SIGKILL')
  const copy = join(here.folder, 'copy.qcow2')
  await copyFile(join(here.folder, 'disk.qcow2'), copy)
  const found = await checkPattern(copy, 'qcow2', seed)
  assert.ok(found.written > 0)
  assert.deepEqual({ bad: found.bad, digest: found.digest }, { bad: 0, digest })
})

test('what is written back is written back no more when all disks are there', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon')) return
  const [here, there] = [await testRoot(t), await testRoot(t)]
  const { dom, guest } = await moveGuest(t, here, there, { writeBack: true, diskStreamBandwidth: 4 << 20 })
  await guest.work('vda')
  await reopen(there)
  const again = await there.conn.domainLookupByName('guest')
  assert.deepEqual(await mirrorsOf(again), ['mirror-vda'])
  process.kill(qemuPid(here, dom), 'SIGKILL')
  await again.blockJobSetSpeed('vda', 0)
  await until('nothing is left of it', () => migrationsIn(here).length + migrationsIn(there).length === 0)
  assert.deepEqual(await mirrorsOf(again), [])
  assert.equal(await backingOf(join(there.folder, 'disk.qcow2')), undefined)
  assert.equal((await dom.getState()).state, VIR_DOMAIN_SHUTOFF)
  await guest.stop('vda')
  const { bad, err } = await guest.verify('vda')
  assert.deepEqual({ bad, err }, { bad: 0, err: 0 })
})

test('a guest whose writes went back comes back, and nothing is copied for that', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const [here, there] = [await testRoot(t), await testRoot(t)]
  const { dom, guest } = await moveGuest(t, here, there, SLOW)
  await guest.work('vda')
  await until('it writes', async () => (await guest.stat()).writes > 200)
  await dom.abortJob()
  assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)
  await assertWhole(t, here)
  await until('nothing is left of it', () => migrationsIn(here).length + migrationsIn(there).length === 0)
  assert.deepEqual(processesOf(join(there.folder, 'root/run/qemu')), [])
})

async function assertWhole(t: Parameters<typeof agentOf>[0], { folder }: TestRoot): Promise<void> {
  const agent = await agentOf(t, folder)
  await agent.stop('vda')
  const { bad, err } = await agent.verify('vda')
  assert.deepEqual({ bad, err }, { bad: 0, err: 0 })
}

/** The jobs of its QEMU that are no streams. */
async function mirrorsOf(dom: Domain): Promise<string[]> {
  const answer = JSON.parse(await dom.qemuMonitorCommand('{"execute":"query-jobs"}')) as { return: { id: string }[] }
  return answer.return.map(({ id }) => id).filter((id) => !id.startsWith('stream-'))
}
