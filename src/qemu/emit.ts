import type { DiskDef } from '../conf/domain-def.js'
import { VIR_DOMAIN_BLOCK_JOB_TYPE_PULL } from '../constants.gen.js'
import { sourcePath } from './block-graph.js'
import type { Qemu } from './qemu.js'
import type { Vm } from './vm.js'

/** VIR_DOMAIN_EVENT_* with a detail of it. */
export function emitLifecycle(qemu: Qemu, vm: Vm, event: number, detail: number, ref = vm.ref): void {
  qemu.host.emit({ kind: 'lifecycle', domain: ref, event, detail })
}

/** A pull's status VIR_DOMAIN_BLOCK_JOB_READY, _COMPLETED, _FAILED or _CANCELED. */
export function emitPull(qemu: Qemu, vm: Vm, disk: DiskDef, status: number, error?: string, ref = vm.ref): void {
  const type = VIR_DOMAIN_BLOCK_JOB_TYPE_PULL
  const event = {
    kind: 'block-job',
    domain: ref,
    disk: disk.target,
    path: sourcePath(disk.source),
    type,
    status,
  } as const
  qemu.host.emit(error === undefined ? event : { ...event, error })
}
