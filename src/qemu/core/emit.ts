import type { DiskDef } from '../../conf/domain-def.js'
import {
  VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT,
  VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT,
  VIR_DOMAIN_BLOCK_JOB_TYPE_PULL,
} from '../../constants.gen.js'
import { sourcePath } from '../blocks/block-graph.js'
import type { BlockJobRecord } from '../blocks/blockjob.js'
import type { Qemu } from './qemu.js'
import type { Vm } from './vm.js'

/** VIR_DOMAIN_EVENT_* with a detail of it. */
export function emitLifecycle(qemu: Qemu, vm: Vm, event: number, detail: number, ref = vm.ref): void {
  qemu.host.emit({ kind: 'lifecycle', domain: ref, event, detail })
}

/** VIR_DOMAIN_BLOCK_JOB_TYPE_* */
export function jobType({ commit }: BlockJobRecord): number {
  if (commit === undefined) return VIR_DOMAIN_BLOCK_JOB_TYPE_PULL
  return commit.active === true ? VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT : VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT
}

/** A block job's status VIR_DOMAIN_BLOCK_JOB_READY, _COMPLETED, _FAILED or _CANCELED. */
export function emitBlockJob(
  qemu: Qemu,
  vm: Vm,
  disk: DiskDef,
  { type, status, error }: { type: number; status: number; error?: string | undefined },
  ref = vm.ref,
): void {
  const path = sourcePath(disk.source)
  const event = { kind: 'block-job', domain: ref, disk: disk.target, path, type, status } as const
  qemu.host.emit(error === undefined ? event : { ...event, error })
}

/** The same of a pull that has no record any more, or not yet. */
export function emitPull(qemu: Qemu, vm: Vm, disk: DiskDef, status: number, error?: string, ref = vm.ref): void {
  emitBlockJob(qemu, vm, disk, { type: VIR_DOMAIN_BLOCK_JOB_TYPE_PULL, status, error }, ref)
}
