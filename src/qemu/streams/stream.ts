/** Streaming of whole disks, in the domain's QEMU or, while it does not run, in a storage daemon. */
import type { DiskDef, StorageSource } from '../../conf/domain-def.js'
import { readDomainWeight } from '../../conf/stream-request.js'
import { checkStreamable } from '../../conf/streamable.js'
import type { DomainRef, HypervisorOps, StreamDiskState, StreamEngine, StreamOptions } from '../../driver.js'
import { failFrom, messageOf } from '../../error.js'
import { setBaseTimeout } from './base-timeout.js'
import { addGuard, diskSize } from '../blocks/block-graph.js'
import type { BlockJob } from '../blocks/blockjob.js'
import { becomesRaw } from './final-image.js'
import { stopStream } from './job-control.js'
import { findDisk } from '../blocks/disk-names.js'
import { checkFlags } from '../core/flags.js'
import { isFromMigration } from '../blocks/link-watch.js'
import { setBase } from './new-base.js'
import type { Position } from './moved-streams.js'
import { NotInThread } from '../blocks/nbd-exports.js'
import { offlineDefinition, openOffline, resolveOffline } from './offline.js'
import { follow, look } from './progress.js'
import type { JobKind } from '../core/jobs.js'
import type { Qemu } from '../core/qemu.js'
import { saveStatus } from '../core/status.js'
import { askForSlot, launch, launchInThread } from './launch.js'
import { turnProblem } from './turn.js'
import { awaitUnit, streamUnit } from './unit.js'
import { checkLinks, checkUnguarded, findBase } from './checks.js'
import { atHome } from '../core/vm-job.js'
import type { StreamHost, Vm } from '../core/vm.js'
import { VIR_STREAM_DISK_ONE, VIR_STREAM_DISK_START, VIR_STREAM_DISK_STOP } from '../../stream-flags.js'

const fail = failFrom('VIR_FROM_QEMU')

/** Under the domain's job: begins the stream of one disk; `position`: how far it was elsewhere. */
export async function startStream(
  qemu: Qemu,
  vm: Vm,
  name: string,
  options: StreamOptions,
  position?: Position,
): Promise<void> {
  const before = vm.host
  const def = before?.def ?? offlineDefinition(vm)
  const disk = findDisk(def, name)
  if (before?.blockJobs.ofDisk(disk.target) !== undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${disk.target}' already in active block job`)
  const { baseTimeout = qemu.baseTimeout } = options
  if (vm.live === undefined) {
    await resolveOffline(def, disk)
    if (baseTimeout !== undefined) disk.baseTimeout = baseTimeout
  }
  checkStreamable(disk)
  const base = options.base === undefined ? undefined : findBase(disk, options.base)
  if (base !== undefined) checkUnguarded(disk, base)
  if (base !== undefined && becomesRaw(qemu, vm, disk.target))
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${disk.target}' becomes a raw image, which has no base`)
  await checkLinks(disk)
  if (before !== undefined) vm.requireSame(before)
  if (vm.live !== undefined && options.baseTimeout !== undefined)
    await setBaseTimeout(qemu, vm, vm.live, disk, options.baseTimeout)
  const host = vm.live ?? (await openOffline(qemu, vm, def, disk))
  try {
    await begin(qemu, vm, host, { disk, base, options, ...(position && { position }) })
  } catch (error) {
    if (host.mode === 'offline' && vm.offline === host) await host.release(disk)
    if (vm.live === host) await addGuard(host.monitor, host.guards, disk).catch((e: unknown) => qemu.warn(messageOf(e)))
    throw error
  }
}

interface Beginning {
  disk: DiskDef
  base: StorageSource | undefined
  options: StreamOptions
  position?: Position
}

/** Registers the stream, and begins it if the budget has a slot for it. */
async function begin(
  qemu: Qemu,
  vm: Vm,
  host: StreamHost,
  { disk, base, options, position }: Beginning,
): Promise<void> {
  const opened = await openUnlessTooEarly(host, disk)
  vm.requireSame(host)
  const engine = becomesRaw(qemu, vm, disk.target) ? 'job' : chooseEngine(options)
  const weight = options.weight ?? readDomainWeight(host.def)
  const job = host.blockJobs.register({
    id: `stream-${disk.target}`,
    disk: disk.target,
    bandwidth: options.bandwidth ?? 0,
    arrival: position?.arrival ?? qemu.budget.arrive(),
    ...(weight !== undefined && { weight }),
    ...(base?.index !== undefined && { baseIndex: base.index }),
    ...(options.policy !== undefined && { policy: options.policy }),
    ...(options.onShutdown !== undefined && { onShutdown: options.onShutdown }),
    ...(options.baseTimeout !== undefined && { baseTimeout: options.baseTimeout }),
    engine,
    phase: engine,
  })
  try {
    job.advance(position?.offset ?? 0, opened.size)
    if (opened.tooEarly !== undefined) launchInThread(qemu, vm, host, job, opened.tooEarly)
    if (opened.tooEarly !== undefined || !askForSlot(qemu, job)) saveStatus(vm, host)
    else await launch(qemu, vm, host, job)
    follow(qemu, vm, host)
  } catch (error) {
    host.blockJobs.forget(job)
    qemu.budget.update()
    throw error
  }
}

async function openUnlessTooEarly(host: StreamHost, disk: DiskDef): Promise<{ size: number; tooEarly?: NotInThread }> {
  try {
    return { size: (await host.exports.open(disk)).size }
  } catch (error) {
    if (!(error instanceof NotInThread)) throw error
    return { size: await diskSize(host.monitor, disk), tooEarly: error }
  }
}

/** Requests of our own were faster on every base that was measured (docs/benchmarks.md). */
const chooseEngine = ({ engine = 'auto' }: StreamOptions): StreamEngine => (engine === 'auto' ? 'pull' : engine)

function stateOf(qemu: Qemu, host: StreamHost, job: BlockJob): StreamDiskState {
  const disk = host.def.disks.find((candidate) => candidate.target === job.record.disk)
  const waiting = job.waiting ?? turnProblem(qemu, job)
  const status = waiting !== undefined ? 'waiting' : job.status === 'paused' ? 'paused' : 'running'
  const shares = qemu.budget.totalBandwidth !== undefined && waiting === undefined
  return {
    path: disk?.alias ?? '',
    offset: job.offset,
    size: job.size,
    disk: job.record.disk,
    mode: disk !== undefined && isFromMigration(disk) ? 'migration' : host.mode,
    engine: job.record.phase,
    bandwidth: job.record.bandwidth,
    ...(shares && { share: job.allotment.share }),
    status,
    ...(job.record.onShutdown === 'continue' && { onShutdown: 'continue' as const }),
    ...(waiting !== undefined && { error: waiting }),
  }
}

type StreamOps = Pick<
  HypervisorOps,
  'domainStreamDisk' | 'domainStreamDiskInfo' | 'domainStreamDiskSetBase' | 'domainBlockPull' | 'domainBlockRebase'
>

export function streamOps(qemu: Qemu): StreamOps {
  const run = <T>(ref: DomainRef, work: (vm: Vm) => Promise<T>, kind?: JobKind): Promise<T> =>
    atHome(qemu, ref, work, kind)
  const begin = (ref: DomainRef, disk: string, options: StreamOptions): Promise<void> =>
    run(ref, (vm) => startStream(qemu, vm, disk, options))

  return {
    async domainStreamDisk(ref, disk, offset, flags, options) {
      if ((flags & VIR_STREAM_DISK_ONE) !== 0) {
        await awaitUnit(qemu, qemu.require(ref), disk, options.signal)
        return run(ref, (vm) => streamUnit(qemu, vm, disk, offset, options), 'stream')
      }
      if ((flags & VIR_STREAM_DISK_START) !== 0) await begin(ref, disk, options)
      if ((flags & VIR_STREAM_DISK_STOP) !== 0) await run(ref, (vm) => stopStream(qemu, vm, disk))
      return 0
    },

    async domainStreamDiskInfo(ref) {
      const vm = qemu.require(ref)
      const { host } = vm
      if (host === undefined) return []
      await look(qemu, vm, host)
      return host.blockJobs.all
        .filter(({ record }) => record.commit === undefined)
        .map((job) => stateOf(qemu, host, job))
    },

    domainStreamDiskSetBase: (ref, disk, base, image) => run(ref, (vm) => setBase(qemu, vm, disk, base, image)),

    domainBlockPull: (ref, disk, bandwidth) => begin(ref, disk, { bandwidth }),

    async domainBlockRebase(ref, disk, base, bandwidth, flags) {
      checkFlags('domainBlockRebase', flags)
      await begin(ref, disk, base === undefined ? { bandwidth } : { bandwidth, base })
    },
  }
}
