/** Streaming of a running domain's disk: the whole device, by QEMU's block-stream. */
import type { DiskDef, StorageSource } from '../conf/domain-def.js'
import { VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC, VIR_DOMAIN_BLOCK_JOB_TYPE_PULL } from '../constants.gen.js'
import type { DomainBlockJobInfo, DomainRef, HypervisorOps, StreamDiskState, StreamOptions } from '../driver.js'
import { failFrom } from '../error.js'
import { chainOf, placeGuard, sourcePath } from './block-graph.js'
import { formatNodeName, guardNodeName } from './blockdev.js'
import type { BlockJob } from './blockjob.js'
import { findDisk } from './disk-names.js'
import { checkFlags } from './flags.js'
import { isRemote, linkProblem, remoteImages } from './link-watch.js'
import { follow, look } from './progress.js'
import type { Qemu } from './qemu.js'
import { settle } from './settle.js'
import { saveStatus } from './status.js'
import { modify } from './vm-job.js'
import type { Live, Vm } from './vm.js'
import { VIR_STREAM_DISK_ONE, VIR_STREAM_DISK_START, VIR_STREAM_DISK_STOP } from '../stream-flags.js'
import { formatBackingString } from '../storage/backing-string.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms that a stop waits for the job's end; a request to a base that does not answer holds it up */
const STOP_TIMEOUT = 10_000

const STREAMABLE_FORMATS = ['qcow2', 'qed']

/** What stands against streaming this disk at all. */
function checkStreamable(disk: DiskDef): StorageSource {
  const { target, source } = disk
  if (source === undefined) throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' has no medium`)
  if (disk.device !== 'disk' && disk.device !== 'lun')
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' is a '${disk.device}' and cannot be streamed`)
  if (disk.readonly) throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' is read-only`)
  if (!source.backingStore) {
    const format = source.format ?? 'raw'
    if (!STREAMABLE_FORMATS.includes(format))
      throw fail(
        'VIR_ERR_CONFIG_UNSUPPORTED',
        `disk '${target}' has format '${format}', which has no backing image to stream from`,
      )
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' has no backing image, there is nothing to stream`)
  }
  return source
}

/** The image that is to stay below `disk`, named by its path. */
function findBase(disk: DiskDef, path: string): StorageSource {
  const base = chainOf(disk)
    .slice(1)
    .find((image) => sourcePath(image) === path || formatBackingString(image) === path)
  if (base === undefined) {
    const text = `could not find image '${path}' beneath '${sourcePath(disk.source)}' in chain for '${disk.target}'`
    throw fail('VIR_ERR_INVALID_ARG', text)
  }
  return base
}

/** Between the disk's own image and the base that stays nothing is guarded, so a link that can break must not lie there. */
function checkUnguarded(disk: DiskDef, base: StorageSource): void {
  const chain = chainOf(disk)
  const remote = chain.slice(1, chain.indexOf(base)).find(isRemote)
  if (remote === undefined) return
  const text = `image '${formatBackingString(remote)}' above base '${sourcePath(base)}' is remote; only the whole chain of '${disk.target}' can be streamed safely`
  throw fail('VIR_ERR_OPERATION_UNSUPPORTED', text)
}

async function checkLinks(disk: DiskDef): Promise<void> {
  for (const image of remoteImages(disk)) {
    const problem = await linkProblem(image)
    if (problem !== undefined)
      throw fail(
        'VIR_ERR_OPERATION_FAILED',
        `base '${formatBackingString(image)}' of disk '${disk.target}' does not answer: ${problem}`,
      )
  }
}

/** Under the domain's job: begins the stream of one disk. */
async function start(qemu: Qemu, vm: Vm, live: Live, name: string, options: StreamOptions): Promise<void> {
  if (options.policy === 'idle')
    throw fail('VIR_ERR_ARGUMENT_UNSUPPORTED', "policy 'idle' is not supported by this driver, a bandwidth is")
  const disk = findDisk(live.def, name)
  if (live.blockJobs.ofDisk(disk.target) !== undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${disk.target}' already in active block job`)
  const own = checkStreamable(disk)
  const base = options.base === undefined ? undefined : findBase(disk, options.base)
  if (base !== undefined) checkUnguarded(disk, base)
  await checkLinks(disk)
  const top = own.backingStore
  if (top) await placeGuard(live.monitor, live.guards, disk, base ?? top)
  await live.exports.open(disk)
  vm.requireSame(live)
  const bandwidth = options.bandwidth ?? 0
  const record = { id: `stream-${disk.target}`, disk: disk.target, bandwidth }
  const job = live.blockJobs.register(base?.index === undefined ? record : { ...record, baseIndex: base.index })
  saveStatus(vm, live)
  try {
    await live.monitor.blockStream({
      'job-id': record.id,
      device: formatNodeName(own),
      ...(base && { 'base-node': guardNodeName(base), 'backing-file': formatBackingString(base) }),
      speed: bandwidth,
      'on-error': 'enospc',
      'filter-node-name': `stream-${disk.target}`,
    })
  } catch (error) {
    live.blockJobs.forget(job)
    if (vm.live === live) saveStatus(vm, live)
    throw error
  }
  follow(qemu, vm, live)
}

function requireJob(live: Live, name: string): BlockJob {
  const disk = findDisk(live.def, name)
  const job = live.blockJobs.ofDisk(disk.target)
  if (job === undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${disk.target}' does not have an active block job`)
  return job
}

/** Under the domain's job: stops a stream; what was copied stays. With `async`, its end comes as an event only. */
async function stop(qemu: Qemu, vm: Vm, live: Live, name: string, async: boolean): Promise<void> {
  const job = requireJob(live, name)
  const waiting = async ? undefined : live.blockJobs.wait(job, STOP_TIMEOUT)
  try {
    // a job that has ended already is settled below, or by whoever was told of its end
    if (job.status !== 'concluded') await live.monitor.jobCancel(job.record.id)
  } catch (error) {
    job.awaited = false
    throw error
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
    modify(qemu, ref, (vm, live) => start(qemu, vm, live, disk, options))

  return {
    async domainStreamDisk(ref, disk, _offset, flags, options) {
      if ((flags & VIR_STREAM_DISK_ONE) !== 0)
        throw fail('VIR_ERR_NO_SUPPORT', 'this driver does not stream single units')
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
        await live.monitor.blockJobSetSpeed(job.record.id, bandwidth)
        job.record.bandwidth = bandwidth
        saveStatus(vm, live)
      }),
  }
}
