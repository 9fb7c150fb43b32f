/** Guests that have moved and end while their disks are still on their way: the disks follow without them. */
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_SHUTOFF_MIGRATED,
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_PERSIST_DEST,
  VIR_MIGRATE_STREAM_DISKS,
  type Domain,
} from '../../src/index.js'
import { run } from '../../src/util/run.js'
import {
  agentOf,
  diskXml,
  powerOff,
  qemuPid,
  reopen,
  startGuest,
  testRoot,
  until,
  virError,
  type TestRoot,
} from '../support/domain.js'
import type { Guest } from '../support/guest.js'
import { backingOf, type Cleanup, patternImage } from '../support/images.js'
import { requires } from '../support/requires.js'

const STREAM = VIR_MIGRATE_LIVE | VIR_MIGRATE_STREAM_DISKS
const needs = ['program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon'] as const

test('a transient domain that powers down stays until its disk is there, then it goes and its source is let go of', async (t) => {
  if (!requires(t, ...needs)) return
  const { here, there, dom, moved, guest } = await moveGuest(t, 0)
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
  const { here, there, dom, moved } = await moveGuest(t, 0)
  const pid = qemuPid(there, moved)
  await there.conn.close()
  process.kill(pid, 'SIGKILL')
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
  const { here, there, dom, moved } = await moveGuest(t, VIR_MIGRATE_PERSIST_DEST)
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
  await guest.stop('vda')
  const { bad, err } = await guest.verify('vda')
  assert.deepEqual({ bad, err }, { bad: 0, err: 0 })
})

interface Source extends TestRoot {
  seed: number
  size: number
}

/** A guest with a disk of 32 MiB that has moved; its disk follows slowly. */
async function moveGuest(
  t: Cleanup,
  flags: number,
): Promise<{ here: Source; there: TestRoot; dom: Domain; moved: Domain; guest: Guest }> {
  const [root, there] = [await testRoot(t), await testRoot(t)]
  const { path: base, size, seed } = await patternImage(root.folder, 32 << 20)
  const here = { ...root, size, seed }
  const disk = join(here.folder, 'disk.qcow2')
  await run('qemu-img', ['convert', '-O', 'qcow2', base, disk])
  const { dom } = await startGuest(t, here, { devices: diskXml('vda', disk) })
  const destinationXML = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
  const params = { destinationXML, persistXML: destinationXML, diskStreamBandwidth: 1 << 20 }
  const moved = await dom.migrate(there.conn, params, STREAM | flags)
  return { here, there, dom, moved, guest: await agentOf(t, there.folder) }
}

async function finished(here: TestRoot, there: TestRoot, dom: Domain): Promise<void> {
  await until('the source is let go of', async () => (await dom.getState()).state === VIR_DOMAIN_SHUTOFF)
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_SHUTOFF, reason: VIR_DOMAIN_SHUTOFF_MIGRATED })
  await until('the domain is gone', async () => (await there.conn.listAllDomains()).length === 0)
  await until('nothing is left of it', () => left(here).length + left(there).length === 0)
}

function left({ folder }: TestRoot): string[] {
  return ['migration', 'offline', 'qemu'].flatMap((dir) =>
    readdirSync(join(folder, 'root/run', dir)).filter((name) => name !== 'tunnel.sock'),
  )
}

/** Its image needs nobody, and says what the source's says. */
async function assertWhole(there: TestRoot): Promise<void> {
  const path = join(there.folder, 'disk.qcow2')
  assert.equal(await backingOf(path), undefined)
  const { path: pattern } = await patternImage(there.folder, 32 << 20)
  await run('qemu-img', ['compare', '-f', 'qcow2', '-F', 'raw', path, pattern])
}
