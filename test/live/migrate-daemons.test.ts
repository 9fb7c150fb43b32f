/** The daemon of either host is killed alone while a guest moves, and started again: its QEMU and the other host are there all the while. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Stack } from '../../scripts/program.js'
import {
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_PAUSED_POSTCOPY,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_SHUTOFF_MIGRATED,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_PERSIST_DEST,
  VIR_MIGRATE_STREAM_DISKS,
  type Domain,
} from '../../src/index.js'
import { runsAt } from '../support/apart.js'
import { daemonRoot } from '../support/daemon-root.js'
import { qemuPid, until } from '../support/domain.js'
import { assertWhole, guestWithMemory, start } from '../support/memory-guest.js'
import { leftOf } from '../support/move.js'
import { requires } from '../support/requires.js'

const STREAM = VIR_MIGRATE_LIVE | VIR_MIGRATE_STREAM_DISKS

test('a daemon that is killed while memory goes over leaves the guest where it is; while its disk follows it is waited for', async (context) => {
  if (!requires(context, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const t = new Stack()
  context.after(() => t.undo((text) => context.diagnostic(text)))
  const [here, there] = [await daemonRoot(t), await daemonRoot(t)]
  const { params, guest, memory } = await guestWithMemory(t, here, there)
  await guest.work('vda', 'slowly')
  const known = ({ conn }: typeof here): Promise<Domain> => conn.domainLookupByName('guest')
  const migrate = async (bandwidth: number): Promise<{ moved: Promise<Domain> }> => {
    const slow = { ...params, uri: there.uri, bandwidth, diskStreamBandwidth: 256 << 10 }
    return { moved: start(await known(here), there, slow, STREAM | VIR_MIGRATE_PERSIST_DEST) }
  }
  const follows = (): Promise<void> =>
    until('its disk follows', async () => (await (await known(there)).streamDiskInfo())[0]?.status === 'running')

  for (const killed of [there, here]) {
    const { moved } = await migrate(1)
    await until('memory goes over', async () => (await (await known(here)).getJobStats()).memProcessed > 0)
    await killed.crash()
    await assert.rejects(moved)
    await until('it goes on here', () => runsAt(here.conn))
    // whoever waits there for a source that has gone makes way for its next try
    if (killed === there) await until('nothing of it is there', () => leftOf(there).length === 0)
    assert.equal(await runsAt(there.conn), false)
  }

  const { moved } = await migrate(0)
  await moved
  for (const killed of [there, here]) {
    await follows()
    await killed.crash()
    assert.equal(await runsAt(there.conn), true)
    assert.deepEqual(await (await known(here)).getState(), {
      state: VIR_DOMAIN_PAUSED,
      reason: VIR_DOMAIN_PAUSED_POSTCOPY,
    })
  }

  // its QEMU there stands still meanwhile: it is known before it answers
  await follows()
  const pid = qemuPid(there, await known(there))
  process.kill(pid, 'SIGSTOP')
  await there.crash()
  assert.equal(await runsAt(there.conn), true)
  process.kill(pid, 'SIGCONT')
  await follows()

  await (await known(there)).blockJobSetSpeed('vda', 0)
  const source = await known(here)
  await until('the source is free', async () => (await source.getState()).state === VIR_DOMAIN_SHUTOFF)
  assert.deepEqual(await source.getState(), { state: VIR_DOMAIN_SHUTOFF, reason: VIR_DOMAIN_SHUTOFF_MIGRATED })
  await assertWhole(t, there, memory)
  await until('nothing is left of it', () => leftOf(here).length === 0)
})
