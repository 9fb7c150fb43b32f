/** Streams that go on elsewhere: in the guest's QEMU when a domain is started, without it when it was shut off. */
import type { DiskDef, DomainDef } from '../../conf/domain-def.js'
import { VIR_DOMAIN_BLOCK_JOB_FAILED } from '../../constants.gen.js'
import type { StreamOptions } from '../../driver.js'
import { messageOf } from '../../error.js'
import { formatBackingString } from '../../storage/backing-string.js'
import { chainOf } from '../blocks/block-graph.js'
import type { BlockJobRecord } from '../blocks/blockjob.js'
import { emitPull } from '../core/emit.js'
import { endStreams } from './end-streams.js'
import { terminate } from '../monitor/process.js'
import type { Qemu } from '../core/qemu.js'
import { settle } from './settle.js'
import { writeHeaders } from './stale-headers.js'
import { removeRunDir, saveStatus } from '../core/status.js'
import { startStream } from './stream.js'
import type { Vm } from '../core/vm.js'

/** How far a stream was, in bytes. */
export interface Position {
  offset: number
  size: number
  /** its place in the order of all streams */
  arrival?: number
}

export interface MovedStream {
  disk: DiskDef | undefined
  options: StreamOptions
  position: Position
  /** it had not begun */
  queued: boolean
}

export interface Departure {
  streams: MovedStream[]
  /** holds the status that tells a later process of these streams; removed when they are under way again */
  runDir: string
}

/** A stream as it can be begun again anywhere: images have other indexes there. */
export function movedStream(def: DomainDef, record: BlockJobRecord, position: Position): MovedStream {
  const disk = def.disks.find((candidate) => candidate.target === record.disk)
  const { bandwidth, weight, policy, onShutdown, engine, baseIndex, baseTimeout, arrival } = record
  const base = disk && chainOf(disk).find((image) => image.index === baseIndex && image !== disk.source)
  const options = {
    bandwidth,
    engine,
    ...(weight !== undefined && { weight }),
    ...(policy !== undefined && { policy }),
    ...(onShutdown !== undefined && { onShutdown }),
    ...(baseTimeout !== undefined && { baseTimeout }),
    ...(base !== undefined && { base: formatBackingString(base) }),
  }
  const { offset, size } = position
  const queued = record.queued === true
  return { disk, options, position: { offset, size, ...(arrival !== undefined && { arrival }) }, queued }
}

/** Streams that are on their way keep their slots until they have begun again, or could not. */
export function holdSlots(qemu: Qemu, streams: readonly MovedStream[]): void {
  for (const { queued, position } of streams) if (!queued) qemu.budget.hold(position.arrival ?? 0)
}

function letGoOfSlots(qemu: Qemu, streams: readonly MovedStream[]): void {
  for (const { position } of streams) qemu.budget.letGo(position.arrival ?? 0)
}

/** Under the domain's job: what needs the images that a daemon has. Its streams go on where the domain is then. */
export async function carryStreams(qemu: Qemu, vm: Vm, start: () => Promise<void>): Promise<void> {
  const departure = await leaveOffline(qemu, vm)
  try {
    await start()
  } finally {
    if (departure !== undefined) resumeStreams(qemu, vm, departure)
  }
}

/** A daemon lets go of the images, and what it copied is on disk. */
async function leaveOffline(qemu: Qemu, vm: Vm): Promise<Departure | undefined> {
  for (const job of vm.offline?.blockJobs.all ?? [])
    if (vm.offline !== undefined && job.status === 'concluded') await settle(qemu, vm, vm.offline, job)
  const daemon = vm.offline
  if (daemon === undefined) return undefined
  daemon.moving = true
  saveStatus(vm, daemon)
  for (const job of daemon.blockJobs.all) job.puller?.abort()
  await terminate(daemon.process, daemon.ended, false)
  await writeHeaders(qemu, daemon.def, daemon.staleHeaders)
  const jobs = daemon.blockJobs.all
  const streams = jobs.filter((job) => !job.completed).map((job) => movedStream(daemon.def, job.record, job))
  holdSlots(qemu, streams)
  endStreams(
    qemu,
    vm,
    daemon,
    jobs.filter((job) => job.completed),
    vm.ref,
  )
  return { streams, runDir: daemon.runDir }
}

/** As jobs of their own: who started the domain does not wait for them. */
export function resumeStreams(qemu: Qemu, vm: Vm, { streams, runDir }: Departure): void {
  if (streams.length === 0) {
    removeRunDir(runDir)
    return
  }
  holdSlots(qemu, streams)
  qemu.inBackground(`going on with the streams of domain '${vm.name}'`, async () => {
    try {
      for (const stream of streams) await resume(qemu, vm, stream)
    } finally {
      letGoOfSlots(qemu, streams)
    }
    removeRunDir(runDir)
  })
}

async function resume(qemu: Qemu, vm: Vm, { disk, options, position }: MovedStream): Promise<void> {
  if (disk === undefined) return
  try {
    await vm.jobs.run('stream', async () => {
      // asked for in the metadata, or by a user who was quicker
      if (vm.host?.blockJobs.ofDisk(disk.target) !== undefined) return
      await startStream(qemu, vm, disk.target, options, position)
    })
  } catch (error) {
    emitPull(qemu, vm, disk, VIR_DOMAIN_BLOCK_JOB_FAILED, messageOf(error))
    qemu.warn(`the stream of disk '${disk.target}' of domain '${vm.name}' does not go on: ${messageOf(error)}`)
  }
}
