/** A QEMU stands still at the switch of a migration, longer than anybody waits for its answers: one guest runs, at the side that both know of. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { VIR_DOMAIN_PAUSED, VIR_DOMAIN_PAUSED_POSTCOPY } from '../../src/index.js'
import { guestApart, reconnect, runsAt } from '../support/apart.js'
import { JobQueue, type JobKind } from '../../src/qemu/core/jobs.js'
import { qemuPid, reopen, until, virError } from '../support/domain.js'
import { leftOf } from '../support/move.js'
import { requires } from '../support/requires.js'
import { stopAt, type StandStill } from '../support/standstill.js'

test('a QEMU that stands still at the switch, at either side or on the way back, costs the time that it does', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { here, there, dom, migrate, isWhole } = await guestApart(t)
  const runs = async (): Promise<[boolean, boolean]> => [await runsAt(here.conn), await runsAt(there.direct)]

  // it is about to send the last of its memory: nobody waits for that any more when it does
  const before = stopAt(here, '< migrate-continue')
  const refused = assert.rejects(migrate(0), virError('VIR_ERR_OPERATION_TIMEOUT', /no answer to 'migrate-continue'/))
  await before.gaveUp
  before.goOn()
  await refused
  await until('it goes on here', async () => (await runs())[0])
  assert.deepEqual(await there.direct.listAllDomains(), [])

  // the last of its memory goes over; the destination is told to let it run
  for (const [host, step] of [
    [here, '> migrate-continue'],
    [there, '< cont'],
  ] as const) {
    const still = stopAt(host, step)
    const going = migrate(0)
    going.catch(() => undefined)
    // asking is what finds out
    await until('QEMU does not answer', () =>
      Promise.race([still.gaveUp.then(() => true), dom.getJobStats().then(notYet, notYet)]),
    )
    still.goOn()
    const moved = await going
    assert.deepEqual(await runs(), [false, true])
    assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_PAUSED, reason: VIR_DOMAIN_PAUSED_POSTCOPY })
    await until('its disk follows', async () => (await moved.streamDiskInfo())[0]?.status === 'running')
    await dom.abortJob()
    assert.equal((await runs())[0], true)
    await until('nothing is left of it', () => leftOf(there).length === 0)
  }

  // on its way back the last of its memory is about to be sent: it stays there
  const moved = await migrate(0)
  await until('its disk follows', async () => (await moved.streamDiskInfo())[0]?.status === 'running')
  const back = stopAt(there, '< migrate-continue')
  const stays = assert.rejects(dom.abortJob(), virError('VIR_ERR_OPERATION_FAILED', /stays on/))
  await back.gaveUp
  back.goOn()
  await stays
  await until('it goes on there', async () => (await runs())[1])
  await until('its disk follows again', async () => (await moved.streamDiskInfo())[0]?.status === 'running')
  assert.equal((await runs())[0], false)

  // all of it is here, and it is told to run
  const last = stopAt(here, '< cont')
  const comes = dom.abortJob()
  await last.gaveUp
  last.goOn()
  await comes
  assert.equal((await runs())[0], true)
  await until('nothing is left of it', () => leftOf(there).length === 0)
  await isWhole(here)
})

test('a QEMU that stands still while its root is opened is known again when it goes on, and so is its migration', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { migrate, isWhole, ...apart } = await guestApart(t)
  const { here, there, link } = apart
  const still = stopAt(here, '> write record.json switched', () => link.cut())
  await assert.rejects(migrate(0), virError('VIR_ERR_OPERATION_FAILED', /it is not known whether/))
  await reopen(here)
  const dom = await here.conn.domainLookupByName('guest')
  assert.equal((await dom.getState()).state, VIR_DOMAIN_PAUSED)
  await reconnect(apart)
  assert.equal(await runsAt(there.direct), false)
  still.goOn()
  await until('it runs there', () => runsAt(there.direct))
  await until('the source knows', async () => (await dom.getState()).reason === VIR_DOMAIN_PAUSED_POSTCOPY)
  const moved = await there.direct.domainLookupByName('guest')
  await moved.blockJobSetSpeed('vda', 0)
  await until('nothing is left of it', () => leftOf(here).length === 0)
  await isWhole(there)
})

test('a guest that is wanted back while nobody there can hear it stays when who wanted it has gone, and comes when it is wanted again', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { dom, migrate, isWhole, ...apart } = await guestApart(t)
  const { here, there, link } = apart
  // it stands still as its stream begins, and goes on with that
  const still = new Promise<StandStill>((resolve) =>
    there.at('> write record.json streaming', () => resolve(stopAt(there, '< block-export-add'))),
  )
  const moved = await migrate(0)
  const { gaveUp, goOn } = await still
  await gaveUp
  goOn()
  await until('its disk follows', async () => (await moved.streamDiskInfo())[0]?.status === 'running')

  const resident = await there.direct.domainLookupByName('guest')
  const isBusy = new Promise<void>((resolve) => there.at('< stop', resolve))
  const pid = qemuPid(there, resident)
  process.kill(pid, 'SIGSTOP')
  const busy = resident.suspend()
  await isBusy
  const isAsked = jobsAsked('migrate', 2)
  const wanted = dom.abortJob()
  wanted.catch(notYet)
  await isAsked
  link.cut()
  await assert.rejects(wanted, virError('VIR_ERR_OPERATION_FAILED', /'guest' stays on/))
  await reconnect(apart)
  const again = dom.abortJob()
  again.catch(notYet)
  process.kill(pid, 'SIGCONT')
  await busy
  await again
  assert.equal(await runsAt(here.conn), true)
  await until('nothing is left of it', () => leftOf(there).length === 0)
  await isWhole(here)
})

/** Resolves when so many jobs of this kind have been asked for, of whatever domain in this process. */
function jobsAsked(kind: JobKind, count: number): Promise<void> {
  const run = Reflect.get(JobQueue.prototype, 'run')
  return new Promise((resolve) => {
    JobQueue.prototype.run = function (this: JobQueue, ...args) {
      if (args[0] === kind && --count === 0) {
        JobQueue.prototype.run = run
        resolve()
      }
      return run.apply(this, args)
    } as typeof run
  })
}

const notYet = (): boolean => false
