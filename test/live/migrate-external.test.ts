/** `serve: 'external'`: the QEMU of the source ends when its guest has gone, and a storage daemon serves the disks. */
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  VIR_DOMAIN_RUNNING,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_SHUTOFF_MIGRATED,
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_STREAM_DISKS,
} from '../../src/index.js'
import { agentOf, reopen, until, virError } from '../support/domain.js'
import { backingOf } from '../support/images.js'
import { leftOf, moveGuest } from '../support/move.js'
import { requires } from '../support/requires.js'
import { assertRight } from '../support/streamed.js'

test('a daemon serves the disks of a guest that has gone, gives them back, and serves them to their end', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon')) return
  const { here, there, dom, guest } = await moveGuest(t, { params: { serve: 'external' } })
  await guest.base('vda', here.seed, here.size)
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_SHUTOFF, reason: VIR_DOMAIN_SHUTOFF_MIGRATED })
  assert.deepEqual(readdirSync(join(here.folder, 'root/run/qemu')), [])
  assert.equal(readdirSync(join(here.folder, 'root/run/offline')).length, 1)
  await guest.work('vda')
  await assert.rejects(dom.create(), virError('VIR_ERR_OPERATION_INVALID', /has been migrated/))
  await reopen(here)
  const again = await here.conn.domainLookupByName('guest')
  await again.abortJob()
  assert.equal((await again.getState()).state, VIR_DOMAIN_RUNNING)
  const back = await agentOf(t, here.folder)
  await until('nothing is left of it', () => leftOf(there).length === 0)

  const xml = (await again.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
  await again.migrate(
    there.conn,
    { destinationXML: xml, serve: 'external' },
    VIR_MIGRATE_LIVE | VIR_MIGRATE_STREAM_DISKS,
  )
  back[Symbol.dispose]()
  const agent = await agentOf(t, there.folder)
  await until('nothing is left of it', () => leftOf(here).length === 0)
  assert.equal(await backingOf(join(there.folder, 'disk.qcow2')), undefined)
  await assertRight(agent)
})
