import type { DomainRef } from '../../driver.js'
import { failFrom } from '../../error.js'
import type { JobKind } from './jobs.js'
import type { Qemu } from './qemu.js'
import type { Live, Vm } from './vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** Runs `work` as a job on a running domain; whether it runs is asked before and again after the wait for the job. */
export function modify<T>(
  qemu: Qemu,
  ref: DomainRef,
  work: (vm: Vm, live: Live) => Promise<T>,
  kind: JobKind = 'modify',
): Promise<T> {
  const vm = qemu.require(ref)
  vm.requireLive()
  requireAtHome(qemu, vm)
  return vm.jobs.run(kind, () => {
    requireAtHome(qemu, vm)
    return work(vm, vm.requireLive())
  })
}

/** The same on a domain that need not run. */
export function atHome<T>(
  qemu: Qemu,
  ref: DomainRef,
  work: (vm: Vm) => Promise<T>,
  kind: JobKind = 'modify',
): Promise<T> {
  const vm = qemu.require(ref)
  requireAtHome(qemu, vm)
  return vm.jobs.run(kind, () => work(qemu.require(ref)))
}

/** VIR_ERR_OPERATION_INVALID while its guest is on its way. A migration that was begun, and no more, comes to nothing. */
export function requireStaying(qemu: Qemu, vm: Vm): void {
  requireAtHome(qemu, vm)
  for (const outgoing of qemu.outgoing.values()) {
    if (outgoing.vm !== vm) continue
    if (outgoing.record.phase !== 'begun')
      throw fail('VIR_ERR_OPERATION_INVALID', `domain '${vm.name}' is being migrated to '${outgoing.record.peer}'`)
    // nothing goes over yet, and whoever began it may be gone: it does not go on with what the destination was told before
    outgoing.begunOn = undefined
  }
}

/** VIR_ERR_OPERATION_INVALID while its guest is on its way, or gone already and only its disks are served from here. */
export function requireAtHome(qemu: Qemu, vm: Vm): void {
  for (const { vm: leaving, record, isOver } of qemu.outgoing.values())
    if (leaving === vm && record.phase !== 'begun' && record.phase !== 'memory' && !isOver) {
      const text = `domain '${vm.name}' has been migrated to '${record.peer}' and serves its ${record.memoryFollows === true ? 'memory' : 'disks'} from here`
      throw fail('VIR_ERR_OPERATION_INVALID', text)
    }
  for (const { record } of qemu.incomingsOf(vm))
    if (record.phase === 'abandoned')
      throw fail(
        'VIR_ERR_OPERATION_INVALID',
        `domain '${vm.name}' was given up by '${record.peer}', from where blocks of its disks did not come`,
      )
    else if (record.phase !== 'streaming' || (vm.live !== undefined && record.memoryFollows === true))
      throw fail('VIR_ERR_OPERATION_INVALID', `domain '${vm.name}' is being migrated from '${record.peer}'`)
}
