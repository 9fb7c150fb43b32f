/** The disk that an image is to follow onto is full. */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_PAUSED_IOERROR,
  VIR_DOMAIN_PAUSED_POSTCOPY,
  VIR_DOMAIN_RUNNING,
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_NON_SHARED_DISK,
} from '../../src/index.js'
import { until, virError } from '../support/domain.js'
import { backingOf } from '../support/images.js'
import { leftOf, moveGuest } from '../support/move.js'
import { requires } from '../support/requires.js'
import { smallDisk } from '../support/small-disk.js'
import { assertRight } from '../support/streamed.js'

test('a disk that is full at the destination is waited for, by its stream and its guest, and nothing is lost', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const full = await smallDisk(t, '12M')
  const path = join(full.path, 'disk.qcow2')
  const { here, there, dom, moved, guest } = await moveGuest(t, {
    bandwidth: 0,
    change: (xml) => xml.replace(/'[^']*\/disk\.qcow2'/, `'${path}'`),
  })
  await guest.base('vda', here.seed, here.size)
  const waitsForRoom = async (): Promise<boolean> => {
    const [stream] = await moved.streamDiskInfo()
    return stream?.status === 'waiting' && stream.error === 'No space left on device'
  }
  await until('the stream waits for room', waitsForRoom)
  await guest.work('vda', 'writes')
  await until('the guest is paused', async () => (await moved.getState()).state === VIR_DOMAIN_PAUSED)
  assert.equal((await moved.getState()).reason, VIR_DOMAIN_PAUSED_IOERROR)
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_PAUSED, reason: VIR_DOMAIN_PAUSED_POSTCOPY })

  await full.grow()
  await moved.resume()
  await until('all has come', () => leftOf(here).length === 0)
  assert.equal((await moved.getState()).state, VIR_DOMAIN_RUNNING)
  assert.equal(await backingOf(path), undefined)
  await until('only the guest is left', () => leftOf(there).length === 1)

  // a mirror of it has no room elsewhere: the guest stays
  const small = join((await smallDisk(t, '4M')).path, 'disk.qcow2')
  const destinationXML = (await moved.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE))
    .replaceAll(path, small)
    .replaceAll(there.folder, here.folder)
  await assert.rejects(
    moved.migrate(here.conn, { destinationXML }, VIR_MIGRATE_LIVE | VIR_MIGRATE_NON_SHARED_DISK),
    virError('VIR_ERR_OPERATION_FAILED', /'vda' could not be mirrored: No space left on device/),
  )
  assert.deepEqual([existsSync(small), ...leftOf(here)], [false])
  await assertRight(guest)
})
