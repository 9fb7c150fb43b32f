/**
 * A guest that has moved, and whose disks are still on their way, comes back with all that it has written since: its disks
 * are mirrored from the destination into the images of the source, then its memory comes, then it runs where it came from.
 * Until that moment it runs at the destination, and whatever fails leaves it there. Here is what the source does.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { formatDomainXml } from '../../conf/format.js'
import * as c from '../../constants.gen.js'
import { failFrom, messageOf, VirError } from '../../error.js'
import { readDefinition } from '../domain/define.js'
import { emitLifecycle } from '../core/emit.js'
import { MigrationCommands } from '../monitor/migration-commands.js'
import { serve, serveAgainLater, stopServing } from './serve.js'
import { RETURN_CAPABILITIES } from './flags.js'
import { MigrationWatch } from './watch.js'
import type { MigrationLink } from '../../migration/link.js'
import type { Outgoing } from './outgoing.js'
import { killHard, terminate } from '../monitor/process.js'
import type { Qemu } from '../core/qemu.js'
import { letRun } from '../core/standing-still.js'
import { startIncoming } from '../domain/start.js'
import { saveStatus } from '../core/status.js'
import type { Live } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms of a step that copies: as long as it takes */
const COPYING = 24 * 60 * 60 * 1000
/** ms until a destination that could not do what it was told is told again */
const RETRY = 2_000
/** ms from the last byte of memory to the end of it here */
const LOADING = 30_000

/** Under the domain's job. */
export async function bringBack(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { vm, record, link } = outgoing
  if (record.phase !== 'serving' || link === undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `domain '${vm.name}' has no migration that could be canceled`)
  // a process that has just opened the root is on its way there
  if (!link.isUp) await link.connect().catch(() => undefined)
  if (!link.isUp) {
    const text = `domain '${vm.name}' runs on '${record.peer}', which cannot be reached: ${link.problem ?? ''}; if that host is lost for good, give it up with VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST (migrate-rollback --destination-is-lost), and with it what the guest has written there`
    throw fail('VIR_ERR_OPERATION_FAILED', text)
  }
  await askForIt(qemu, outgoing, link)
  let live: Live | undefined
  try {
    live = await replaceQemu(qemu, outgoing)
    const watch = new MigrationWatch(live)
    for (const disk of outgoing.migrated) {
      await live.exports.serve(disk)
      await live.exports.serveBack(disk, { writethrough: record.writeBack === 'on' })
    }
    await new MigrationCommands(live.monitor).setCapabilities(RETURN_CAPABILITIES)
    await link.request('return-mirror', {}, COPYING)
    await arrive(outgoing, watch)
    watch.close()
    vm.state = { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_MIGRATION }
    saveStatus(vm, live)
    outgoing.enter('returned')
  } catch (error) {
    await stayThere(qemu, outgoing, live)
    throw staysOn(outgoing, error)
  }
  await runAgain(qemu, outgoing, live)
}

function staysOn({ vm, record }: Outgoing, why: unknown): VirError {
  const text = `domain '${vm.name}' stays on '${record.peer}', it could not be brought back: ${messageOf(why)}`
  return fail('VIR_ERR_OPERATION_FAILED', text, why)
}

/** Both sides know then that it is on its way back, or that it is not. */
async function askForIt(qemu: Qemu, outgoing: Outgoing, link: MigrationLink): Promise<void> {
  try {
    await link.request('return-begin', {}, 60_000)
    requireServing(outgoing)
    outgoing.enter('returning')
  } catch (error) {
    // that side may still come to it, or have done so
    tellStaysLater(qemu, outgoing)
    throw error instanceof VirError ? error : staysOn(outgoing, error)
  }
}

/** It may have had the last disk while it was asked. */
function requireServing({ vm, record }: Outgoing): void {
  if (record.phase !== 'serving')
    throw fail('VIR_ERR_OPERATION_INVALID', `domain '${vm.name}' needs its source no more`)
}

/** A QEMU that waits for the guest, on the images that the destination has read so far. */
async function replaceQemu(qemu: Qemu, outgoing: Outgoing): Promise<Live> {
  const { vm, record } = outgoing
  if (record.def === undefined)
    throw fail('VIR_ERR_INTERNAL_ERROR', `the definition of '${vm.name}' is not known any more`)
  const xml = formatDomainXml(record.def, { inactive: true, secure: true, migratable: true })
  if (vm.live !== undefined) {
    vm.live.exitCause = { reason: c.VIR_DOMAIN_SHUTOFF_MIGRATED, detail: c.VIR_DOMAIN_EVENT_STOPPED_MIGRATED }
    await terminate(vm.live.process, vm.live.ended, false)
  }
  await stopServing(qemu, outgoing)
  qemu.add(vm) // a transient one is none without its QEMU
  return startIncoming(qemu, vm, await readDefinition(qemu, xml, false))
}

/**
 * The last of it comes over. Both QEMUs have to say so: as long as the one at the destination does not know that all has
 * arrived it may go on with the guest, whatever ours has got.
 */
async function arrive({ link }: Outgoing, watch: MigrationWatch): Promise<void> {
  const sent = link?.request('return-memory', {}, COPYING).then(
    () => undefined,
    (error: unknown) => messageOf(error),
  )
  const here = watch.until(['completed']).then((seen) => seen ?? 'gone')
  const failed = here.then((seen) => (seen === 'completed' ? sent : `its state did not arrive (${seen})`))
  const problem = await Promise.race([sent, failed])
  if (problem !== undefined) throw fail('VIR_ERR_OPERATION_FAILED', problem)
  const stop = new AbortController()
  const late = delay(LOADING, 'in time', { signal: stop.signal }).catch(() => 'in time')
  const seen = await Promise.race([here, late])
  stop.abort()
  if (seen !== 'completed') throw fail('VIR_ERR_OPERATION_FAILED', `its state did not arrive (${seen})`)
}

async function stayThere(qemu: Qemu, outgoing: Outgoing, live: Live | undefined): Promise<void> {
  const { vm } = outgoing
  const warn = (error: unknown): void => qemu.warn(`domain '${vm.name}': ${messageOf(error)}`)
  if (live !== undefined && vm.live === live) {
    live.exitCause = { reason: c.VIR_DOMAIN_SHUTOFF_MIGRATED, detail: c.VIR_DOMAIN_EVENT_STOPPED_MIGRATED }
    killHard(live.process)
    await live.ended
  }
  try {
    outgoing.enter('serving')
  } catch (error) {
    warn(error)
  }
  // its QEMU there may stand still until it gets what it reads
  if (vm.host === undefined) await serve(qemu, outgoing).catch(warn)
  serveAgainLater(qemu, outgoing)
  await tellStays(qemu, outgoing)
}

/** Until the destination has heard it, it waits for its guest to go. When it can't be told now it is when the link is there again. */
export async function tellStays(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { record, link } = outgoing
  try {
    await link?.request('return-failed', {})
  } catch (error) {
    qemu.warn(`'${record.peer}' does not know yet that domain '${record.name}' stays there: ${messageOf(error)}`)
    if (link?.isUp === true) setTimeout(() => tellStaysLater(qemu, outgoing), RETRY).unref()
  }
}

function tellStaysLater(qemu: Qemu, outgoing: Outgoing): void {
  const tell = async (): Promise<void> => {
    if (outgoing.record.phase === 'serving') await tellStays(qemu, outgoing)
  }
  qemu.inBackground(`the migration of domain '${outgoing.record.name}'`, () => outgoing.underJob(tell))
}

function tellReturnedLater(qemu: Qemu, outgoing: Outgoing): void {
  const tell = async (): Promise<void> => {
    if (outgoing.record.phase === 'returned') await tellReturned(qemu, outgoing)
  }
  qemu.inBackground(`the migration of domain '${outgoing.record.name}'`, () => outgoing.underJob(tell))
}

/** Under the domain's job, the guest is here, and its phase says so: it runs, and the destination may forget it. */
export async function runAgain(qemu: Qemu, outgoing: Outgoing, live: Live): Promise<void> {
  const { vm, record } = outgoing
  outgoing.leaveNothing()
  emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_STARTED, c.VIR_DOMAIN_EVENT_STARTED_MIGRATED)
  vm.state = { state: c.VIR_DOMAIN_RUNNING, reason: c.VIR_DOMAIN_RUNNING_MIGRATED }
  await letRun(live)
  emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_RESUMED, c.VIR_DOMAIN_EVENT_RESUMED_MIGRATED)
  saveStatus(vm, live)
  for (const { target } of outgoing.migrated)
    await live.exports.unserve(target).catch((error: unknown) => qemu.warn(messageOf(error)))
  outgoing.stats.fail(fail('VIR_ERR_OPERATION_ABORTED', `domain '${vm.name}' came back from '${record.peer}'`))
  qemu.finishedJobs.set(vm.uuid, outgoing.stats.now)
  await tellReturned(qemu, outgoing)
}

/** Until the destination has heard it, it keeps what it has. When it can't be told now it is when the link is there again. */
export async function tellReturned(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { link, record } = outgoing
  try {
    await link?.request('return-done', {})
  } catch (error) {
    qemu.warn(`'${record.peer}' does not know yet that '${record.name}' came back: ${messageOf(error)}`)
    if (link?.isUp === true) setTimeout(() => tellReturnedLater(qemu, outgoing), RETRY).unref()
    return
  }
  outgoing.forget()
}
