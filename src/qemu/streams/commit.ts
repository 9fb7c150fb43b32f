/** virDomainBlockCommit: what images of a chain hold goes into one below them, by QEMU's job. */
import type { DiskDef } from '../../conf/domain-def.js'
import * as c from '../../constants.gen.js'
import type { HypervisorOps } from '../../driver.js'
import { failFrom, messageOf } from '../../error.js'
import { formatNodeName } from '../../machine/blockdev.js'
import { formatBackingString } from '../../storage/backing-string.js'
import { removeGuard, sourcePath } from '../blocks/block-graph.js'
import type { BlockJob, CommitRecord } from '../blocks/blockjob.js'
import { busyImage } from '../access/busy-images.js'
import { checkCommittable, chooseImages, commitImages, type CommitImages, relativeBase } from './commit-checks.js'
import { putBack } from './commit-settle.js'
import { findDisk } from '../blocks/disk-names.js'
import { follow } from './progress.js'
import type { Qemu } from '../core/qemu.js'
import { saveStatus } from '../core/status.js'
import { checkLinks } from './checks.js'
import { modify, requireStaying } from '../core/vm-job.js'
import type { Live, StreamHost, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

interface Wanted {
  base: string | undefined
  top: string | undefined
  /** bytes/s, 0: no limit */
  bandwidth: number
  flags: number
}

/** Under the domain's job: registered and written down before QEMU is told. */
async function commit(qemu: Qemu, vm: Vm, live: Live, name: string, wanted: Wanted): Promise<void> {
  requireStaying(qemu, vm)
  const disk = findDisk(live.def, name)
  if (live.blockJobs.ofDisk(disk.target) !== undefined)
    throw fail('VIR_ERR_OPERATION_UNSUPPORTED', `disk '${disk.target}' already in active block job`)
  const images = chooseImages(disk, wanted, wanted.flags)
  checkCommittable(disk, images)
  const record = await recordOf(images, wanted.flags)
  await checkLinks(disk)
  vm.requireSame(live)
  const { target } = disk
  const { bandwidth } = wanted
  const id = `commit-${target}`
  const job = live.blockJobs.register({ id, disk: target, bandwidth, commit: record, engine: 'job', phase: 'job' })
  try {
    saveStatus(vm, live)
    await beginCommit(vm, live, job)
    follow(qemu, vm, live)
  } catch (error) {
    live.blockJobs.forget(job)
    if (vm.live === live) await putBack(qemu, vm, live, disk, images)
    throw error
  }
}

async function recordOf(images: CommitImages, flags: number): Promise<CommitRecord> {
  const { top, base, parent } = images
  if (top.index === undefined || base.index === undefined)
    throw fail('VIR_ERR_INTERNAL_ERROR', `image '${sourcePath(top)}' is not in use`)
  const relative = (flags & c.VIR_DOMAIN_BLOCK_COMMIT_RELATIVE) === 0 ? undefined : await relativeBase(images)
  return {
    top: top.index,
    base: base.index,
    ...(parent === undefined && { active: true as const }),
    ...(relative !== undefined && { relative }),
    ...((flags & c.VIR_DOMAIN_BLOCK_COMMIT_DELETE) !== 0 && { delete: true as const }),
  }
}

/** Under the domain's job: lets QEMU write to what it has only read, and begin. The guard would hide the chain from the job. */
export async function beginCommit(vm: Vm, live: Live, job: BlockJob): Promise<void> {
  const { id, disk: target, commit: record } = job.record
  const disk = findDisk(live.def, target)
  const images = record && commitImages(disk, record)
  if (disk.source === undefined || record === undefined || images === undefined)
    throw fail('VIR_ERR_INTERNAL_ERROR', `the images of disk '${target}' are not those that are to be committed`)
  const { base, parent, top } = images
  // one that single units were streamed by shows the image that may go
  await live.exports.remove(target)
  for (const image of parent === undefined ? [base] : [base, parent]) await live.access.openForWriting(disk, image)
  await removeGuard(live.monitor, live.guards, disk)
  vm.requireSame(live)
  saveStatus(vm, live)
  job.told = job.record.bandwidth
  await live.monitor
    .blockCommit({
      'job-id': id,
      device: formatNodeName(disk.source),
      'top-node': formatNodeName(top),
      'base-node': formatNodeName(base),
      ...(parent && { 'backing-file': record.relative ?? formatBackingString(base) }),
      speed: job.told,
      'on-error': 'report',
      'filter-node-name': id,
    })
    .catch((error: unknown) => {
      throw busyImage(messageOf(error), [sourcePath(base)], error) ?? error
    })
  showMirror(vm, live, disk, job)
}

/** A commit of the disk's own image, as libvirt shows it. */
export function showMirror(vm: Vm, host: StreamHost, disk: DiskDef, job: BlockJob): void {
  const { commit } = job.record
  const images = commit?.active === true ? commitImages(disk, commit) : undefined
  // it may be ready already, or over
  if (images === undefined || host.blockJobs.ofDisk(disk.target) !== job) return
  disk.mirror = { source: images.base, ready: job.ready }
  saveStatus(vm, host)
}

export function commitOps(qemu: Qemu): Pick<HypervisorOps, 'domainBlockCommit'> {
  return {
    domainBlockCommit: (ref, disk, base, top, bandwidth, flags) =>
      modify(qemu, ref, (vm, live) => commit(qemu, vm, live, disk, { base, top, bandwidth, flags })),
  }
}
