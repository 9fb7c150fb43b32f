/**
 * The last step of a stream. The image lets go of its base by a write of its header, which QEMU makes at once, while what
 * tells where the copied data lies may still be in QEMU's caches: killed then, the image would have neither. So the job
 * stops before that step, the caches are flushed, and only then is it finalized. A mirror that is about to take the disk over
 * has flushed its target, and holds up all requests: nothing may be asked of the disk then.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { messageOf } from '../../error.js'
import type { BlockJob } from '../blocks/blockjob.js'
import { finalizeCommit, mayEnd } from './commit-settle.js'
import { writeDownFinal } from './final-image.js'
import type { Qemu } from '../core/qemu.js'
import type { StreamHost, Vm } from '../core/vm.js'

/** ms that a mirror that has caught up may take to stand still, and between two looks at it */
const COMPLETING = 5_000
const POLL = 10

/** Not as a job of the domain: whoever holds that may be waiting for the end of this stream. */
export function finalizeLater(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): void {
  if (job.finalizing || host.blockJobs.isHeld) return
  job.finalizing = true
  qemu.inBackground(`finalizing the stream of '${job.record.disk}'`, () =>
    (job.record.commit === undefined ? finalize(qemu, vm, host, job) : finalizeCommit(qemu, vm, host, job)).finally(
      () => {
        job.finalizing = false
      },
    ),
  )
}

/** A mirror has caught up. */
export function completeLater(qemu: Qemu, host: StreamHost, job: BlockJob): void {
  qemu.inBackground(`the end of the mirror of '${job.record.disk}'`, () => complete(host, job))
}

/** From 'ready' to 'pending', where this process is needed at once: it does not go before that is settled. */
async function complete(host: StreamHost, job: BlockJob): Promise<void> {
  await host.monitor.jobComplete(job.record.id)
  const end = performance.now() + COMPLETING
  while (['ready', 'waiting'].includes(job.status) && performance.now() < end) await delay(POLL)
}

async function finalize(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): Promise<void> {
  const disk = host.def.disks.find((candidate) => candidate.target === job.record.disk)
  try {
    if (!writeDownFinal(qemu, vm, host, job) && disk !== undefined) await (await host.exports.open(disk)).flush()
  } catch (error) {
    // `progress` tries again
    job.waiting = `what was copied cannot be written down: ${messageOf(error)}`
    return
  }
  if (mayEnd(vm, host, job)) await host.monitor.jobFinalize(job.record.id)
}
