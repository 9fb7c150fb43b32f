import type { DomainDef } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { ioThreadName } from './alias.js'
import { cpuModel } from './command-cpu.js'
import { escapeComma, isQ35, object, onOff, toJson, type CommandCaps, type Prop } from './command-props.js'

const fail = failFrom('VIR_FROM_QEMU')

export interface MachineContext {
  caps: CommandCaps
  accel: 'kvm' | 'tcg'
  /** private directory of the domain; memory of `<source type='file'>` lies there */
  runDir: string
  /** the time that the guest's clock is reckoned from */
  now?: Date
}

/** -machine, -accel, -cpu, -m, -smp and what belongs to them. */
export function machineCommand(def: DomainDef, context: MachineContext): string[] {
  return [
    ...firmwareNodes(def),
    ...['-machine', machineOptions(def, context.caps).join(',')],
    ...['-accel', context.accel],
    ...['-cpu', cpuModel(def, context.accel)],
    ...loader(def),
    ...memory(def, context),
    ...['-smp', smp(def)],
    ...def.iothreads.flatMap(({ id }) => object(context.caps, { 'qom-type': 'iothread', id: ioThreadName(id) })),
    ...numa(def, context),
  ]
}

function machineOptions(def: DomainDef, caps: CommandCaps): string[] {
  const { features, os, clock } = def
  const ramId = hasNuma(def) ? undefined : caps.defaultRamId(os.machine)
  const hpet = clock.timers.find((timer) => timer.name === 'hpet')?.present
  const irqchip = { qemu: 'split', kvm: 'on' } as const
  return [
    escapeComma(os.machine),
    'usb=off',
    ...(features.vmport ? [`vmport=${features.vmport}`] : []),
    ...(features.smm ? [`smm=${features.smm}`] : []),
    ...(features.ioapic ? [`kernel_irqchip=${irqchip[features.ioapic]}`] : []),
    'dump-guest-core=off',
    ...(ramId === undefined ? [] : [`memory-backend=${ramId}`]),
    ...(hasPflash(def) ? ['pflash0=pflash0-format'] : []),
    ...(hasPflash(def) && os.nvram?.path !== undefined ? ['pflash1=pflash1-format'] : []),
    ...(os.bios?.useserial === 'yes' ? ['graphics=off'] : []),
    ...(hpet && caps.hasMachineProperty('hpet') ? [`hpet=${onOff(hpet === 'yes')}`] : []),
    ...(!features.acpi && caps.hasMachineProperty('acpi') ? ['acpi=off'] : []),
  ]
}

// --- firmware --------------------------------------------------------------------------------------------------

const hasPflash = (def: DomainDef): boolean => def.os.loader?.type === 'pflash'

/** The nodes of a UEFI firmware and its variables. */
function firmwareNodes(def: DomainDef): string[] {
  const { loader, nvram } = def.os
  if (def.os.firmware === 'efi' && loader?.path === undefined) {
    throw fail('VIR_ERR_OPERATION_FAILED', "Unable to find any firmware to satisfy 'efi'")
  }
  if (!hasPflash(def) || loader?.path === undefined) return []
  const code = flashNodes('pflash0', loader.path, loader.format, loader.readonly === 'yes')
  return nvram?.path === undefined ? code : [...code, ...flashNodes('pflash1', nvram.path, nvram.format, false)]
}

function flashNodes(name: string, filename: string, format: 'raw' | 'qcow2' = 'raw', readOnly: boolean): string[] {
  const storage = { driver: 'file', filename, 'node-name': `${name}-storage`, 'auto-read-only': true, discard: 'unmap' }
  const backing: Record<string, Prop> = format === 'qcow2' ? { backing: null } : {}
  const image = {
    'node-name': `${name}-format`,
    'read-only': readOnly,
    driver: format,
    file: `${name}-storage`,
    ...backing,
  }
  return ['-blockdev', toJson(storage), '-blockdev', toJson(image)]
}

function loader(def: DomainDef): string[] {
  const { loader } = def.os
  if (loader === undefined) return []
  if (loader.type === 'pflash') {
    return loader.secure === 'yes' ? ['-global', 'driver=cfi.pflash01,property=secure,value=on'] : []
  }
  return loader.path === undefined ? [] : ['-bios', loader.path]
}

// --- memory ----------------------------------------------------------------------------------------------------

const hasNuma = (def: DomainDef): boolean => (def.cpu?.numa.length ?? 0) > 0

/**
 * Sizes are given in KiB and bytes: not every memory size is a multiple of 1 MiB. QEMU itself goes up to the next 8 KiB for
 * `-m` and wants the same of the object. The memory of NUMA cells is all that there is.
 */
const aligned = (kib: number): number => Math.ceil(kib / 8) * 8
const memoryKib = (def: DomainDef): number =>
  hasNuma(def) ? (def.cpu?.numa ?? []).reduce((sum, cell) => sum + aligned(cell.memory), 0) : aligned(def.memory)

function memory(def: DomainDef, context: MachineContext): string[] {
  const id = hasNuma(def) ? undefined : context.caps.defaultRamId(def.os.machine)
  const backend = id === undefined ? [] : memoryBackend(def, context, { id, kib: memoryKib(def) })
  return [
    '-m',
    `size=${memoryKib(def)}k`,
    ...backend,
    '-overcommit',
    `mem-lock=${onOff(def.memoryBacking?.locked === true)}`,
  ]
}

interface Backend {
  id: string
  kib: number
  share?: boolean | undefined
  discard?: boolean | undefined
}

function memoryBackend(def: DomainDef, { caps, runDir }: MachineContext, backend: Backend): string[] {
  const { hugepages, shared, source } = def.memoryBacking ?? {}
  const share = backend.share ?? (shared === true ? true : undefined)
  const common = { id: backend.id, share, size: backend.kib * 1024 }
  if (hugepages === true || source === 'memfd') {
    // without pages enough the start shall fail, not the guest at some later time
    const huge = hugepages === true ? { hugetlb: true, prealloc: true } : {}
    return object(caps, { 'qom-type': 'memory-backend-memfd', ...huge, ...common, share: share ?? true })
  }
  if (source === 'file') {
    const file = { 'mem-path': `${runDir}/${backend.id}`, 'discard-data': backend.discard }
    return object(caps, { 'qom-type': 'memory-backend-file', ...file, ...common })
  }
  return object(caps, { 'qom-type': 'memory-backend-ram', ...common })
}

function numa(def: DomainDef, context: MachineContext): string[] {
  return (def.cpu?.numa ?? []).flatMap((cell) => {
    const memdev = `ram-node${cell.id}`
    const cpus = (cell.cpus ?? '').split(',').filter((range) => range !== '')
    const node = ['node', `nodeid=${cell.id}`, ...cpus.map((range) => `cpus=${range}`), `memdev=${memdev}`]
    const share = cell.memAccess === undefined ? undefined : cell.memAccess === 'shared'
    const discard = cell.discard === undefined ? undefined : cell.discard === 'yes'
    const backend = { id: memdev, kib: aligned(cell.memory), share, discard }
    return [...memoryBackend(def, context, backend), '-numa', node.join(',')]
  })
}

function smp(def: DomainDef): string {
  const { max, current = max } = def.vcpu
  const topology = def.cpu?.topology ?? { sockets: max, cores: 1, threads: 1 }
  const dies = def.cpu?.topology?.dies
  return [
    String(current),
    ...(current === max ? [] : [`maxcpus=${max}`]),
    `sockets=${topology.sockets}`,
    ...(dies === undefined ? [] : [`dies=${dies}`]),
    `cores=${topology.cores}`,
    `threads=${topology.threads}`,
  ].join(',')
}

// --- clock, power management, boot -----------------------------------------------------------------------------

/** -rtc and the timers that are not CPU features. */
export function clockCommand(def: DomainDef, caps: CommandCaps, now: Date): string[] {
  const rtc = def.clock.timers.find((timer) => timer.name === 'rtc')
  const pit = def.clock.timers.find((timer) => timer.name === 'pit')
  const sources: Record<string, string> = { guest: 'vm', wall: 'host', realtime: 'rt' }
  const source = rtc?.track === undefined ? undefined : sources[rtc.track]
  const rtcOptions = [
    `base=${rtcBase(def, now)}`,
    ...(source === undefined ? [] : [`clock=${source}`]),
    ...(rtc?.tickpolicy === 'catchup' ? ['driftfix=slew'] : []),
  ]
  const lost = pit?.tickpolicy === 'delay' || pit?.tickpolicy === 'discard' ? pit.tickpolicy : undefined
  const global = lost && caps.hasDevice('kvm-pit') ? ['-global', `kvm-pit.lost_tick_policy=${lost}`] : []
  return ['-rtc', rtcOptions.join(','), ...global]
}

function rtcBase({ clock }: DomainDef, now: Date): string {
  const adjustment = Number(clock.adjustment ?? Number.NaN)
  if (clock.offset === 'absolute') return isoSeconds(new Date((clock.start ?? 0) * 1000))
  if (clock.offset === 'variable' || (Number.isFinite(adjustment) && clock.offset !== 'timezone')) {
    const local = clock.basis === 'localtime' || clock.offset === 'localtime'
    const zone = local ? -now.getTimezoneOffset() * 60 : 0
    return isoSeconds(new Date(now.getTime() + ((Number.isFinite(adjustment) ? adjustment : 0) + zone) * 1000))
  }
  return clock.offset === 'utc' ? 'utc' : 'localtime'
}

const isoSeconds = (date: Date): string => date.toISOString().slice(0, 19)

/** What a shutdown, a reboot and a sleeping guest do. QEMU stays after a shutdown: the driver decides what follows. */
export function powerCommand(def: DomainDef, caps: CommandCaps): string[] {
  const chip = isQ35(def) ? 'ICH9-LPC' : 'PIIX4_PM'
  const state = (name: string, enabled: 'yes' | 'no' | undefined): string[] =>
    enabled === undefined ? [] : ['-global', `${chip}.disable_${name}=${enabled === 'no' ? 1 : 0}`]
  const noReboot = def.onReboot === 'destroy' && caps.hasOption('action')
  return [
    '-no-shutdown',
    ...(noReboot ? ['-action', 'reboot=shutdown'] : []),
    ...(def.features.acpi || caps.hasMachineProperty('acpi') ? [] : ['-no-acpi']),
    ...state('s3', def.pm?.suspendToMem),
    ...state('s4', def.pm?.suspendToDisk),
  ]
}

/** -boot and a kernel that is started directly. */
export function bootCommand({ os }: DomainDef): string[] {
  const { bootmenu, bios } = os
  const options = [
    ...(bootmenu ? [`menu=${onOff(bootmenu.enable === 'yes')}`] : []),
    ...(bios?.rebootTimeout === undefined ? [] : [`reboot-timeout=${bios.rebootTimeout}`]),
    ...(bootmenu?.timeout === undefined ? [] : [`splash-time=${bootmenu.timeout}`]),
    'strict=on',
  ]
  return [
    ...['-boot', options.join(',')],
    ...(os.kernel === undefined ? [] : ['-kernel', os.kernel]),
    ...(os.initrd === undefined ? [] : ['-initrd', os.initrd]),
    ...(os.cmdline === undefined ? [] : ['-append', os.cmdline]),
    ...(os.dtb === undefined ? [] : ['-dtb', os.dtb]),
  ]
}
