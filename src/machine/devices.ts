import type {
  ChardevDef,
  ControllerDef,
  DeviceAddress,
  DiskDef,
  DomainDef,
  InputDef,
  InterfaceDef,
  MemballoonDef,
  PanicDef,
  RngDef,
  VideoDef,
  WatchdogDef,
} from '../conf/domain-def.js'

/** One device of a domain with its kind, for everything that treats all devices alike. */
export type AnyDevice =
  | { kind: 'disk'; device: DiskDef }
  | { kind: 'interface'; device: InterfaceDef }
  | { kind: 'video'; device: VideoDef }
  | { kind: 'controller'; device: ControllerDef }
  | { kind: 'serial' | 'channel' | 'console'; device: ChardevDef }
  | { kind: 'input'; device: InputDef }
  | { kind: 'watchdog'; device: WatchdogDef }
  | { kind: 'memballoon'; device: MemballoonDef }
  | { kind: 'rng'; device: RngDef }
  | { kind: 'panic'; device: PanicDef }

/** All devices that can have an address or an alias, in libvirt's order (virDomainDeviceInfoIterate). */
export function devicesOf(def: DomainDef): AnyDevice[] {
  return [
    ...def.disks.map((device) => ({ kind: 'disk' as const, device })),
    ...def.interfaces.map((device) => ({ kind: 'interface' as const, device })),
    ...def.videos.map((device) => ({ kind: 'video' as const, device })),
    ...def.controllers.map((device) => ({ kind: 'controller' as const, device })),
    ...def.serials.map((device) => ({ kind: 'serial' as const, device })),
    ...def.channels.map((device) => ({ kind: 'channel' as const, device })),
    ...def.consoles
      .filter((_, at) => !(at === 0 && mirrorsSerial(def)))
      .map((device) => ({ kind: 'console' as const, device })),
    ...def.inputs.map((device) => ({ kind: 'input' as const, device })),
    ...def.watchdogs.map((device) => ({ kind: 'watchdog' as const, device })),
    ...(def.memballoon ? [{ kind: 'memballoon' as const, device: def.memballoon }] : []),
    ...def.rngs.map((device) => ({ kind: 'rng' as const, device })),
    ...def.panics.map((device) => ({ kind: 'panic' as const, device })),
  ]
}

/** Whether the first console is only another name of the first serial device (virDomainSkipBackcompatConsole). */
export function mirrorsSerial(def: DomainDef): boolean {
  const [first] = def.consoles
  return first !== undefined && (first.targetType === undefined || first.targetType === 'serial')
}

/** How an error names a device: "disk 'vda'". */
export function describeDevice(one: AnyDevice): string {
  switch (one.kind) {
    case 'disk':
      return `disk '${one.device.target}'`
    case 'interface':
      return `interface '${one.device.mac}'`
    case 'controller':
      return `controller '${one.device.type}' ${one.device.index}`
    case 'video':
    case 'watchdog':
    case 'rng':
    case 'memballoon':
      return `${one.kind} '${one.device.model}'`
    case 'input':
      return `input '${one.device.type}'`
    default:
      return `${one.kind} device`
  }
}

/** What has an address slot; enough for the address books. */
export interface Addressed {
  address?: DeviceAddress
}
