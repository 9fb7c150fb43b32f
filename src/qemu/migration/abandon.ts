/**
 * The destination of a migration is lost for good while it has the guest, and its disks are still here: the source gives it
 * up. If it comes back after all it is told so before anything else, and serves nobody; until then it gets no block.
 */
import * as c from '../../constants.gen.js'
import { failFrom, messageOf } from '../../error.js'
import { goOnHere, keptNothing } from './go-on.js'
import { stopServing } from './serve.js'
import type { Outgoing } from './outgoing.js'
import { terminate } from '../monitor/process.js'
import type { Qemu } from '../core/qemu.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms that a destination has to pause its guest: reads that wait there are answered after 16 s at the latest */
const PAUSING = 60_000

/**
 * Under the domain's job. Before it was known whether the guest ran there it goes on here; after that the domain is shut
 * off, with its images as they were at the switch, or as the guest left them if it wrote back.
 */
export async function abandon(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { vm, record } = outgoing
  if (record.phase !== 'switched' && record.phase !== 'serving')
    throw fail('VIR_ERR_OPERATION_INVALID', `domain '${vm.name}' has no migration whose destination could be given up`)
  // of memory that was given back as it went nobody has all
  if (record.phase === 'switched' && !keptNothing(record)) record.goesOn = true
  outgoing.enter('abandoning')
  const heard = await tell(outgoing)
  await finishAbandoning(qemu, outgoing)
  if (heard) outgoing.forget()
  else outgoing.link?.last()
}

/** Under the domain's job: nothing is served any more, and what the domain is here is written down. */
export async function finishAbandoning(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { vm, record, stats } = outgoing
  const { live } = vm
  if (record.goesOn === true && live !== undefined) {
    await goOnHere(qemu, outgoing, live)
  } else {
    if (live !== undefined) {
      live.exitCause = { reason: c.VIR_DOMAIN_SHUTOFF_DESTROYED, detail: c.VIR_DOMAIN_EVENT_STOPPED_DESTROYED }
      await terminate(live.process, live.ended, false)
    }
    await stopServing(qemu, outgoing)
    vm.state = { state: c.VIR_DOMAIN_SHUTOFF, reason: c.VIR_DOMAIN_SHUTOFF_DESTROYED }
  }
  outgoing.enter('abandoned')
  outgoing.leaveNothing()
  const lost = record.writeBack === 'on' ? 'what the guest wrote there is here' : 'with what the guest wrote there'
  stats.fail(fail('VIR_ERR_OPERATION_ABORTED', `'${record.peer}' was given up, ${lost}`))
  qemu.finishedJobs.set(vm.uuid, stats.now)
}

/** It is there again. */
export async function tellAbandoned(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  if (!(await tell(outgoing, (error) => qemu.warn(messageOf(error))))) return
  qemu.warn(`'${outgoing.record.peer}' has heard that it was given up as the place of domain '${outgoing.record.name}'`)
  outgoing.forget()
}

/** Whether the destination knows it now; it has paused its guest then, or has none. */
async function tell({ link }: Outgoing, warn: (error: unknown) => void = () => undefined): Promise<boolean> {
  try {
    // a process that has just opened the root is on its way there
    if (link?.isUp === false) await link.connect()
    await link?.request('abandoned', {}, PAUSING)
    return link !== undefined
  } catch (error) {
    warn(error)
    return false
  }
}
