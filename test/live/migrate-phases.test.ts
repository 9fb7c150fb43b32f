/** The link between two hosts is silent, or breaks, in each phase of a migration and on the way back: one guest, none of it lost. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { Stack } from '../../scripts/program.js'
import {
  type Connect,
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_RUNNING,
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_STREAM_DISKS,
  type Domain,
  type StreamDiskState,
} from '../../src/index.js'
import { run } from '../../src/util/run.js'
import { reconnect, twoApart } from '../support/apart.js'
import { killAll } from '../campaign/place.js'
import { agentOf, diskXml, processesOf, startGuest, until, virError } from '../support/domain.js'
import { patternImage } from '../support/images.js'
import { leftOf } from '../support/move.js'
import { requires } from '../support/requires.js'

const STREAM = VIR_MIGRATE_LIVE | VIR_MIGRATE_STREAM_DISKS
const MiB = 1 << 20

test('a link that says nothing for a second, in each phase and on the way back, costs nothing but that second', async (context) => {
  if (!requires(context, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { link, here, there, dom, migrate, isWhole } = await guestApart(context)
  const silentAt = (step: string): void => here.at(step, () => void link.silence())
  // while the destination prepares, while memory goes over, at the switch, while disks follow
  void link.silence()
  const going = migrate(1)
  await until('memory goes over', async () => (await dom.getJobStats()).memProcessed > 0)
  const silent = link.silence()
  await assert.rejects(migrate(0), virError('VIR_ERR_OPERATION_INVALID', /is being migrated already/))
  await silent
  silentAt('> migrate-continue')
  await dom.migrateSetMaxSpeed(0)
  const moved = await going
  await until('a part of it is there', async () => ((await moved.streamDiskInfo())[0]?.offset ?? 0) > MiB)
  await link.silence()
  await assert.rejects(migrate(0), virError('VIR_ERR_OPERATION_INVALID', /is being migrated already/))

  // on its way back, and at the switch of that
  silentAt('< write record.json returning')
  there.at('> migrate-continue', () => void link.silence())
  await dom.abortJob()
  assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)
  await isWhole(here)
  await until('nothing is left of it', () => leftOf(there).length === 0)
})

test('a link that breaks, in each phase and on the way back, leaves one guest, and what was begun is done when it is there again', async (context) => {
  if (!requires(context, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { dom, migrate, isWhole, ...apart } = await guestApart(context)
  const { link, here, there } = apart
  const runs = async (): Promise<[boolean, boolean]> => [await runsAt(here.conn), await runsAt(there.direct)]

  // while the destination prepares; it waits, and nobody here knows that it does
  there.at('> write record.json incoming', () => link.cut())
  await assert.rejects(migrate(0))
  assert.deepEqual(await runs(), [true, false])

  // while memory goes over
  await reconnect(apart)
  const going = migrate(1)
  await until('memory goes over', async () => (await dom.getJobStats()).memProcessed > 0)
  link.cut()
  await assert.rejects(going)
  assert.deepEqual(await runs(), [true, false])

  // while the last of it goes over, and the guest stands still: QEMU may have got it, or not
  await reconnect(apart)
  here.at('> migrate-continue', () => link.cut())
  await assert.rejects(migrate(0))
  assert.equal((await runs())[1], false)
  await reconnect(apart)

  // when all of it has
  if ((await runs())[0]) {
    here.at('> write record.json switched', () => link.cut())
    await assert.rejects(
      migrate(0),
      virError('VIR_ERR_OPERATION_FAILED', /it is not known whether domain 'guest' runs at/),
    )
    assert.deepEqual(await runs(), [false, false])
    await reconnect(apart)
  }
  await until('it runs there', async () => (await runs())[1])
  assert.equal((await dom.getState()).state, VIR_DOMAIN_PAUSED)

  // on its way back: its QEMU here is killed, its disk is being copied; the last of its memory goes over; it is here, and the
  // destination is not told
  for (const [step, work, at] of [
    ['> blockdev-mirror', () => killAll(processesOf(join(here.folder, 'root/run/qemu'))), 1],
    ['> write record.json returning', () => link.cut(), 1],
    ['> migrate-continue', () => link.cut(), 1],
    ['< write record.json returned', () => link.cut(), 0],
  ] as const) {
    await until('its disk follows', async () => (await streamOf(there.direct))?.status === 'running')
    here.at(step, () => void work())
    await dom.abortJob().catch((error: unknown) => error)
    assert.equal((await runs())[1 - at], false)
    await reconnect(apart)
    await until('it runs', async () => (await runs())[at])
  }
  await isWhole(here)
  await until('nothing is left of it', () => leftOf(there).length === 0)
})

async function runsAt(conn: Connect): Promise<boolean> {
  const [dom] = await conn.listAllDomains()
  return dom !== undefined && (await dom.getState()).state === VIR_DOMAIN_RUNNING
}

async function streamOf(conn: Connect): Promise<StreamDiskState | undefined> {
  const [dom] = await conn.listAllDomains()
  return (await dom?.streamDiskInfo())?.[0]
}

async function guestApart(context: TestContext) {
  const t = new Stack()
  context.after(() => t.undo((text) => context.diagnostic(text)))
  const apart = await twoApart(t)
  const { here, there } = apart
  const base = await patternImage(here.folder, 32 * MiB)
  const disk = join(here.folder, 'disk.qcow2')
  await run('qemu-img', ['convert', '-O', 'qcow2', base.path, disk])
  const { dom, guest } = await startGuest(t, here, { devices: diskXml('vda', disk) })
  await guest.base('vda', base.seed, base.size)
  await guest.work('vda', 'slowly')
  const destinationXML = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
  const params = { destinationXML, uri: there.uri, diskStreamBandwidth: MiB }
  const migrate = (bandwidth: number): Promise<Domain> => dom.migrate(there.conn, { ...params, bandwidth }, STREAM)
  return {
    ...apart,
    dom,
    migrate,
    isWhole: async (at: { folder: string }) => {
      const agent = await agentOf(t, at.folder)
      await agent.stop('vda')
      const { bad, err } = await agent.verify('vda')
      assert.deepEqual({ bad, err }, { bad: 0, err: 0 })
    },
  }
}
