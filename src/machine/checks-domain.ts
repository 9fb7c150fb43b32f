/** What the machine as a whole must be like for QEMU (qemuValidateDomainDef). */
import type { DomainDef, TimerDef } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { parseCpuset } from './cpu-affinity.js'
import type { DefinitionCaps } from './definition-caps.js'
import { findMachine, isQ35 } from './machine.js'

const fail = failFrom('VIR_FROM_QEMU')
const unsupported = (message: string): Error => fail('VIR_ERR_CONFIG_UNSUPPORTED', message)

/** Without an IOMMU, interrupts reach this many CPUs. */
const MAX_VCPUS_WITHOUT_EIM = 255
/** 9999-12-31T23:59:59Z */
const LAST_TIME = 253_402_300_799

export function checkDomain(def: DomainDef, caps: DefinitionCaps): void {
  if (!caps.virtTypes.includes(def.virtType))
    throw unsupported(`emulator '${def.emulator ?? caps.emulator}' does not support virt type '${def.virtType}'`)
  checkVcpus(def, caps)
  checkCpu(def)
  checkNuma(def)
  checkSeclabels(def)
  checkLifecycle(def)
  checkFirmware(def)
  checkBoot(def)
  def.clock.timers.forEach(checkTimer)
  if (def.clock.start !== undefined && def.clock.start > LAST_TIME)
    throw unsupported(`the latest 'start' of <clock offset='absolute'> is ${LAST_TIME}`)
  if (new Set(def.iothreads.map(({ id }) => id)).size < def.iothreads.length)
    throw fail('VIR_ERR_XML_ERROR', 'two I/O threads have the same id')
}

function checkVcpus(def: DomainDef, caps: DefinitionCaps): void {
  const { max, current = max, placement, cpuset } = def.vcpu
  if (max < 1 || current < 1) throw fail('VIR_ERR_XML_ERROR', 'a domain needs at least one CPU')
  if (current > max) throw fail('VIR_ERR_XML_ERROR', `there cannot be ${current} CPUs of at most ${max}`)
  const limit = findMachine(caps, def.os.machine)?.maxCpus
  if (limit !== undefined && max > limit)
    throw unsupported(`machine '${def.os.machine}' takes at most ${limit} CPUs, not ${max}`)
  if (max > MAX_VCPUS_WITHOUT_EIM)
    throw unsupported(`more than ${MAX_VCPUS_WITHOUT_EIM} CPUs need an IOMMU, which is not supported`)
  if (placement === 'auto') throw unsupported("<vcpu placement='auto'> is not supported")
  if (cpuset !== undefined && !caps.pinsVcpus) throw unsupported('pinning of CPUs (<vcpu cpuset>) is not supported')
  if (cpuset !== undefined) parseCpuset(cpuset)
  const { sockets, dies = 1, cores, threads } = def.cpu?.topology ?? { sockets: max, cores: 1, threads: 1 }
  if (sockets * dies * cores * threads !== max)
    throw unsupported(`the CPU topology makes ${sockets * dies * cores * threads} CPUs, but <vcpu> says ${max}`)
}

function checkCpu({ cpu, virtType }: DomainDef): void {
  if (!cpu) return
  const { cache, maxphysaddr, mode } = cpu
  const isHost = mode === 'host-passthrough' || mode === 'maximum'
  if (mode === 'host-passthrough' && virtType === 'qemu')
    throw unsupported(`CPU mode '${mode}' needs virtualization by hardware, <domain type='${virtType}'> has none`)
  if (cache?.mode === 'emulate' && cache.level !== 3)
    throw unsupported("CPU cache mode 'emulate' can only be used with level='3'")
  if (cache?.mode === 'passthrough' && !isHost)
    throw unsupported("CPU cache mode 'passthrough' can only be used with CPU mode 'host-passthrough' or 'maximum'")
  if (cache && cache.mode !== 'emulate' && cache.level !== undefined)
    throw unsupported(`CPU cache mode '${cache.mode}' does not take a level`)
  if (maxphysaddr?.mode === 'passthrough' && maxphysaddr.bits !== undefined)
    throw unsupported("physical address bits of mode 'passthrough' cannot have a number")
  if (maxphysaddr?.mode === 'emulate' && maxphysaddr.bits === undefined)
    throw unsupported("physical address bits of mode 'emulate' need a number")
}

function checkNuma(def: DomainDef): void {
  const nodes = def.cpu?.numa.length ?? 0
  for (const { pciTarget, index } of def.controllers) {
    const node = pciTarget?.node
    if (node !== undefined && node >= nodes)
      throw fail('VIR_ERR_XML_ERROR', `PCI controller ${index} is on NUMA node ${node}, which <numa> does not have`)
  }
}

/** One label for each model of security; a single one may leave its model open. */
function checkSeclabels(def: DomainDef): void {
  const images = def.disks.flatMap(({ source }) => (source?.seclabels ? [source.seclabels] : []))
  for (const labels of [def.seclabels, ...images]) {
    const models = labels.map(({ model }) => model)
    const twice = models.find((model, nth) => models.indexOf(model) !== nth)
    if (models.length > 1 && models.includes(undefined))
      throw fail('VIR_ERR_XML_ERROR', 'each of several security labels needs a model')
    if (twice !== undefined) throw fail('VIR_ERR_XML_DETAIL', `there are several security labels of model '${twice}'`)
  }
}

function checkLifecycle({ onPoweroff, onReboot, onCrash }: DomainDef): void {
  if ([onPoweroff, onReboot, onCrash].includes('rename-restart'))
    throw unsupported("the action 'rename-restart' is not supported")
  if (onPoweroff === 'preserve' || onReboot === 'preserve')
    throw unsupported("the action 'preserve' is only supported for 'on_crash'")
  if (onPoweroff === 'restart' && onReboot === 'destroy')
    throw unsupported("'on_poweroff' restart cannot go with 'on_reboot' destroy")
}

function checkFirmware(def: DomainDef): void {
  const { loader, firmware } = def.os
  const usesUefi = firmware === 'efi' || loader?.type === 'pflash'
  if (usesUefi && !def.features.acpi) throw unsupported('UEFI needs ACPI')
  if (loader?.secure === 'yes') checkSecureBoot(def)
}

function checkSecureBoot(def: DomainDef): void {
  if (!isQ35(def) || def.os.arch !== 'x86_64')
    throw unsupported("secure boot is only supported on machine 'q35' of x86_64")
  if (!def.os.firmware && def.features.smm !== 'on') throw unsupported('secure boot needs the feature <smm>')
}

function checkBoot(def: DomainDef): void {
  const { bios, smbiosMode } = def.os
  const delay = bios?.rebootTimeout
  if (delay !== undefined && (delay < -1 || delay > 65535))
    throw unsupported('rebootTimeout must be in range [-1,65535]')
  if (bios?.useserial === 'yes' && def.serials.length === 0)
    throw fail('VIR_ERR_XML_ERROR', 'BIOS output on a serial port needs a serial device')
  if (smbiosMode === 'host' || smbiosMode === 'sysinfo')
    throw unsupported(`system information by <smbios mode='${smbiosMode}'> is not supported`)
}

/** What a timer can be told depends on which it is (virDomainDefPostParseTimer, qemuValidateDomainDefClockTimers). */
function checkTimer({ name, tickpolicy, track, frequency, mode }: TimerDef): void {
  const refuse = (what: string): never => {
    throw unsupported(`timer '${name}' does not support ${what}`)
  }
  if (!['rtc', 'pit', 'hpet', 'tsc', 'kvmclock', 'hypervclock'].includes(name))
    throw unsupported(`timer '${name}' is not supported`)
  if (tickpolicy && (name === 'kvmclock' || name === 'hypervclock')) refuse('a tickpolicy')
  if (tickpolicy && name === 'rtc' && (tickpolicy === 'merge' || tickpolicy === 'discard'))
    refuse(`tickpolicy '${tickpolicy}'`)
  if (name === 'pit' && tickpolicy === 'merge') refuse(`tickpolicy '${tickpolicy}'`)
  if (frequency !== undefined && name !== 'tsc') refuse('a frequency')
  if (mode !== undefined && name !== 'tsc') refuse('a mode')
  if (track !== undefined && (name !== 'rtc' || track === 'boot')) refuse(`track '${track}'`)
}
