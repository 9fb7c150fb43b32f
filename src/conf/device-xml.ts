import { failFrom } from '../error.js'
import { checkDisk } from './check.js'
import type {
  ChardevDef,
  ControllerDef,
  DiskDef,
  GraphicsDef,
  InputDef,
  InterfaceDef,
  MemballoonDef,
  PanicDef,
  RngDef,
  VideoDef,
  WatchdogDef,
} from './domain-def.js'
import { formatChardev } from './format-chardev.js'
import { formatController, formatInterface } from './format-controller.js'
import { formatDisk } from './format-disk.js'
import {
  formatGraphics,
  formatInput,
  formatMemballoon,
  formatPanic,
  formatRng,
  formatVideo,
  formatWatchdog,
} from './format-misc.js'
import { childOrder } from './order.js'
import { parseChardev } from './parse-chardev.js'
import { parseController } from './parse-controller.js'
import { parseDisk } from './parse-disk.js'
import { parseGraphics, parseVideo } from './parse-graphics.js'
import { parseInterface } from './parse-interface.js'
import { parseInput, parseMemballoon, parsePanic, parseRng, parseWatchdog } from './parse-misc.js'
import { Reader } from './reader.js'
import { print, type Out } from './writer.js'
import { readXml } from './xml.js'

const fail = failFrom('VIR_FROM_DOMAIN')

interface DeviceKinds {
  disk: DiskDef
  controller: ControllerDef
  interface: InterfaceDef
  serial: ChardevDef
  console: ChardevDef
  channel: ChardevDef
  input: InputDef
  graphics: GraphicsDef
  video: VideoDef
  rng: RngDef
  memballoon: MemballoonDef
  watchdog: WatchdogDef
  panic: PanicDef
}
/** One device by itself, as it is plugged in and out: `kind` is the name of its element. */
export type DeviceDef = { [K in keyof DeviceKinds]: { kind: K; def: DeviceKinds[K] } }[keyof DeviceKinds]

const parsers: { [K in keyof DeviceKinds]: (reader: Reader) => DeviceKinds[K] | undefined } = {
  disk: parseDisk,
  controller: parseController,
  interface: parseInterface,
  serial: (reader) => parseChardev(reader, 'serial'),
  console: (reader) => parseChardev(reader, 'console'),
  channel: (reader) => parseChardev(reader, 'channel'),
  input: parseInput,
  graphics: parseGraphics,
  video: parseVideo,
  rng: parseRng,
  memballoon: parseMemballoon,
  watchdog: parseWatchdog,
  panic: parsePanic,
}

/**
 * A device's XML as it is given to attach or detach it (virDomainDeviceDefParse). A controller without an index has -1.
 * VIR_ERR_XML_ERROR for an element that is no device, VIR_ERR_CONFIG_UNSUPPORTED for one that we do not model.
 */
export function parseDeviceXml(xml: string): DeviceDef {
  const root = readXml(xml)
  const reader = new Reader(root)
  const kind =
    root.uri === '' ? (Object.keys(parsers) as (keyof DeviceKinds)[]).find((name) => name === root.name) : undefined
  if (kind === undefined) {
    const known = childOrder['devices']?.includes(root.name) === true && root.name !== 'emulator'
    if (known) throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `devices of the kind '${root.name}' are not supported`)
    throw fail('VIR_ERR_XML_ERROR', `the root element is '${root.name}', which is no device`)
  }
  const def = parsers[kind](reader)
  if (def === undefined) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `this '${kind}' is on a kind of bus or storage that is not supported`)
  }
  const device = { kind, def } as DeviceDef
  if (device.kind === 'disk') checkDisk(device.def)
  return device
}

/** A device's XML, as it would stand in its domain's; passwords and cookies only if `secure`. */
export function formatDeviceXml(device: DeviceDef, options: { secure?: boolean } = {}): string {
  return print(formatDevice(device, options.secure === true))
}

function formatDevice(device: DeviceDef, secure: boolean): Out {
  switch (device.kind) {
    case 'disk':
      return formatDisk(device.def, secure)
    case 'controller':
      return formatController(device.def)
    case 'interface':
      return formatInterface(device.def)
    case 'serial':
    case 'console':
    case 'channel':
      return formatChardev(device.kind, device.def)
    case 'input':
      return formatInput(device.def)
    case 'graphics':
      return formatGraphics(device.def, secure)
    case 'video':
      return formatVideo(device.def)
    case 'rng':
      return formatRng(device.def)
    case 'memballoon':
      return formatMemballoon(device.def)
    case 'watchdog':
      return formatWatchdog(device.def)
    case 'panic':
      return formatPanic(device.def)
  }
}
