import type { DiskDef } from '../../conf/domain-def.js'
import * as c from '../../constants.gen.js'
import { chainOf, cutConfigChain } from '../blocks/block-graph.js'
import type { BlockJob } from '../blocks/blockjob.js'
import { emitEnd, followCommit, hasEnded } from './commit-settle.js'
import { saveConfig } from '../core/config.js'
import { headerEndsAt } from './detached.js'
import { emitPull } from '../core/emit.js'
import type { Qemu } from '../core/qemu.js'
import type { StreamHost, Vm } from '../core/vm.js'

/** Was it in its last step? Killed there, QEMU has no word left to say that the image has let go of its base. */
const mayHaveLetGo = ({ record, completed, status }: BlockJob): boolean =>
  record.phase === 'job' && !completed && ['pending', 'concluded'].includes(status)

/** What the images' headers say of streams that were about to complete; undefined when there are none. */
export function noticeEnds(host: StreamHost): Promise<void> | undefined {
  const jobs = host.blockJobs.all.filter(mayHaveLetGo)
  if (jobs.length === 0) return undefined
  return Promise.all(jobs.map((job) => noticeEnd(host, job))).then(() => undefined)
}

async function noticeEnd(host: StreamHost, job: BlockJob): Promise<void> {
  const disk = host.def.disks.find((candidate) => candidate.target === job.record.disk)
  const base = disk && chainOf(disk).find((image) => image.index === job.record.baseIndex)
  const { record } = job
  job.completed = record.commit ? await hasEnded(host.def, record) : await headerEndsAt(disk?.source, base)
}

/**
 * The process that had the images open is gone, and `jobs` with it. A stream that had just completed has changed the
 * image, so the definition follows. `lost`: what to say of those that did not end in good order; undefined: it did.
 */
export function endStreams(
  qemu: Qemu,
  vm: Vm,
  host: StreamHost,
  jobs: readonly BlockJob[],
  ref: Vm['ref'],
  lost?: string,
): void {
  for (const job of jobs) {
    const disk = host.def.disks.find((candidate) => candidate.target === job.record.disk)
    job.puller?.abort()
    if (disk === undefined) continue
    job.concluded()
    if (job.record.commit !== undefined) endCommit(qemu, vm, disk, job, ref, lost)
    else if (job.completed) {
      const base = chainOf(disk).find((image) => image.index === job.record.baseIndex)
      if (cutConfigChain(vm.config, disk, base)) saveConfigOrSay(qemu, vm)
      emitPull(qemu, vm, disk, c.VIR_DOMAIN_BLOCK_JOB_COMPLETED, undefined, ref)
    } else if (lost === undefined) emitPull(qemu, vm, disk, c.VIR_DOMAIN_BLOCK_JOB_CANCELED, undefined, ref)
    else emitPull(qemu, vm, disk, c.VIR_DOMAIN_BLOCK_JOB_FAILED, lost, ref)
  }
  qemu.budget.update()
}

function endCommit(
  qemu: Qemu,
  vm: Vm,
  disk: DiskDef,
  { record, completed }: BlockJob,
  ref: Vm['ref'],
  lost: string | undefined,
): void {
  if (completed) followCommit(qemu, vm, disk, record)
  const broken = lost === undefined ? ({ status: 'canceled' } as const) : ({ status: 'failed', error: lost } as const)
  emitEnd(qemu, vm, disk, record, completed ? { status: 'completed' } : broken, ref)
}

/** The process is gone whatever happens here: the next definition that is written says it. */
function saveConfigOrSay(qemu: Qemu, vm: Vm): void {
  try {
    if (vm.config !== undefined) saveConfig(qemu.root, vm.config)
  } catch (error) {
    qemu.host.logger.error({ err: error }, `the definition of '${vm.name}' still names images that its disks left`)
  }
}
