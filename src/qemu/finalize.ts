/**
 * The last step of a stream. The image lets go of its base by a write of its header, which QEMU makes at once, while what
 * tells where the copied data lies may still be in QEMU's caches: killed then, the image would have neither. So the job
 * stops before that step, the caches are flushed, and only then is it finalized.
 */
import { messageOf } from '../error.js'
import type { BlockJob } from './blockjob.js'
import { finalizeCommit } from './commit-settle.js'
import type { Qemu } from './qemu.js'
import type { StreamHost, Vm } from './vm.js'

/** Not as a job of the domain: whoever holds that may be waiting for the end of this stream. */
export function finalizeLater(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): void {
  if (job.finalizing) return
  job.finalizing = true
  qemu.inBackground(`finalizing the stream of '${job.record.disk}'`, () =>
    (job.record.commit === undefined ? finalize(vm, host, job) : finalizeCommit(qemu, vm, host, job)).finally(() => {
      job.finalizing = false
    }),
  )
}

async function finalize(vm: Vm, host: StreamHost, job: BlockJob): Promise<void> {
  const disk = host.def.disks.find((candidate) => candidate.target === job.record.disk)
  try {
    if (disk !== undefined) await (await host.exports.open(disk)).flush()
  } catch (error) {
    // `progress` tries again
    job.waiting = `what was copied cannot be written down: ${messageOf(error)}`
    return
  }
  if (vm.host === host && job.status === 'pending') await host.monitor.jobFinalize(job.record.id)
}
