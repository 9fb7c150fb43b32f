/** VIR_STREAM_DISK_ONE: one unit of a disk, and where the next one is. */
import { setTimeout as delay } from 'node:timers/promises'
import type { DiskDef } from '../../conf/domain-def.js'
import { readDomainWeight } from '../../conf/stream-request.js'
import { checkStreamable } from '../../conf/streamable.js'
import type { StreamOptions } from '../../driver.js'
import { failFrom } from '../../error.js'
import type { NbdClient } from '../../nbd/client.js'
import { DEFAULT_UNIT, MAX_UNIT, nextUnit, type Range } from '../../nbd/allocation-depth.js'
import { NbdError } from '../../nbd/error.js'
import { addGuard, clusterSize } from '../blocks/block-graph.js'
import type { BlockJob } from '../blocks/blockjob.js'
import { findDisk } from '../blocks/disk-names.js'
import { beginJob, reasonOf } from './engines.js'
import { becomesRaw } from './final-image.js'
import { NotInThread } from '../blocks/nbd-exports.js'
import { offlineDefinition, openOffline, resolveOffline } from './offline.js'
import type { Qemu } from '../core/qemu.js'
import { settle } from './settle.js'
import { checkLinks } from './checks.js'
import type { StreamHost, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms that one unit may take */
const UNIT_TIMEOUT = 25_000
/** ms that a unit of a disk with an I/O thread waits until the guest uses it, and between two looks */
const USE_TIMEOUT = 5_000
const USE_INTERVAL = 100
/** ms that dropping the backing link may take, when nothing is left to copy */
const LINK_TIMEOUT = 30_000

/**
 * Under the domain's job: pulls at most one unit at or behind `offset` and makes it durable; a unit is whole clusters. Answers
 * the offset for the next call; the size of the disk when nothing is left there. When nothing is left on the whole disk the
 * link is dropped. Without a guest a storage daemon has the images as long as the call takes.
 */
export async function streamUnit(
  qemu: Qemu,
  vm: Vm,
  name: string,
  offset: number,
  options: StreamOptions,
): Promise<number> {
  const before = vm.host
  const def = before?.def ?? offlineDefinition(vm)
  const disk = findDisk(def, name)
  if (before?.blockJobs.ofDisk(disk.target) !== undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${disk.target}' already in active block job`)
  checkOptions(options)
  if (vm.live === undefined) await resolveOffline(def, disk)
  checkStreamable(disk)
  if (becomesRaw(qemu, vm, disk.target) || qemu.incomingsOf(vm).some((incoming) => incoming.writesBack()))
    throw fail(
      'VIR_ERR_OPERATION_INVALID',
      `disk '${disk.target}' follows its guest whole: it becomes raw, or is written back`,
    )
  await checkLinks(disk)
  if (before !== undefined) vm.requireSame(before)
  const host = vm.live ?? (await openOffline(qemu, vm, def, disk))
  let open = host.mode === 'offline'
  try {
    const { next, size } = await pullUnit(qemu, vm, host, disk, offset, options)
    if (next !== undefined) return next
    const job = await dropLink(qemu, vm, host, disk)
    open = false // the end of a job closes what it had
    await settleLink(qemu, vm, host, job)
    return size
  } finally {
    if (open && host.mode === 'offline' && vm.offline === host && host.blockJobs.ofDisk(disk.target) === undefined)
      await host.release(disk)
  }
}

function checkOptions({ unit = DEFAULT_UNIT, base }: StreamOptions): void {
  if (unit > MAX_UNIT) throw fail('VIR_ERR_INVALID_ARG', `unit '${unit}' is larger than ${MAX_UNIT} bytes`)
  if (base !== undefined)
    throw fail(
      'VIR_ERR_ARGUMENT_UNSUPPORTED',
      'single units are streamed from the whole backing chain, not down to a base',
    )
}

/** `next` is undefined when nothing is left on the whole disk. */
async function pullUnit(
  qemu: Qemu,
  vm: Vm,
  host: StreamHost,
  disk: DiskDef,
  offset: number,
  { unit = DEFAULT_UNIT, weight }: StreamOptions,
): Promise<{ next: number | undefined; size: number }> {
  const client = await openInTime(host, disk)
  if (offset > client.size)
    throw fail(
      'VIR_ERR_INVALID_ARG',
      `offset '${offset}' is behind the end of disk '${disk.target}', ${client.size} bytes`,
    )
  try {
    const range = await unitAt(client, offset, unit, await clusterSize(host.monitor, disk))
    const end = range === undefined ? client.size : range.offset + range.length
    if (range !== undefined) {
      await withDeadline(client.cache(range.offset, range.length), disk.target)
      await client.flush()
      qemu.units.charge(unitKey(vm, disk), end - range.offset, weight ?? readDomainWeight(host.def) ?? 1)
      qemu.host.emit({ kind: 'stream-unit', domain: vm.ref, disk: disk.target, offset: end, size: client.size })
    }
    const next = (await nextUnit(client, end, 1))?.offset ?? client.size
    const left = next < client.size || (await nextUnit(client, 0, 1)) !== undefined
    return { next: left ? next : undefined, size: client.size }
  } catch (error) {
    if (!(error instanceof NbdError)) throw error
    throw fail(
      'VIR_ERR_OPERATION_FAILED',
      `a unit of disk '${disk.target}' at ${offset} failed: ${reasonOf(error)}`,
      error,
    )
  }
}

/** A guest that has just been started uses its disks soon. */
async function openInTime(host: StreamHost, disk: DiskDef): Promise<NbdClient> {
  const end = performance.now() + USE_TIMEOUT
  for (;;) {
    try {
      return await host.exports.open(disk)
    } catch (error) {
      if (!(error instanceof NotInThread) || performance.now() > end) throw error
      await delay(USE_INTERVAL)
    }
  }
}

/** Waits, outside of the domain's job, until the bandwidth of all streams has room for another unit of the disk. */
export async function awaitUnit(qemu: Qemu, vm: Vm, name: string, signal?: AbortSignal): Promise<void> {
  await qemu.units.wait(unitKey(vm, findDisk(vm.def, name)), signal)
}

const unitKey = (vm: Vm, disk: DiskDef): string => `${vm.uuid}/${disk.target}`

/** The first unit at or behind `offset`, whole clusters of the disk's own image: that is what QEMU copies in any case. */
async function unitAt(client: NbdClient, offset: number, unit: number, cluster: number): Promise<Range | undefined> {
  if (offset === client.size) return undefined
  const first = Math.floor(offset / cluster) * cluster
  return nextUnit(client, first, Math.ceil(unit / cluster) * cluster)
}

/** Everything is in the disk's own image: QEMU's job has nothing to copy and drops the link. Answers the job, ended. */
async function dropLink(qemu: Qemu, vm: Vm, host: StreamHost, disk: DiskDef): Promise<BlockJob> {
  const { target } = disk
  await addGuard(host.monitor, host.guards, disk)
  const job = host.blockJobs.register({
    id: `stream-${target}`,
    disk: target,
    bandwidth: 0,
    engine: 'pull',
    phase: 'job',
  })
  job.budgeted = false
  const ended = host.blockJobs.wait(job, LINK_TIMEOUT)
  await beginJob(qemu, vm, host, job)
  if (await ended) return job
  throw fail(
    'VIR_ERR_OPERATION_TIMEOUT',
    `all of disk '${target}' is streamed, its backing link is dropped as soon as its base answers`,
  )
}

async function settleLink(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): Promise<void> {
  const end = await settle(qemu, vm, host, job)
  if (end.status !== 'completed')
    throw fail(
      'VIR_ERR_OPERATION_FAILED',
      `the backing link of disk '${job.record.disk}' could not be dropped: ${'error' in end ? end.error : end.status}`,
    )
}

async function withDeadline(work: Promise<void>, target: string): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    const error = fail(
      'VIR_ERR_OPERATION_TIMEOUT',
      `the base of disk '${target}' did not answer within ${UNIT_TIMEOUT} ms`,
    )
    timer = setTimeout(() => reject(error), UNIT_TIMEOUT)
  })
  try {
    await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
    work.catch(() => undefined)
  }
}
