/** The end of a block job: what it changed is written down everywhere before QEMU may forget that there was a job. */
import type { DiskDef, StorageSource } from '../../conf/domain-def.js'
import {
  VIR_DOMAIN_BLOCK_JOB_CANCELED,
  VIR_DOMAIN_BLOCK_JOB_COMPLETED,
  VIR_DOMAIN_BLOCK_JOB_FAILED,
} from '../../constants.gen.js'
import { messageOf } from '../../error.js'
import { addGuard, chainOf, cutChain, cutConfigChain, deleteNodes } from '../blocks/block-graph.js'
import type { BlockJob } from '../blocks/blockjob.js'
import { settleCommit } from './commit-settle.js'
import { saveConfig } from '../core/config.js'
import { emitPull } from '../core/emit.js'
import { hasLetGo } from './detached.js'
import { settleFinal } from './final-image.js'
import { removeBaseExport } from '../blocks/lost-requests.js'
import type { JobInfo } from '../monitor/types.js'
import type { Qemu } from '../core/qemu.js'
import { saveStatus, saveStatusOrSay } from '../core/status.js'
import type { StreamHost, Vm } from '../core/vm.js'

export type JobEnd = { status: 'completed' } | { status: 'canceled' } | { status: 'failed'; error: string }

/** QEMU's strerror(ECANCELED), the error of a job that was cancelled */
const CANCELED = /operation cancell?ed/i

/** ms until an end that could not be written down is tried again */
const RETRY = 5_000

/** A job ended and nobody waits for it: settle it as soon as the domain is free. */
export function settleLater(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): void {
  const attempt = async (): Promise<void> => {
    if (vm.host === host && host.blockJobs.ofDisk(job.record.disk) === job) await settle(qemu, vm, host, job)
  }
  qemu.inBackground(`settling the stream of '${job.record.disk}'`, async () => {
    try {
      // nobody would ask again, so it waits for the domain as long as that takes
      await vm.jobs.run('settle', attempt, Infinity)
    } catch (error) {
      // a full disk: the job stays in QEMU until what it changed is written down
      if (vm.host === host && !host.monitor.isClosed) setTimeout(() => settleLater(qemu, vm, host, job), RETRY).unref()
      throw error
    }
  })
}

/** Under the domain's job: takes an ended job to its end, and says how it went. */
export async function settle(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): Promise<JobEnd> {
  const disk = host.def.disks.find((candidate) => candidate.target === job.record.disk)
  const info = (await host.monitor.queryJobs()).find((candidate) => candidate.id === job.record.id)
  const base = disk && chainOf(disk).find((image) => image.index === job.record.baseIndex && image !== disk.source)
  let end = resultOf(job, info)
  if (job.record.commit !== undefined) return settleCommit(qemu, vm, host, job, end)
  let dropped: StorageSource[] = []
  if (end.status === 'completed' && disk !== undefined) {
    // never forget a backing image on a job's word alone
    if (await hasLetGo(host, disk, base)) dropped = detach(qemu, vm, host, disk, base)
    else end = { status: 'failed', error: 'the job ended well but the image still has its backing image' }
  }
  const warn = (text: string): void => qemu.warn(`domain '${vm.name}': ${text}`)
  if (end.status !== 'completed') {
    // a stream that QEMU does not know any more would be begun again by a later process
    host.blockJobs.forget(job)
    saveStatusOrSay(vm, host, warn)
  }
  if (info !== undefined) await host.monitor.jobDismiss(job.record.id)
  host.blockJobs.forget(job)
  qemu.budget.update()
  await host.exports.remove(job.record.disk).catch((error: unknown) => warn(messageOf(error)))
  if (disk !== undefined) {
    await removeBaseExport(host.exports, disk, dropped).catch((error: unknown) => warn(messageOf(error)))
    await deleteNodes(host.monitor, host.guards, disk, dropped, warn)
    await host.access.revokeImages(disk, dropped)
    await settleFinal(qemu, vm, host, disk)
    await addGuard(host.monitor, host.guards, disk).catch((error: unknown) => warn(messageOf(error)))
  }
  if (vm.host === host) saveStatusOrSay(vm, host, warn)
  if (disk !== undefined && host.mode === 'offline')
    await host.release(disk).catch((error: unknown) => qemu.warn(`domain '${vm.name}': ${messageOf(error)}`))
  if (disk !== undefined) announce(qemu, vm, disk, job, end)
  return end
}

/** Under the domain's job: a stream that never got as far as to have a job in QEMU is over. */
export async function endPull(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob, end: JobEnd): Promise<void> {
  const disk = host.def.disks.find((candidate) => candidate.target === job.record.disk)
  host.blockJobs.forget(job)
  qemu.budget.update()
  job.concluded()
  const warn = (error: unknown): void => qemu.warn(`domain '${vm.name}': ${messageOf(error)}`)
  await host.exports.remove(job.record.disk).catch(warn)
  if (disk !== undefined) await removeBaseExport(host.exports, disk, chainOf(disk)).catch(warn)
  if (disk !== undefined && job.record.baseIndex !== undefined)
    await addGuard(host.monitor, host.guards, disk).catch(warn)
  if (vm.host === host) saveStatusOrSay(vm, host, warn)
  if (disk !== undefined && host.mode === 'offline')
    await host.release(disk).catch((error: unknown) => qemu.warn(`domain '${vm.name}': ${messageOf(error)}`))
  if (disk !== undefined) announce(qemu, vm, disk, job, end)
}

function resultOf(job: BlockJob, info: JobInfo | undefined): JobEnd {
  if (job.failure !== undefined) return { status: 'failed', error: job.failure }
  const error = info?.error ?? job.error
  if (error !== undefined) return CANCELED.test(error) ? { status: 'canceled' } : { status: 'failed', error }
  const walkedAll = info === undefined ? job.completed : info['current-progress'] === info['total-progress']
  return walkedAll ? { status: 'completed' } : { status: 'failed', error: 'the job ended before its end' }
}

/** The chain is cut in both definitions and written down; answers the images that left it. */
function detach(qemu: Qemu, vm: Vm, host: StreamHost, disk: DiskDef, base: StorageSource | undefined): StorageSource[] {
  const own = vm.config?.disks.find((candidate) => candidate.target === disk.target)?.source
  const before = [disk.source, own].map((image) => [image, image?.backingStore] as const)
  try {
    const dropped = cutChain(disk, base)
    host.staleHeaders.delete(disk.target)
    if (cutConfigChain(vm.config, disk, base) && vm.config !== undefined) saveConfig(qemu.root, vm.config)
    saveStatus(vm, host)
    return dropped
  } catch (error) {
    for (const [image, backing] of before)
      if (image !== undefined && backing !== undefined) image.backingStore = backing
    throw error
  }
}

function announce(qemu: Qemu, vm: Vm, disk: DiskDef, job: BlockJob, end: JobEnd): void {
  for (const incoming of qemu.incomingsOf(vm)) incoming.streamEnded()
  if (end.status === 'completed') {
    const size = job.size
    qemu.host.emit({ kind: 'stream-progress', domain: vm.ref, disk: disk.target, offset: size, size })
    emitPull(qemu, vm, disk, VIR_DOMAIN_BLOCK_JOB_COMPLETED)
  } else if (end.status === 'canceled') {
    emitPull(qemu, vm, disk, VIR_DOMAIN_BLOCK_JOB_CANCELED)
  } else {
    emitPull(qemu, vm, disk, VIR_DOMAIN_BLOCK_JOB_FAILED, end.error)
  }
}
