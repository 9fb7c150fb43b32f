/**
 * How a commit ends. Until its last step every image above the base still holds all that it held, so a QEMU that is killed
 * loses nothing. The last step is written down before it is made: which image the guest writes to must be known whoever dies.
 */
import { rmSync } from 'node:fs'
import type { DiskDef, StorageSource } from '../../conf/domain-def.js'
import * as c from '../../constants.gen.js'
import { messageOf } from '../../error.js'
import { formatNode, formatNodeName, imageOptions } from '../../machine/blockdev.js'
import { formatBackingString } from '../../storage/backing-string.js'
import { probeImage } from '../../storage/probe.js'
import {
  addGuard,
  chainBelow,
  chainOf,
  deleteNodes,
  hasDepth,
  sourcePath,
  withoutIndex,
  writeConfigChain,
} from '../blocks/block-graph.js'
import type { BlockJob, BlockJobRecord, CommitRecord } from '../blocks/blockjob.js'
import { commitImages, type CommitImages } from './commit-checks.js'
import { saveConfig } from '../core/config.js'
import { emitBlockJob, jobType } from '../core/emit.js'
import type { Qemu } from '../core/qemu.js'
import type { JobEnd } from './settle.js'
import { saveStatus, saveStatusOrSay } from '../core/status.js'
import type { StreamHost, Vm } from '../core/vm.js'

const diskOf = (host: StreamHost, { disk }: BlockJobRecord): DiskDef | undefined =>
  host.def.disks.find(({ target }) => target === disk)

/** Base and guest are in step: it is for the user to say what becomes of that. */
export function commitReady(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): void {
  const disk = diskOf(host, job.record)
  if (disk === undefined) return
  if (disk.mirror !== undefined) disk.mirror.ready = true
  saveStatusOrSay(vm, host, (text) => qemu.warn(text))
  emitBlockJob(qemu, vm, disk, { type: jobType(job.record), status: c.VIR_DOMAIN_BLOCK_JOB_READY })
}

/**
 * All is in the base, and the guest's requests wait until the graph has changed; or the header of the image above is about to
 * name the base.
 */
export async function finalizeCommit(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): Promise<void> {
  const { commit, id } = job.record
  const disk = diskOf(host, job.record)
  const images = commit && disk && commitImages(disk, commit)
  if (commit === undefined || disk === undefined || images === undefined) return
  try {
    if (commit.active === true) notePivot(qemu, vm, host, disk, commit)
    else await host.monitor.flushNode(formatNodeName(images.base))
  } catch (error) {
    job.failure = `what was committed cannot be written down: ${messageOf(error)}`
    await host.monitor.jobCancel(id)
    return
  }
  if (mayEnd(vm, host, job)) await host.monitor.jobFinalize(id)
}

/** Asked when all that comes before the last step of a job is done. */
export const mayEnd = (vm: Vm, host: StreamHost, job: BlockJob): boolean =>
  vm.host === host && job.status === 'pending' && !host.blockJobs.isHeld

/** QEMU has flushed the base: from here on a start from it is right, whether QEMU gets to the pivot or not. */
function notePivot(qemu: Qemu, vm: Vm, host: StreamHost, disk: DiskDef, commit: CommitRecord): void {
  const images = commitImages(disk, commit)
  if (images === undefined || commit.pivoted === true) return
  const restore = moveConfig(qemu, vm, disk.source, images.base)
  try {
    commit.pivoted = true
    saveStatus(vm, host)
  } catch (error) {
    delete commit.pivoted
    restore()
    throw error
  }
}

/** In the persistent definition `to` becomes the disk's image where it is `from`. Answers what takes that back. */
function moveConfig(qemu: Qemu, vm: Vm, from: StorageSource | undefined, to: StorageSource): () => void {
  const { config } = vm
  const own = config?.disks.find(({ source }) => source !== undefined && sourcePath(source) === sourcePath(from))
  const before = own?.source
  if (config === undefined || own === undefined || before === undefined) return () => undefined
  const restore = (): void => {
    own.source = before
    saveConfig(qemu.root, config)
  }
  own.source = withoutIndex(to)
  try {
    saveConfig(qemu.root, config)
  } catch (error) {
    own.source = before
    throw error
  }
  return restore
}

/** Under the domain's job: takes a job that has ended to its end. `told`: how QEMU says it went. */
export async function settleCommit(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob, told: JobEnd): Promise<JobEnd> {
  const { record } = job
  const disk = diskOf(host, record)
  let end = told
  if (disk !== undefined && end.status === 'completed' && record.commit?.dropped === undefined) {
    // never forget an image on a job's word alone
    if (await hasCommitted(host, disk, record)) shorten(qemu, vm, host, disk, record)
    else end = { status: 'failed', error: 'the job ended well but the disk still has the images that it had' }
  }
  if (end.status !== 'completed') takeBack(qemu, vm, host, disk, job)
  if ((await host.monitor.queryJobs()).some(({ id }) => id === record.id)) await host.monitor.jobDismiss(record.id)
  const images = disk && record.commit && commitImages(disk, record.commit)
  if (disk !== undefined && end.status === 'completed') await tidyUp(qemu, vm, host, disk, record)
  else if (disk !== undefined && images !== undefined) await putBack(qemu, vm, host, disk, images)
  host.blockJobs.forget(job)
  if (vm.host === host) saveStatusOrSay(vm, host, (text) => qemu.warn(text))
  if (disk !== undefined) emitEnd(qemu, vm, disk, record, end)
  return end
}

export function emitEnd(qemu: Qemu, vm: Vm, disk: DiskDef, record: BlockJobRecord, end: JobEnd, ref = vm.ref): void {
  const status = {
    completed: c.VIR_DOMAIN_BLOCK_JOB_COMPLETED,
    canceled: c.VIR_DOMAIN_BLOCK_JOB_CANCELED,
    failed: c.VIR_DOMAIN_BLOCK_JOB_FAILED,
  }[end.status]
  emitBlockJob(qemu, vm, disk, { type: jobType(record), status, error: 'error' in end ? end.error : undefined }, ref)
}

/** Asked of QEMU itself. */
function hasCommitted(host: StreamHost, disk: DiskDef, { commit }: BlockJobRecord): Promise<boolean> {
  const images = commit && commitImages(disk, commit)
  if (images === undefined) return Promise.resolve(false)
  const left = chainOf(disk).length - images.leaving.length
  return hasDepth(host.monitor, disk, left - 1)
}

/** The images are out of the chain in both definitions; those that left are written down until they are taken away. */
function shorten(qemu: Qemu, vm: Vm, host: StreamHost, disk: DiskDef, record: BlockJobRecord): void {
  const { commit } = record
  const images = commit && commitImages(disk, commit)
  if (commit === undefined || images === undefined) return
  const { source } = disk
  const { base, parent, leaving } = images
  if (commit.active === true) notePivot(qemu, vm, host, disk, commit)
  commit.dropped = leaving
  if (parent === undefined) disk.source = base
  else parent.backingStore = base
  delete disk.mirror
  let restore = (): void => undefined
  try {
    if (parent !== undefined) restore = cutConfig(qemu, vm, disk)
    saveStatus(vm, host)
  } catch (error) {
    delete commit.dropped
    if (parent !== undefined && leaving[0] !== undefined) parent.backingStore = leaving[0]
    else if (source !== undefined) disk.source = source
    restore()
    throw error
  }
}

/** The chain of the persistent definition, which may also leave it to the images' headers. Answers what takes that back. */
function cutConfig(qemu: Qemu, vm: Vm, disk: DiskDef): () => void {
  const { config } = vm
  const own = config?.disks.find(({ target }) => target === disk.target)?.source
  const restore = own?.backingStore == null ? undefined : writeConfigChain(config, disk)
  if (config === undefined || restore === undefined) return () => undefined
  saveConfig(qemu.root, config)
  return () => {
    restore()
    saveConfig(qemu.root, config)
  }
}

/** It has not come to its end: the disk keeps what it has. */
function takeBack(qemu: Qemu, vm: Vm, host: StreamHost, disk: DiskDef | undefined, { record }: BlockJob): void {
  const { commit } = record
  if (commit === undefined) return
  commit.over = true
  const images = disk && commitImages(disk, commit)
  if (commit.pivoted === true && disk?.source !== undefined && images !== undefined)
    moveConfig(qemu, vm, images.base, disk.source)
  delete commit.pivoted
  if (vm.host === host) saveStatusOrSay(vm, host, (text) => qemu.warn(text))
}

/** Nodes, locks, labels and, if that is wanted, files of images that left the chain; what was written to is only read again. */
async function tidyUp(qemu: Qemu, vm: Vm, host: StreamHost, disk: DiskDef, { commit }: BlockJobRecord): Promise<void> {
  const warn = (text: string): void => qemu.warn(`domain '${vm.name}': ${text}`)
  const say = (error: unknown): void => warn(messageOf(error))
  const dropped = commit?.dropped ?? []
  await deleteNodes(host.monitor, new Map(), disk, dropped, warn)
  // the first of them was the disk's own, if that was committed
  const [own] = dropped
  const former = commit?.active === true && own !== undefined ? { ...disk, source: own } : disk
  await host.access.revokeImages(former, dropped)
  if (commit?.delete === true) deleteImages(dropped, warn)
  if (commit?.active !== true) await readOnly(host, disk).catch(say)
  const { source } = disk
  if (source?.backingStore) await addGuard(host.monitor, host.guards, disk).catch(say)
  else if (source !== undefined)
    // it was opened as an image that is only read
    await host.monitor.blockdevReopen(formatNode(source, { ...imageOptions(disk, source), backing: null })).catch(say)
}

async function readOnly(host: StreamHost, disk: DiskDef): Promise<void> {
  for (const image of chainBelow(disk.source)) await host.access.closeForWriting(disk, image)
}

export function deleteImages(images: readonly StorageSource[], warn: (text: string) => void): void {
  for (const image of images) {
    try {
      if (image.type === 'file') rmSync(image.path, { force: true })
      else warn(`image '${sourcePath(image)}' is no file and stays`)
    } catch (error) {
      warn(`image '${sourcePath(image)}' is not deleted: ${messageOf(error)}`)
    }
  }
}

/** Under the domain's job: nothing has become of it, and nothing of it is left. */
export async function putBack(
  qemu: Qemu,
  vm: Vm,
  host: StreamHost,
  disk: DiskDef,
  { base, parent }: CommitImages,
): Promise<void> {
  const say = (error: unknown): void => qemu.warn(`domain '${vm.name}': ${messageOf(error)}`)
  delete disk.mirror
  for (const image of parent === undefined ? [base] : [base, parent])
    await host.access.closeForWriting(disk, image).catch(say)
  await addGuard(host.monitor, host.guards, disk).catch(say)
  saveStatusOrSay(vm, host, say)
}

/** QEMU is gone, and nobody can ask it: has the commit come to its end? */
export async function hasEnded(
  def: { disks: readonly DiskDef[] },
  { disk: target, commit }: BlockJobRecord,
): Promise<boolean> {
  if (commit?.dropped !== undefined || commit?.pivoted === true) return true
  const disk = def.disks.find((candidate) => candidate.target === target)
  const images = commit && disk && commitImages(disk, commit)
  if (images?.parent === undefined) return false
  const wanted = commit?.relative ?? formatBackingString(images.base)
  return probeImage(images.parent).then(
    ({ backing }) => backing?.string === wanted,
    () => false,
  )
}

/** The same when it has: the definition follows. */
export function followCommit(qemu: Qemu, vm: Vm, disk: DiskDef, { commit }: BlockJobRecord): void {
  const images = commit && commitImages(disk, commit)
  if (commit?.dropped === undefined && images?.parent !== undefined) {
    images.parent.backingStore = images.base
    cutConfig(qemu, vm, disk)
  }
  const dropped = commit?.dropped ?? images?.leaving ?? []
  if (commit?.delete === true) deleteImages(dropped, (text) => qemu.warn(text))
}
