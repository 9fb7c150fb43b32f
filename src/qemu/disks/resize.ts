/** virDomainBlockResize: another size for a disk of a running domain. */
import type { StorageSource } from '../../conf/domain-def.js'
import type { HypervisorOps } from '../../driver.js'
import { failFrom } from '../../error.js'
import { diskNodes } from '../../machine/blockdev.js'
import { findDisk } from '../blocks/disk-names.js'
import type { Qemu } from '../core/qemu.js'
import { modify, requireStaying } from '../core/vm-job.js'
import type { Live, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** bytes of which the sizes of qcow2 and QED are multiples */
const SECTOR = 512

/**
 * Under the domain's job. The node that the guest's device uses is the one to resize: whoever resizes one below it changes
 * the image, and the guest does not hear of that.
 */
async function resize(qemu: Qemu, vm: Vm, live: Live, name: string, size: number): Promise<void> {
  requireStaying(qemu, vm)
  const disk = findDisk(live.def, name)
  const { source, target } = disk
  if (source === undefined || disk.readonly || disk.device === 'cdrom')
    throw fail('VIR_ERR_OPERATION_UNSUPPORTED', `can't resize empty or readonly disk '${target}'`)
  if (live.blockJobs.ofDisk(target) !== undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' already in active block job`)
  // one that single units were streamed by keeps the size as it is
  await live.exports.remove(target)
  await live.monitor.blockResize(diskNodes(disk).device, wholeSize(source, size))
}

function wholeSize({ format }: StorageSource, size: number): number {
  return format === 'qcow2' || format === 'qed' ? Math.ceil(size / SECTOR) * SECTOR : size
}

export function resizeOps(qemu: Qemu): Pick<HypervisorOps, 'domainBlockResize'> {
  return {
    domainBlockResize: (ref, disk, size) => modify(qemu, ref, (vm, live) => resize(qemu, vm, live, disk, size)),
  }
}
