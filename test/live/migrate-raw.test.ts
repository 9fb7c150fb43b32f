/** Disks that are streamed after their guest, and are raw images in the end. */
import assert from 'node:assert/strict'
import { existsSync, readdirSync } from 'node:fs'
import { truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  VIR_DOMAIN_RUNNING,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_XML_INACTIVE,
  VIR_MIGRATE_PERSIST_DEST,
  type Domain,
} from '../../src/index.js'
import { agentOf, qemuPid, reopen, until } from '../support/domain.js'
import type { Guest } from '../support/guest.js'
import { type Cleanup, temporaryFolder } from '../support/images.js'
import { run } from '../../src/util/run.js'
import { leftOf, type Moved, moveGuest } from '../support/move.js'
import { checkRawPattern } from '../support/pattern.js'
import { requires } from '../support/requires.js'
import { assertRight } from '../support/streamed.js'

test('a disk is a raw image when all of it has come, whoever was restarted meanwhile', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { here, there, guest } = await rawGuest(t)
  await guest.work('vda')
  await reopen(there)
  const again = await there.conn.domainLookupByName('guest')
  await until('its source is back', async () => (await again.streamDiskInfo())[0]?.status === 'running')
  assert.equal((await again.streamDiskInfo())[0]?.mode, 'migration')
  assert.match(await again.getXMLDesc(VIR_DOMAIN_XML_INACTIVE), /disk\.qcow2\.streaming/)
  await again.blockJobSetSpeed('vda', 0)
  await until('all has come', () => leftOf(here).length === 0 && leftOf(there).length === 1)
  await assertRaw(again)
  assert.equal(existsSync(join(there.folder, 'disk.qcow2.streaming')), false)
  await assertRight(guest)
  const digest = await guest.digest('vda')
  await again.destroy()
  const found = await checkRawPattern(join(there.folder, 'disk.qcow2'), here.seed)
  assert.deepEqual({ bad: found.bad, digest: found.digest }, { bad: 0, digest })
})

test('a guest whose disk was to become raw comes back, and no image is left', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { here, there, dom, guest } = await rawGuest(t)
  await guest.work('vda')
  await until('it writes', async () => (await guest.stat()).writes > 100)
  await dom.abortJob()
  assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)
  const home = await agentOf(t, here.folder)
  await assertRight(home)
  await until('nothing is left of it', () => leftOf(here).length === 1 && leftOf(there).length === 0)
  for (const name of ['disk.qcow2', 'disk.qcow2.streaming']) assert.equal(existsSync(join(there.folder, name)), false)
})

test('a disk becomes raw without its guest, too', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon')) return
  const { here, there, moved, guest } = await rawGuest(t)
  await guest.work('vda')
  await until('it writes', async () => (await guest.stat()).writes > 100)
  process.kill(qemuPid(there, moved), 'SIGKILL')
  await until('it is gone', async () => (await moved.getState()).state === VIR_DOMAIN_SHUTOFF)
  await until('a daemon goes on', async () => (await moved.streamDiskInfo()).length === 1)
  await moved.blockJobSetSpeed('vda', 0)
  await until('all has come', () => leftOf(here).length === 0 && leftOf(there).length === 0)
  await moved.create()
  await assertRaw(moved)
  const again: Guest = await agentOf(t, there.folder)
  await again.base('vda', here.seed, here.size)
  const { bad, err } = await again.adopt('vda')
  assert.deepEqual({ bad, err }, { bad: 0, err: 0 })
})

test('a block device takes the disk of a guest in', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'root', 'program:losetup')) return
  const file = join(await temporaryFolder(t), 'device.raw')
  await writeFile(file, '')
  await truncate(file, 32 << 20)
  const device = await run('losetup', ['--find', '--show', file]).then(
    ({ stdout }) => stdout.trim(),
    () => undefined,
  )
  if (device === undefined) {
    t.skip('loop devices cannot be had here')
    return
  }
  t.after(() => run('losetup', ['--detach', device]))
  const { here, there, moved, guest } = await moveGuest(t, {
    flags: VIR_MIGRATE_PERSIST_DEST,
    bandwidth: 16 << 20,
    change: (xml) =>
      xml
        .replace("<disk type='file'", "<disk type='block'")
        .replace("type='qcow2'", "type='raw'")
        .replace(/<source file='[^']*disk\.qcow2'/, `<source dev='${device}'`),
  })
  await guest.base('vda', here.seed, here.size)
  await guest.work('vda')
  await until('all has come', () => leftOf(here).length === 0 && leftOf(there).length === 1)
  assert.ok((await moved.getXMLDesc()).includes(`<source dev='${device}'`))
  assert.deepEqual(readdirSync(join(there.folder, 'root/lib/overlay')), [])
  await guest.stop('vda')
  const digest = await guest.digest('vda')
  await moved.destroy()
  const found = await checkRawPattern(device, here.seed)
  assert.deepEqual({ bad: found.bad, digest: found.digest }, { bad: 0, digest })
})

async function rawGuest(t: Cleanup): Promise<Moved> {
  const moved = await moveGuest(t, {
    flags: VIR_MIGRATE_PERSIST_DEST,
    change: (xml) => xml.replace("type='qcow2'", "type='raw'"),
  })
  await moved.guest.base('vda', moved.here.seed, moved.here.size)
  return moved
}

async function assertRaw(dom: Domain): Promise<void> {
  for (const flags of [0, VIR_DOMAIN_XML_INACTIVE]) {
    const xml = await dom.getXMLDesc(flags)
    assert.match(xml, /type='raw'[^>]*>\s*<source file='[^']*\/disk\.qcow2'/)
    assert.doesNotMatch(xml, /streaming/)
  }
}
