/**
 * What libvirt's qemu driver does to a definition after parsing: it fills in everything that was left open, so that the
 * guest keeps its hardware for ever, whatever QEMU comes later (virDomainDefPostParse, qemuDomainDefPostParse).
 */
import type { CpuDef, DomainDef } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { assignAddresses } from './addresses.js'
import { assignDriveAddresses, sortDisks } from './addresses-drive.js'
import {
  addImpliedControllers,
  addMachineControllers,
  orderControllers,
  settleControllerModels,
} from './controllers.js'
import { settleChardevs } from './defaults-chardevs.js'
import { settleDisk, settleGraphics, settleInputs, settleNetworkModels, settleVideos } from './defaults-devices.js'
import type { DefinitionCaps } from './definition-caps.js'
import { findMachine, settleMachine } from './machine.js'

const fail = failFrom('VIR_FROM_QEMU')

/**
 * Completes a definition in place: machine, defaults, implicit devices, addresses. Doing it again changes nothing.
 * What cannot be completed is VIR_ERR_CONFIG_UNSUPPORTED or VIR_ERR_XML_ERROR; an address that two devices want names
 * both.
 */
export function prepareDefinition(def: DomainDef, caps: DefinitionCaps): void {
  def.emulator ??= caps.emulator
  settleMachine(def, caps)
  sortDisks(def)
  orderControllers(def)
  settleTrifles(def)
  settleMemory(def)
  settleLoader(def, caps)
  settleInputs(def)
  addMachineControllers(def, caps)
  def.memballoon ??= { model: 'virtio' }
  settleCpu(def, caps)
  settleDevices(def, caps)
  settleBoot(def)
  addImpliedControllers(def)
  settleControllerModels(def, caps)
  assignAddresses(def, caps)
}

/** What libvirt always writes out, or never. */
function settleTrifles(def: DomainDef): void {
  def.vcpu.placement ??= 'static'
  if (def.features.hyperv) def.features.hyperv.mode ??= 'custom'
  if (def.os.bootmenu?.enable === 'no') delete def.os.bootmenu.timeout
  def.cpu?.numa.sort((a, b) => a.id - b.id)
}

function settleMemory(def: DomainDef): void {
  const inNodes = (def.cpu?.numa ?? []).reduce((sum, node) => sum + node.memory, 0)
  if (inNodes > 0) def.memory = inNodes
  if (def.memory === 0)
    throw fail('VIR_ERR_XML_ERROR', 'memory size must be given by <memory> or in the <numa> configuration')
  if (def.currentMemory === 0 || def.currentMemory > def.memory) def.currentMemory = def.memory
}

function settleLoader(def: DomainDef, caps: DefinitionCaps): void {
  const { loader } = def.os
  if (loader?.path === undefined) return
  loader.type ??= 'rom'
  const keepsVariables = loader.type === 'pflash' && loader.readonly === 'yes' && !def.os.firmware
  if (!keepsVariables || caps.nvramDir === undefined || def.os.nvram?.path !== undefined) return
  def.os.nvram = { ...def.os.nvram, path: `${caps.nvramDir}/${def.name}_VARS.fd` }
}

function settleDevices(def: DomainDef, caps: DefinitionCaps): void {
  def.disks.forEach(settleDisk)
  settleNetworkModels(def, caps)
  settleChardevs(def)
  settleVideos(def, caps)
  def.graphics.forEach(settleGraphics)
  for (const panic of def.panics) panic.model ??= 'isa'
  assignDriveAddresses(def)
}

/** The model that QEMU would use becomes explicit, and how strictly it is checked (qemuDomainDefCPUPostParse). */
function settleCpu(def: DomainDef, caps: DefinitionCaps): void {
  if (!def.cpu || (def.cpu.mode === 'custom' && !def.cpu.model)) setDefaultCpu(def, caps)
  const { cpu } = def
  if (!cpu) return
  if (cpu.mode === 'host-passthrough') cpu.migratable ??= 'on'
  if (cpu.mode === 'custom' && !cpu.model) return
  if (cpu.mode === 'custom') {
    cpu.match ??= 'exact'
    if (cpu.model) cpu.model.fallback ??= 'allow'
  }
  cpu.check ??= defaultCheck(cpu, def.virtType)
}

function setDefaultCpu(def: DomainDef, caps: DefinitionCaps): void {
  const name = findMachine(caps, def.os.machine)?.defaultCpu
  if (name === undefined && def.cpu?.check !== undefined)
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', 'a CPU without a model cannot have a check attribute')
  if (name === undefined) return
  def.cpu = {
    features: [],
    numa: [],
    ...def.cpu,
    mode: 'custom',
    match: 'exact',
    check: 'none',
    model: { name, fallback: 'forbid' },
  }
}

function defaultCheck({ mode }: CpuDef, virtType: string): NonNullable<CpuDef['check']> {
  if (mode === 'host-model') return 'partial'
  return mode === 'custom' && virtType !== 'qemu' ? 'partial' : 'none'
}

/** Where no device and no `<boot>` says what to start from, it is the first disk. */
function settleBoot(def: DomainDef): void {
  const ordered = [...def.disks, ...def.interfaces].some(({ bootOrder }) => bootOrder !== undefined)
  if (!ordered && def.os.boot.length === 0) def.os.boot = ['hd']
}
