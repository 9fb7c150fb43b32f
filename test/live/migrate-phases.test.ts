/** The link between two hosts is silent, or breaks, in each phase of a migration and on the way back: one guest, none of it lost. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import { type Connect, VIR_DOMAIN_PAUSED, VIR_DOMAIN_RUNNING, type StreamDiskState } from '../../src/index.js'
import { guestApart, reconnect, runsAt } from '../support/apart.js'
import { killAll } from '../campaign/place.js'
import { processesOf, until, virError } from '../support/domain.js'
import { leftOf } from '../support/move.js'
import { requires } from '../support/requires.js'

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

async function streamOf(conn: Connect): Promise<StreamDiskState | undefined> {
  const [dom] = await conn.listAllDomains()
  return (await dom?.streamDiskInfo())?.[0]
}
