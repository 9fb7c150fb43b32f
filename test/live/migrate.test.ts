/** Migration of a guest that checks every block it reads, between two roots. */
import assert from 'node:assert/strict'
import { existsSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_PAUSED_POSTCOPY,
  VIR_DOMAIN_RUNNING,
  VIR_DOMAIN_RUNNING_MIGRATED,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_SHUTOFF_MIGRATED,
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_PERSIST_DEST,
  VIR_MIGRATE_STREAM_DISKS,
} from '../../src/index.js'
import { agentOf, diskXml, recordEvents, startGuest, testRoot, until } from '../support/domain.js'
import { backingOf, patternImage } from '../support/images.js'
import { run } from '../../src/util/run.js'
import { requires } from '../support/requires.js'

const STREAM = VIR_MIGRATE_LIVE | VIR_MIGRATE_STREAM_DISKS

test('a guest runs at the destination at once, and its disk follows while it writes', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const [here, there] = [await testRoot(t), await testRoot(t)]
  const [from, to] = [join(here.folder, 'disk.qcow2'), join(there.folder, 'disk.qcow2')]
  const { path: base, size, seed } = await patternImage(here.folder)
  await run('qemu-img', ['convert', '-O', 'qcow2', base, from])
  const { dom, guest } = await startGuest(t, here, { devices: diskXml('vda', from) })
  await guest.base('vda', seed, size)
  await guest.work('vda')
  const events = recordEvents(here.conn)
  const xml = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
  const moved = await dom.migrate(
    there.conn,
    { destinationXML: xml, diskStreamBandwidth: 8 << 20 },
    STREAM | VIR_MIGRATE_PERSIST_DEST,
  )
  assert.deepEqual(await moved.getState(), { state: VIR_DOMAIN_RUNNING, reason: VIR_DOMAIN_RUNNING_MIGRATED })
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_PAUSED, reason: VIR_DOMAIN_PAUSED_POSTCOPY })
  const agent = await agentOf(t, there.folder)
  await until('it streams', async () => (await moved.streamDiskInfo()).length === 1)
  const [state] = await moved.streamDiskInfo()
  assert.equal(state?.mode, 'migration')
  await until('the source is let go of', async () => (await dom.getState()).state === VIR_DOMAIN_SHUTOFF, 60_000)
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_SHUTOFF, reason: VIR_DOMAIN_SHUTOFF_MIGRATED })
  await agent.stop('vda')
  const { bad, err } = await agent.verify('vda')
  assert.deepEqual({ bad, err }, { bad: 0, err: 0 })
  assert.equal(await backingOf(to), undefined)
  assert.ok(existsSync(from))
  await until('nothing is left of it', () => migrationsIn(here.folder).length + migrationsIn(there.folder).length === 0)
  assert.ok(events.some(({ kind }) => kind === 'job-completed'))
})

function migrationsIn(folder: string): string[] {
  return readdirSync(join(folder, 'root/run/migration')).filter((name) => name !== 'tunnel.sock')
}
