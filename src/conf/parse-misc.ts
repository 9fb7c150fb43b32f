import { failFrom } from '../error.js'
import type { InputDef, MemballoonDef, PanicDef, RngDef, WatchdogDef } from './domain-def.js'
import { readChardevSource } from './parse-chardev.js'
import { readDevice, readVirtio } from './parse-device.js'
import type { Reader } from './reader.js'
import { needAttr, oneOf, onOff, positive, readAttr, uint } from './values.js'

const fail = failFrom('VIR_FROM_DOMAIN')

export const virtioModels = ['virtio', 'virtio-transitional', 'virtio-non-transitional']

/** One `<input>`; undefined on a bus that we do not model. */
export function parseInput(reader: Reader): InputDef | undefined {
  if (reader.peek('bus') === 'parallels') return undefined
  const type = needAttr(reader, 'type', oneOf('mouse', 'tablet', 'keyboard', 'passthrough', 'evdev'))
  const bus = readAttr(reader, 'bus', oneOf('ps2', 'usb', 'virtio', 'xen', 'none'))
  const model = readAttr(reader, 'model', oneOf(...virtioModels))
  const device = readDevice(reader)
  if (bus === 'ps2' && type !== 'mouse' && type !== 'keyboard') {
    throw fail('VIR_ERR_INTERNAL_ERROR', `an input device of type '${type}' can't be on bus 'ps2'`)
  }
  if (bus === 'usb' && device.address !== undefined && device.address.type !== 'usb') {
    throw fail(
      'VIR_ERR_XML_ERROR',
      `an input device on bus 'usb' can't have an address of type '${device.address.type}'`,
    )
  }
  return {
    type,
    ...(bus !== undefined && bus !== 'none' && { bus }),
    ...(model !== undefined && { model }),
    ...readEvdev(reader, type),
    ...device,
    ...reader.residue(),
  }
}

function readEvdev(reader: Reader, type: InputDef['type']): Pick<InputDef, 'evdev'> {
  if (type !== 'passthrough' && type !== 'evdev') return {}
  const path = reader.child('source')?.attr(type === 'evdev' ? 'dev' : 'evdev')
  if (path === undefined || path === '')
    throw fail('VIR_ERR_XML_ERROR', `an input device of type '${type}' needs the path of its evdev`)
  return { evdev: path }
}

/** One `<rng>` (virDomainRNGDefParseXML). */
export function parseRng(reader: Reader): RngDef {
  const model = needAttr(reader, 'model', oneOf(...virtioModels))
  const rate = reader.child('rate')
  const period = rate && readAttr(rate, 'period', uint)
  return {
    model,
    ...(rate && { rate: { bytes: needAttr(rate, 'bytes', positive), ...(period !== undefined && { period }) } }),
    backend: readBackend(reader),
    ...readVirtio(reader.child('driver')),
    ...readDevice(reader),
    ...reader.residue(),
  }
}

function readBackend(reader: Reader): RngDef['backend'] {
  const [backend, ...more] = reader.children('backend')
  if (backend === undefined) throw fail('VIR_ERR_XML_ERROR', "element 'rng' needs an element 'backend'")
  if (more.length > 0) throw fail('VIR_ERR_XML_ERROR', "element 'rng' has more than one element 'backend'")
  const model = needAttr(backend, 'model', oneOf('random', 'egd', 'builtin'))
  if (model === 'builtin') return { model }
  if (model === 'random') return { model, path: backend.text() === '' ? '/dev/urandom' : backend.text() }
  const source = readChardevSource(backend)
  return { model, source }
}

/** `<memballoon>` (virDomainMemballoonDefParseXML). */
export function parseMemballoon(reader: Reader): MemballoonDef {
  const stats = reader.child('stats')
  const autodeflate = readAttr(reader, 'autodeflate', onOff)
  const freePageReporting = readAttr(reader, 'freePageReporting', onOff)
  const period = stats && readAttr(stats, 'period', uint)
  return {
    model: needAttr(reader, 'model', oneOf(...virtioModels, 'xen', 'none')),
    ...(autodeflate !== undefined && { autodeflate }),
    ...(freePageReporting !== undefined && { freePageReporting }),
    ...(period !== undefined && { statsPeriod: period }),
    ...readVirtio(reader.child('driver')),
    ...readDevice(reader),
    ...reader.residue(),
  }
}

export function parseWatchdog(reader: Reader): WatchdogDef {
  const actions = oneOf('reset', 'shutdown', 'poweroff', 'pause', 'none', 'dump', 'inject-nmi')
  return {
    model: needAttr(reader, 'model', oneOf('i6300esb', 'ib700', 'diag288', 'itco')),
    action: readAttr(reader, 'action', actions) ?? 'reset',
    ...readDevice(reader),
    ...reader.residue(),
  }
}

export function parsePanic(reader: Reader): PanicDef {
  const model = readAttr(reader, 'model', oneOf('isa', 'hyperv', 'pvpanic', 'pseries', 's390'))
  return { ...(model !== undefined && { model }), ...readDevice(reader), ...reader.residue() }
}
