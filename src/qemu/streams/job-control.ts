/** Telling of block jobs, limiting them, and bringing them to an end. */
import * as c from '../../constants.gen.js'
import type { DomainBlockJobInfo, HypervisorOps } from '../../driver.js'
import { failFrom } from '../../error.js'
import type { BlockJob } from '../blocks/blockjob.js'
import { findDisk } from '../blocks/disk-names.js'
import { jobType } from '../core/emit.js'
import { stopPull } from './engines.js'
import { cancelStream } from './final-image.js'
import { look } from './progress.js'
import type { Qemu } from '../core/qemu.js'
import { endPull, settle } from './settle.js'
import { saveStatus } from '../core/status.js'
import { setBandwidth } from './launch.js'
import { atHome } from '../core/vm-job.js'
import type { StreamHost, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms that a stop waits for the job's end; a request to a base that does not answer holds it up */
const STOP_TIMEOUT = 10_000

type NoJob = 'VIR_ERR_OPERATION_INVALID' | 'VIR_ERR_INVALID_ARG'

/** `code`: for the lack of a job; libvirt's calls on jobs have another one than our call on streams. */
function requireJob(vm: Vm, name: string, code: NoJob): { host: StreamHost; job: BlockJob } {
  const { host } = vm
  const disk = findDisk(host?.def ?? vm.def, name)
  const job = host?.blockJobs.ofDisk(disk.target)
  if (host === undefined || job === undefined)
    throw fail(
      host === undefined ? 'VIR_ERR_OPERATION_INVALID' : code,
      `disk '${disk.target}' does not have an active block job`,
    )
  return { host, job }
}

const hasConcluded = (job: BlockJob): boolean => job.status === 'concluded'

/** Under the domain's job: stops a stream; what was copied stays. With `async`, its end comes as an event only. */
async function stop(qemu: Qemu, vm: Vm, name: string, async: boolean, noJob: NoJob): Promise<void> {
  const { host, job } = requireJob(vm, name, noJob)
  requireUndecided(job)
  if (job.record.queued === true) {
    await endPull(qemu, vm, host, job, { status: 'canceled' })
    return
  }
  if (job.record.phase === 'pull') {
    await stopPull(qemu, vm, host, job)
    return
  }
  const waiting = async ? undefined : host.blockJobs.wait(job, STOP_TIMEOUT)
  try {
    // a job that has ended already is settled below, or by whoever was told of its end
    if (!hasConcluded(job)) await cancelStream(qemu, vm, host, job)
  } catch (error) {
    // it may have ended while the command was under way: QEMU told of its end before it refused
    if (!hasConcluded(job)) {
      job.awaited = false
      throw error
    }
  }
  if (waiting === undefined) return
  if (await waiting) {
    await settle(qemu, vm, host, job)
    return
  }
  const why = job.waiting === undefined ? '' : ` (${job.waiting})`
  const text = `the stream of disk '${job.record.disk}' stops as soon as the request under way is answered${why}`
  throw fail('VIR_ERR_OPERATION_TIMEOUT', text)
}

/** Under the domain's job: stops the stream of a disk, whoever moves the data. */
export async function stopStream(qemu: Qemu, vm: Vm, disk: string): Promise<void> {
  const { job } = requireJob(vm, disk, 'VIR_ERR_OPERATION_INVALID')
  if (job.record.commit !== undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${job.record.disk}' is being committed, not streamed`)
  return stop(qemu, vm, disk, false, 'VIR_ERR_OPERATION_INVALID')
}

/** Under the domain's job: the same of any block job. */
export function stopJob(qemu: Qemu, vm: Vm, disk: string): Promise<void> {
  return stop(qemu, vm, disk, false, 'VIR_ERR_INVALID_ARG')
}

/** A pivot cannot be called off. */
function requireUndecided({ ending, record }: BlockJob): void {
  if (ending) throw fail('VIR_ERR_OPERATION_INVALID', `block job on disk '${record.disk}' is still being ended`)
}

/** Under the domain's job: the base of a commit of the disk's own image becomes that. With `async`, its end comes as an event only. */
async function pivot(qemu: Qemu, vm: Vm, name: string, async: boolean): Promise<void> {
  const { host, job } = requireJob(vm, name, 'VIR_ERR_INVALID_ARG')
  const { id, disk } = job.record
  requireUndecided(job)
  if (!job.ready) throw fail('VIR_ERR_BLOCK_COPY_ACTIVE', `block job '${id}' not ready for pivot yet`)
  job.ending = true
  const waiting = async ? undefined : host.blockJobs.wait(job, STOP_TIMEOUT)
  try {
    await host.monitor.jobComplete(id)
  } catch (error) {
    job.ending = false
    job.awaited = false
    throw error
  }
  if (waiting === undefined) return
  if (!(await waiting)) {
    const text = `disk '${disk}' pivots as soon as the guest leaves it time to catch up`
    throw fail('VIR_ERR_OPERATION_TIMEOUT', text)
  }
  const end = await settle(qemu, vm, host, job)
  if (end.status === 'completed') return
  const why = 'error' in end ? end.error : 'it was canceled'
  throw fail('VIR_ERR_OPERATION_FAILED', `block job '${id}' failed while pivoting: ${why}`)
}

/** One that keeps up with the guest is complete, one that does not is not, whatever the numbers of the moment are. */
function infoOf({ record, offset, size, ready }: BlockJob): DomainBlockJobInfo {
  const info = { type: jobType(record), bandwidth: record.bandwidth, cur: offset, end: size }
  if (record.commit?.active !== true || offset !== size) return info
  if (ready) return size === 0 ? { ...info, cur: 1, end: 1 } : info
  return size === 0 ? { ...info, end: 1 } : { ...info, cur: offset - 1 }
}

type ControlOps = Pick<HypervisorOps, 'domainGetBlockJobInfo' | 'domainBlockJobAbort' | 'domainBlockJobSetSpeed'>

export function jobControlOps(qemu: Qemu): ControlOps {
  return {
    async domainGetBlockJobInfo(ref, name) {
      const vm = qemu.require(ref)
      const { host } = vm
      const disk = findDisk(host?.def ?? vm.def, name)
      if (host === undefined) return undefined
      await look(qemu, vm, host)
      const job = host.blockJobs.ofDisk(disk.target)
      return job && infoOf(job)
    },

    async domainBlockJobAbort(ref, disk, flags) {
      const async = (flags & c.VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC) !== 0
      const pivots = (flags & c.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT) !== 0
      await atHome(qemu, ref, (vm) =>
        pivots ? pivot(qemu, vm, disk, async) : stop(qemu, vm, disk, async, 'VIR_ERR_INVALID_ARG'),
      )
    },

    domainBlockJobSetSpeed: (ref, disk, bandwidth) =>
      atHome(qemu, ref, async (vm) => {
        const { host, job } = requireJob(vm, disk, 'VIR_ERR_INVALID_ARG')
        await setBandwidth(qemu, host, job, bandwidth)
        saveStatus(vm, host)
      }),
  }
}
