import { failFrom } from '../error.js'
import type { DomainDef } from '../conf/domain-def.js'
import type { DefinitionCaps, MachineCaps } from './definition-caps.js'

const fail = failFrom('VIR_FROM_QEMU')

export type Chipset = 'i440fx' | 'q35'

/** Which of the two PC chipsets a machine name stands for (qemuDomainMachineIsQ35, qemuDomainMachineIsI440FX). */
export function chipsetOf(machine: string): Chipset | undefined {
  if (machine === 'q35' || machine.startsWith('pc-q35')) return 'q35'
  if (machine === 'pc' || /^pc-(i440|[01]\.)/.test(machine)) return 'i440fx'
  return undefined
}

export function isQ35(def: DomainDef): boolean {
  return chipsetOf(def.os.machine) === 'q35'
}

export function findMachine(caps: DefinitionCaps, machine: string): MachineCaps | undefined {
  return caps.machines.find((one) => one.name === machine || one.alias === machine)
}

/**
 * Settles architecture and machine: the default ones when none is given, the versioned name for an alias, so that a
 * newer QEMU does not change the guest's hardware (qemuCanonicalizeMachine). Others than x86 and the machines with a
 * PC chipset are VIR_ERR_CONFIG_UNSUPPORTED.
 */
export function settleMachine(def: DomainDef, caps: DefinitionCaps): void {
  const { os } = def
  if (os.type !== 'hvm') throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `os type '${os.type}' is not supported`)
  if (!os.arch) os.arch = 'x86_64'
  if (os.arch !== 'x86_64' && os.arch !== 'i686')
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `guests of architecture '${os.arch}' are not supported`)
  const wanted = os.machine || defaultMachine(caps)
  const machine = findMachine(caps, wanted)
  if (!machine)
    throw fail(
      'VIR_ERR_CONFIG_UNSUPPORTED',
      `emulator '${def.emulator ?? caps.emulator}' does not support machine type '${wanted}'`,
    )
  if (!chipsetOf(machine.name))
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `machine type '${wanted}' is not supported, only 'pc' and 'q35' are`)
  os.machine = machine.name
}

function defaultMachine(caps: DefinitionCaps): string {
  return caps.machines.find((machine) => machine.isDefault)?.name ?? 'pc'
}
