/** The end of a running domain, whoever brought it about. */
import * as c from '../../constants.gen.js'
import type { ProcessExit } from '../../native.js'
import type { BlockJob } from '../blocks/blockjob.js'
import { emitLifecycle } from '../core/emit.js'
import { endStreams, noticeEnds } from '../streams/end-streams.js'
import { holdSlots, movedStream, resumeStreams } from '../streams/moved-streams.js'
import { exitedCleanly } from '../monitor/process.js'
import type { Qemu } from '../core/qemu.js'
import { writeHeadersLater } from '../streams/stale-headers.js'
import { removeRunDir } from '../core/status.js'
import { deleteTap } from './tap.js'
import type { ExitCause, Live, Vm } from '../core/vm.js'

const CRASHED: ExitCause = { reason: c.VIR_DOMAIN_SHUTOFF_CRASHED, detail: c.VIR_DOMAIN_EVENT_STOPPED_CRASHED }
const SHUT_OFF = [c.VIR_DOMAIN_SHUTOFF_SHUTDOWN, c.VIR_DOMAIN_SHUTOFF_DESTROYED] as const
const SHUTDOWN: ExitCause = { reason: c.VIR_DOMAIN_SHUTOFF_SHUTDOWN, detail: c.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN }

/** The process of `live` is gone: the domain is shut off, its traces are removed, listeners are told. */
export function finishLive(qemu: Qemu, vm: Vm, live: Live, exit: ProcessExit): void {
  if (vm.live !== live) return
  live.monitor.close()
  const noticing = noticeEnds(live)
  if (live.access.isNothing && noticing === undefined) endLive(qemu, vm, live, exit)
  // the domain is there until its images are free again, so that nobody can start it with them in between
  else qemu.inBackground(`undoing what '${vm.name}' was let have`, () => revokeAndEnd(qemu, vm, live, exit, noticing))
}

async function revokeAndEnd(
  qemu: Qemu,
  vm: Vm,
  live: Live,
  exit: ProcessExit,
  noticing: Promise<void> | undefined,
): Promise<void> {
  try {
    await noticing
    await live.access.revoke()
  } finally {
    endLive(qemu, vm, live, exit)
  }
}

function endLive(qemu: Qemu, vm: Vm, live: Live, exit: ProcessExit): void {
  const clean = exitedCleanly(exit, live.runDir)
  const cause = live.exitCause ?? (clean ? SHUTDOWN : CRASHED)
  const ref = vm.ref
  live.process.close()
  live.exports.close()
  live.monitor.close()
  const announced = !isStartingUp(vm)
  vm.live = undefined
  vm.state = { state: c.VIR_DOMAIN_SHUTOFF, reason: cause.reason }
  try {
    writeHeadersLater(qemu, vm, live)
    if (!leaveStreams(qemu, vm, live, ref, clean, cause)) removeRunDir(live.runDir)
  } catch (error) {
    qemu.host.logger.error({ err: error }, `what domain '${vm.name}' left could not be tidied up`)
  }
  for (const net of live.def.interfaces) qemu.inBackground('removing a tap device', () => deleteTap(net))
  qemu.outgoingOf(vm)?.keepDomain()
  qemu.forgetIfNothing(vm)
  qemu.migrations.guestEnded(vm)
  // of a start that failed its caller is told, and nobody else has heard of it
  if (announced) emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_STOPPED, cause.detail, ref)
  live.markEnded()
}

const isStartingUp = ({ state }: Vm): boolean =>
  state.state === c.VIR_DOMAIN_PAUSED && state.reason === c.VIR_DOMAIN_PAUSED_STARTING_UP

/** Streams end with their domain, but for those that were to go on without it. Answers whether there are such. */
function leaveStreams(qemu: Qemu, vm: Vm, live: Live, ref: Vm['ref'], clean: boolean, cause: ExitCause): boolean {
  const shutOff =
    clean && (SHUT_OFF as readonly number[]).includes(cause.reason) && (vm.config ?? vm.remains) !== undefined
  const goesOn = ({ record, completed }: BlockJob): boolean => shutOff && record.onShutdown === 'continue' && !completed
  const [going, ending] = [live.blockJobs.all.filter(goesOn), live.blockJobs.all.filter((job) => !goesOn(job))]
  const streams = going.map((job) => movedStream(live.def, job.record, job))
  holdSlots(qemu, streams)
  endStreams(qemu, vm, live, ending, ref, clean ? undefined : `QEMU of domain '${vm.name}' is gone`)
  for (const job of going) job.puller?.abort()
  if (going.length === 0) return false
  // until they are under way the status tells a later process of them
  resumeStreams(qemu, vm, { streams, runDir: live.runDir })
  return true
}
