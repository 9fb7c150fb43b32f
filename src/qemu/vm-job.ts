import type { DomainRef } from '../driver.js'
import type { JobKind } from './jobs.js'
import type { Qemu } from './qemu.js'
import type { Live, Vm } from './vm.js'

/** Runs `work` as a job on a running domain; whether it runs is asked before and again after the wait for the job. */
export function modify<T>(
  qemu: Qemu,
  ref: DomainRef,
  work: (vm: Vm, live: Live) => Promise<T>,
  kind: JobKind = 'modify',
): Promise<T> {
  const vm = qemu.require(ref)
  vm.requireLive()
  return vm.jobs.run(kind, () => work(vm, vm.requireLive()))
}
