/** A guest that meets an I/O error while it is on its way. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_PAUSED_IOERROR,
  VIR_MIGRATE_ABORT_ON_ERROR,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_UNSAFE,
} from '../../src/index.js'
import { diskXml, startGuest, testRoot, until, virError } from '../support/domain.js'
import { overlay, patternImage } from '../support/images.js'
import { requires } from '../support/requires.js'
import { smallDisk } from '../support/small-disk.js'
import { assertRight } from '../support/streamed.js'

const MiB = 1024 * 1024

test('an I/O error ends a migration that is to be aborted by one, and the guest has lost nothing', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const [here, there] = [await testRoot(t), await testRoot(t)]
  const base = await patternImage(here.folder, 16 * MiB)
  const small = await smallDisk(t, '4M')
  const path = await overlay(small.path, base.path)
  const { dom, guest } = await startGuest(t, here, { devices: diskXml('vda', path) })
  await guest.base('vda', base.seed, base.size)
  const flags = VIR_MIGRATE_LIVE | VIR_MIGRATE_UNSAFE | VIR_MIGRATE_ABORT_ON_ERROR
  const going = dom.migrate(there.conn, { bandwidth: 1 }, flags)
  going.catch(() => undefined)
  await until('memory goes over', async () => (await dom.getJobStats()).memProcessed > 0)
  await guest.work('vda')
  await assert.rejects(going, virError('VIR_ERR_OPERATION_FAILED', /failed due to I\/O error/))
  const paused = { state: VIR_DOMAIN_PAUSED, reason: VIR_DOMAIN_PAUSED_IOERROR }
  assert.deepEqual(await dom.getState(), paused)
  assert.deepEqual(await there.conn.listAllDomains(), [])

  await assert.rejects(
    dom.migrate(there.conn, {}, flags),
    virError('VIR_ERR_OPERATION_FAILED', /failed due to I\/O error/),
  )
  assert.deepEqual(await dom.getState(), paused)
  await small.grow()
  await dom.resume()
  await assertRight(guest)
})
