/** The disk that an image is to follow onto is full. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_PAUSED_IOERROR,
  VIR_DOMAIN_PAUSED_POSTCOPY,
  VIR_DOMAIN_RUNNING,
} from '../../src/index.js'
import { until } from '../support/domain.js'
import { backingOf } from '../support/images.js'
import { leftOf, moveGuest } from '../support/move.js'
import { requires } from '../support/requires.js'
import { smallDisk } from '../support/small-disk.js'

test('a disk that is full at the destination is waited for, by its stream and its guest, and nothing is lost', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const full = await smallDisk(t, '12M')
  const path = join(full.path, 'disk.qcow2')
  const { here, there, dom, moved, guest } = await moveGuest(t, {
    bandwidth: 0,
    change: (xml) => xml.replace(/'[^']*\/disk\.qcow2'/, `'${path}'`),
  })
  await guest.base('vda', here.seed, here.size)
  await until('the stream waits', async () => (await moved.streamDiskInfo())[0]?.status === 'waiting', 30_000)
  assert.equal((await moved.streamDiskInfo())[0]?.error, 'No space left on device')
  await guest.work('vda', 'writes')
  await until('the guest is paused', async () => (await moved.getState()).state === VIR_DOMAIN_PAUSED, 30_000)
  assert.equal((await moved.getState()).reason, VIR_DOMAIN_PAUSED_IOERROR)
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_PAUSED, reason: VIR_DOMAIN_PAUSED_POSTCOPY })

  await full.grow()
  await moved.resume()
  await until('all has come', () => leftOf(here).length === 0, 60_000)
  assert.equal((await moved.getState()).state, VIR_DOMAIN_RUNNING)
  assert.equal(await backingOf(path), undefined)
  await guest.stop('vda')
  const { bad, err } = await guest.verify('vda')
  assert.deepEqual({ bad, err }, { bad: 0, err: 0 })
  await until('only the guest is left', () => leftOf(there).length === 1)
})
