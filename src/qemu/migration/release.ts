/** The end of a migration at its source: the destination has all, and both sides know it before either forgets. */
import * as c from '../../constants.gen.js'
import { failFrom, messageOf } from '../../error.js'
import { deleteConfig } from '../core/config.js'
import { emitLifecycle } from '../core/emit.js'
import { sharedDisks } from './disks.js'
import { storageOf } from './flags.js'
import { stopServing } from './serve.js'
import type { Outgoing } from './outgoing.js'
import { terminate } from '../monitor/process.js'
import type { Qemu } from '../core/qemu.js'

const fail = failFrom('VIR_FROM_QEMU')

/** Under the domain's job: nothing of the domain is needed here any more. */
export async function letGo(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { record } = outgoing
  if (record.phase !== 'released') outgoing.enter('released')
  if (record.ended !== true) {
    await endHere(qemu, outgoing)
    // whatever runs here later is not what has been released
    record.ended = true
    outgoing.enter('released')
  }
  if (outgoing.acknowledged) outgoing.forget()
  else await tellReleased(qemu, outgoing)
}

async function endHere(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { vm, record, stats } = outgoing
  const { live } = vm
  if (live !== undefined) {
    if (storageOf(record.flags) === 'shared') live.access.keepLabels(sharedDisks(live))
    live.exitCause = { reason: c.VIR_DOMAIN_SHUTOFF_MIGRATED, detail: c.VIR_DOMAIN_EVENT_STOPPED_MIGRATED }
    await terminate(live.process, live.ended, false)
  }
  await stopServing(qemu, outgoing)
  stats.complete()
  qemu.finishedJobs.set(vm.uuid, stats.now)
  const { operation } = stats.now
  qemu.host.emit({ kind: 'job-completed', domain: vm.ref, operation, stats: stats.now })
  outgoing.leaveNothing()
  if ((record.flags & c.VIR_MIGRATE_UNDEFINE_SOURCE) === 0 || vm.config === undefined) return
  deleteConfig(qemu.root, vm.name)
  vm.config = undefined
  qemu.remove(vm)
  emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_UNDEFINED, c.VIR_DOMAIN_EVENT_UNDEFINED_REMOVED)
}

/** Until the destination has heard it, it keeps what it has. */
export async function tellReleased(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { link, record } = outgoing
  try {
    await link?.request('let-go', {})
    outgoing.forget()
  } catch (error) {
    if (outgoing.acknowledged) {
      outgoing.forget()
      return
    }
    qemu.warn(`'${record.peer}' does not know yet that '${record.name}' was let go of here: ${messageOf(error)}`)
    link?.last()
  }
}

/** The destination has all, and forgets us when it has heard that we know it: so that is written down first. */
export function takeRelease(qemu: Qemu, outgoing: Outgoing): object {
  const { record } = outgoing
  // while this side ends its part by itself
  outgoing.acknowledged ||= record.phase === 'released'
  if (outgoing.acknowledged) return {}
  // 'switched': the guest runs there, whoever was to say so did not live to do it
  if (record.phase !== 'switched' && record.phase !== 'serving')
    throw fail('VIR_ERR_OPERATION_INVALID', `domain '${record.name}' is in phase '${record.phase}'`)
  outgoing.enter('released')
  outgoing.acknowledged = true
  // the answer is the last thing that the link is for
  qemu.inBackground(`letting go of domain '${record.name}'`, () => outgoing.underJob(() => letGo(qemu, outgoing)))
  return {}
}
