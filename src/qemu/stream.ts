/** Streaming of a running domain's disk: the whole device, by QEMU's block-stream. */
import type { DiskDef } from '../conf/domain-def.js'
import { VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC, VIR_DOMAIN_BLOCK_JOB_TYPE_PULL } from '../constants.gen.js'
import type {
  DomainBlockJobInfo,
  DomainRef,
  HypervisorOps,
  StreamDiskState,
  StreamEngine,
  StreamOptions,
} from '../driver.js'
import { failFrom } from '../error.js'
import { addGuard, removeGuard } from './block-graph.js'
import { type BlockJob, isMoving } from './blockjob.js'
import { beginJob, beginPull, stopPull } from './engines.js'
import { findDisk } from './disk-names.js'
import { checkFlags } from './flags.js'
import { watchIdleness } from './idle.js'
import { remoteImages } from './link-watch.js'
import { follow, look } from './progress.js'
import type { Qemu } from './qemu.js'
import { settle } from './settle.js'
import { saveStatus } from './status.js'
import { streamUnit } from './unit.js'
import { checkLinks, checkStreamable, checkUnguarded, findBase } from './stream-checks.js'
import { modify } from './vm-job.js'
import type { Live, Vm } from './vm.js'
import { VIR_STREAM_DISK_ONE, VIR_STREAM_DISK_START, VIR_STREAM_DISK_STOP } from '../stream-flags.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms that a stop waits for the job's end; a request to a base that does not answer holds it up */
const STOP_TIMEOUT = 10_000

/** Under the domain's job: begins the stream of one disk. */
export async function startStream(qemu: Qemu, vm: Vm, live: Live, name: string, options: StreamOptions): Promise<void> {
  const disk = findDisk(live.def, name)
  if (live.blockJobs.ofDisk(disk.target) !== undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${disk.target}' already in active block job`)
  checkStreamable(disk)
  const base = options.base === undefined ? undefined : findBase(disk, options.base)
  if (base !== undefined) checkUnguarded(disk, base)
  await checkLinks(disk)
  if (base === undefined) await addGuard(live.monitor, live.guards, disk)
  else await removeGuard(live.monitor, live.guards, disk)
  const client = await live.exports.open(disk)
  vm.requireSame(live)
  const engine = chooseEngine(disk, options)
  const job = live.blockJobs.register({
    id: `stream-${disk.target}`,
    disk: disk.target,
    bandwidth: options.bandwidth ?? 0,
    ...(base?.index !== undefined && { baseIndex: base.index }),
    ...(options.policy !== undefined && { policy: options.policy }),
    engine,
    phase: engine,
  })
  saveStatus(vm, live)
  if (engine === 'pull') beginPull(qemu, vm, live, job, client)
  else await beginJob(vm, live, job)
  follow(qemu, vm, live)
  watchIdleness(qemu, vm, live)
}

/** Requests in parallel pay where each of them takes its time; next to a local image they only cost. */
function chooseEngine(disk: DiskDef, { engine = 'auto' }: StreamOptions): StreamEngine {
  if (engine !== 'auto') return engine
  return remoteImages(disk).length > 0 ? 'pull' : 'job'
}

function requireJob(live: Live, name: string): BlockJob {
  const disk = findDisk(live.def, name)
  const job = live.blockJobs.ofDisk(disk.target)
  if (job === undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${disk.target}' does not have an active block job`)
  return job
}

const hasConcluded = (job: BlockJob): boolean => job.status === 'concluded'

/** Under the domain's job: stops a stream; what was copied stays. With `async`, its end comes as an event only. */
async function stop(qemu: Qemu, vm: Vm, live: Live, name: string, async: boolean): Promise<void> {
  const job = requireJob(live, name)
  if (job.record.phase === 'pull') {
    await stopPull(qemu, vm, live, job)
    return
  }
  const waiting = async ? undefined : live.blockJobs.wait(job, STOP_TIMEOUT)
  try {
    // a job that has ended already is settled below, or by whoever was told of its end
    if (!hasConcluded(job)) await live.monitor.jobCancel(job.record.id)
  } catch (error) {
    // it may have ended while the command was under way: QEMU told of its end before it refused
    if (!hasConcluded(job)) {
      job.awaited = false
      throw error
    }
  }
  if (waiting === undefined) return
  if (await waiting) {
    await settle(qemu, vm, live, job)
    return
  }
  const why = job.waiting === undefined ? '' : ` (${job.waiting})`
  const text = `the stream of disk '${job.record.disk}' stops as soon as the request under way is answered${why}`
  throw fail('VIR_ERR_OPERATION_TIMEOUT', text)
}

function stateOf(live: Live, job: BlockJob): StreamDiskState {
  const disk = live.def.disks.find((candidate) => candidate.target === job.record.disk)
  const status = job.waiting !== undefined ? 'waiting' : job.status === 'paused' ? 'paused' : 'running'
  return {
    path: disk?.alias ?? '',
    offset: job.offset,
    size: job.size,
    disk: job.record.disk,
    mode: 'full',
    engine: job.record.phase,
    bandwidth: job.record.bandwidth,
    status,
    ...(job.waiting !== undefined && { error: job.waiting }),
  }
}

type StreamOps = Pick<
  HypervisorOps,
  | 'domainStreamDisk'
  | 'domainStreamDiskInfo'
  | 'domainBlockPull'
  | 'domainBlockRebase'
  | 'domainGetBlockJobInfo'
  | 'domainBlockJobAbort'
  | 'domainBlockJobSetSpeed'
>

export function streamOps(qemu: Qemu): StreamOps {
  const begin = (ref: DomainRef, disk: string, options: StreamOptions): Promise<void> =>
    modify(qemu, ref, (vm, live) => startStream(qemu, vm, live, disk, options))

  return {
    async domainStreamDisk(ref, disk, offset, flags, options) {
      if ((flags & VIR_STREAM_DISK_ONE) !== 0)
        return modify(qemu, ref, (vm, live) => streamUnit(qemu, vm, live, disk, offset, options), 'stream')
      if ((flags & VIR_STREAM_DISK_START) !== 0) await begin(ref, disk, options)
      if ((flags & VIR_STREAM_DISK_STOP) !== 0) await modify(qemu, ref, (vm, live) => stop(qemu, vm, live, disk, false))
      return 0
    },

    async domainStreamDiskInfo(ref) {
      const vm = qemu.require(ref)
      const live = vm.requireLive()
      await look(qemu, vm, live)
      return live.blockJobs.all.map((job) => stateOf(live, job))
    },

    domainBlockPull: (ref, disk, bandwidth) => begin(ref, disk, { bandwidth }),

    async domainBlockRebase(ref, disk, base, bandwidth, flags) {
      checkFlags('domainBlockRebase', flags)
      await begin(ref, disk, base === undefined ? { bandwidth } : { bandwidth, base })
    },

    async domainGetBlockJobInfo(ref, name): Promise<DomainBlockJobInfo | undefined> {
      const vm = qemu.require(ref)
      const live = vm.requireLive()
      const disk = findDisk(live.def, name)
      await look(qemu, vm, live)
      const job = live.blockJobs.ofDisk(disk.target)
      if (job === undefined) return undefined
      const { offset: cur, size: end, record } = job
      return { type: VIR_DOMAIN_BLOCK_JOB_TYPE_PULL, bandwidth: record.bandwidth, cur, end }
    },

    async domainBlockJobAbort(ref, disk, flags) {
      checkFlags('domainBlockJobAbort', flags)
      await modify(qemu, ref, (vm, live) => stop(qemu, vm, live, disk, flags === VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC))
    },

    domainBlockJobSetSpeed: (ref, disk, bandwidth) =>
      modify(qemu, ref, async (vm, live) => {
        const job = requireJob(live, disk)
        if (job.record.phase === 'job' && isMoving(job)) await live.monitor.blockJobSetSpeed(job.record.id, bandwidth)
        job.puller?.setBandwidth(bandwidth)
        job.record.bandwidth = bandwidth
        saveStatus(vm, live)
      }),
  }
}
