/** The words that every device family needs: properties, options and where a device is plugged in. */
import type { ControllerDef, DeviceAddress, DomainDef, OnOff, VirtioOptions } from '../conf/domain-def.js'
import { failFrom } from '../error.js'

const fail = failFrom('VIR_FROM_QEMU')

export type Prop = string | number | bigint | boolean | null | Prop[] | { [key: string]: Prop | undefined }
/** Properties of a device, object or netdev; undefined ones are left to QEMU. */
export type Props = Record<string, Prop | undefined>

/** What the command line asks of a binary; `QemuCapabilities` answers it. */
export interface CommandCaps {
  hasBlockDriver(name: string): boolean
  /** a QOM type that can be made, e.g. 'virtio-blk-pci' */
  hasDevice(type: string): boolean
  hasCommand(name: string): boolean
  /** a command line option, e.g. 'sandbox' */
  hasOption(name: string): boolean
  /** a property of the machines, e.g. 'hpet' */
  hasMachineProperty(name: string): boolean
  /** whether this option takes JSON */
  takesJson(option: 'device' | 'object' | 'netdev'): boolean
  /** the id of the machine's memory when it is given as an object, e.g. 'pc.ram' */
  defaultRamId(machine: string): string | undefined
}

/** JSON text; unlike JSON.stringify it writes 64-bit numbers and leaves undefined properties away in nested objects too. */
export function toJson(value: Prop | Props | undefined): string {
  if (typeof value === 'bigint') return value.toString()
  if (Array.isArray(value)) return `[${value.map(toJson).join(',')}]`
  if (value === undefined) return 'null'
  if (typeof value !== 'object' || value === null) return JSON.stringify(value)
  const members = Object.entries(value).filter(([, member]) => member !== undefined)
  return `{${members.map(([name, member]) => `${JSON.stringify(name)}:${toJson(member)}`).join(',')}}`
}

/** A value inside `key=value,…`: QEMU reads two commas as one. */
export const escapeComma = (text: string): string => text.replaceAll(',', ',,')

/** `key=value,…` for binaries that take no JSON; nested objects become dotted keys as QEMU's keyval parser wants them. */
export function toKeyval(props: Props, prefix = ''): string[] {
  return Object.entries(props).flatMap(([name, value]) => {
    if (value === undefined || value === null) return []
    const key = prefix + name
    if (Array.isArray(value))
      return toKeyval(Object.fromEntries(value.map((item, at) => [String(at), item])), `${key}.`)
    if (typeof value === 'object') return toKeyval(value, `${key}.`)
    return [`${key}=${typeof value === 'boolean' ? onOff(value) : escapeComma(String(value))}`]
  })
}

export const onOff = (value: boolean): OnOff => (value ? 'on' : 'off')
/** A switch of the XML as the JSON boolean that QEMU's bool properties want. */
export const bool = (value: OnOff | undefined): boolean | undefined =>
  value === undefined ? undefined : value === 'on'

/** `-device`. VIR_ERR_CONFIG_UNSUPPORTED when the binary has no such device. */
export function device(caps: CommandCaps, props: Props & { driver: string }): string[] {
  if (!caps.hasDevice(props.driver)) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `this QEMU binary has no device '${props.driver}'`)
  }
  const { driver, ...rest } = props
  const text = caps.takesJson('device') ? toJson(props) : [driver, ...toKeyval(rest)].join(',')
  return ['-device', text]
}

/** `-object` */
export function object(caps: CommandCaps, props: Props & { 'qom-type': string; id: string }): string[] {
  const { 'qom-type': type, ...rest } = props
  return ['-object', caps.takesJson('object') ? toJson(props) : [type, ...toKeyval(rest)].join(',')]
}

/** `-netdev` */
export function netdev(caps: CommandCaps, props: Props & { type: string; id: string }): string[] {
  const { type, ...rest } = props
  return ['-netdev', caps.takesJson('netdev') ? toJson(props) : [type, ...toKeyval(rest)].join(',')]
}

/** The alias that the device was given before the command line is built. */
export function aliasOf(owner: { alias?: string }, what: string): string {
  if (owner.alias === undefined) throw fail('VIR_ERR_INTERNAL_ERROR', `${what} has no alias`)
  return owner.alias
}

export const isQ35 = (def: DomainDef): boolean => /^(pc-)?q35(-|$)/.test(def.os.machine)

function controllerAt(def: DomainDef, type: ControllerDef['type'], index: number): ControllerDef {
  const found = def.controllers.find((c) => c.type === type && c.index === index && c.master === undefined)
  if (found === undefined) {
    throw fail('VIR_ERR_INTERNAL_ERROR', `there is no ${type} controller with index ${index}`)
  }
  return found
}

/** The bus that a controller makes; built-in ones have QEMU's own names whatever their alias is. */
export function controllerBus(def: DomainDef, type: ControllerDef['type'], index: number): string {
  const controller = controllerAt(def, type, index)
  if (type === 'pci' && controller.model === 'pci-root') return 'pci.0'
  if (type === 'pci' && controller.model === 'pcie-root') return 'pcie.0'
  if ((type === 'sata' && index === 0 && isQ35(def)) || (type === 'ide' && index === 0 && !isQ35(def))) return 'ide'
  return aliasOf(controller, `${type} controller ${index}`)
}

const hex = (value: number): string => `0x${value.toString(16)}`

/** Where a device is plugged in; drive addresses depend on the disk's bus and are told by `driveAddress`. */
export function addressProps(def: DomainDef, address: DeviceAddress | undefined): Props {
  switch (address?.type) {
    case 'pci':
      return {
        bus: controllerBus(def, 'pci', address.bus),
        multifunction: bool(address.multifunction),
        addr: address.function === 0 ? hex(address.slot) : `${hex(address.slot)}.${hex(address.function)}`,
      }
    case 'usb':
      return { bus: `${controllerBus(def, 'usb', address.bus)}.0`, port: address.port }
    case 'virtio-serial':
      return { bus: `${controllerBus(def, 'virtio-serial', address.controller)}.${address.bus}`, nr: address.port }
    case 'isa':
      return {
        iobase: address.iobase === undefined ? undefined : Number(address.iobase),
        irq: address.irq === undefined ? undefined : Number(address.irq),
      }
    case 'drive':
    case undefined:
      return {}
  }
}

/** The options that all virtio devices share. */
export function virtioProps(options: VirtioOptions | undefined): Props {
  return {
    iommu_platform: bool(options?.iommu),
    ats: bool(options?.ats),
    packed: bool(options?.packed),
  }
}

/** 'virtio-blk' and a model such as 'virtio-transitional' make 'virtio-blk-pci-transitional'. */
export function virtioDriver(base: string, model: string | undefined): string {
  if (model?.endsWith('non-transitional')) return `${base}-pci-non-transitional`
  return model?.endsWith('transitional') ? `${base}-pci-transitional` : `${base}-pci`
}
