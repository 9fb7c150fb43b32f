import { failFrom } from '../error.js'
import type { DeviceAddress, VirtioOptions } from './domain-def.js'
import { address as fields, virtioFields } from './fields.js'
import type { Reader } from './reader.js'
import { needAttr, positive, readFields } from './values.js'

const fail = failFrom('VIR_FROM_DOMAIN')

/** Every address type that libvirt knows. */
const addressTypes = [
  'pci',
  'drive',
  'virtio-serial',
  'ccid',
  'usb',
  'spapr-vio',
  'virtio-s390',
  'ccw',
  'virtio-mmio',
  'isa',
  'dimm',
  'unassigned',
]

/** `<alias>` and `<address>`, which every device has; `<boot>` for those that a guest can boot from. */
export function readDevice(
  reader: Reader,
  options: { boot?: boolean } = {},
): { alias?: string; address?: DeviceAddress; bootOrder?: number } {
  const alias = reader.child('alias')?.attr('name')
  const address = readAddress(reader)
  const boot = options.boot === true ? reader.child('boot') : undefined
  return {
    ...(alias !== undefined && alias !== '' && { alias }),
    ...(address !== undefined && { address }),
    ...(boot !== undefined && { bootOrder: needAttr(boot, 'order', positive) }),
  }
}

/** VIR_ERR_CONFIG_UNSUPPORTED for a type that is not known, VIR_ERR_XML_ERROR for values out of range. */
function readAddress(reader: Reader): DeviceAddress | undefined {
  if (!reader.has('address')) return undefined
  const type = reader.peekChild('address', 'type')
  if (type === undefined)
    throw fail('VIR_ERR_XML_ERROR', `the address of element '${reader.name}' needs the attribute 'type'`)
  if (!addressTypes.includes(type)) throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `the address type '${type}' is not known`)
  return readAddressOf(reader, type)
}

function readAddressOf(reader: Reader, type: string): DeviceAddress | undefined {
  if (type !== 'pci' && type !== 'drive' && type !== 'virtio-serial' && type !== 'usb' && type !== 'isa')
    return undefined
  const child = reader.child('address')
  if (child === undefined) return undefined
  child.attr('type')
  switch (type) {
    case 'pci':
      return { type, domain: 0, bus: 0, slot: 0, function: 0, ...readFields(child, fields.pci) }
    case 'drive':
      return { type, controller: 0, bus: 0, target: 0, unit: 0, ...readFields(child, fields.drive) }
    case 'virtio-serial':
      return { type, controller: 0, bus: 0, ...readFields(child, fields.virtioSerial) }
    case 'usb':
      return { type, bus: 0, ...readFields(child, fields.usb) }
    case 'isa':
      return { type, ...readFields(child, fields.isa) }
  }
}

/** The virtio options of a `<driver>` element. */
export function readVirtio(driver: Reader | undefined): { virtio?: VirtioOptions } {
  if (driver === undefined) return {}
  const virtio = readFields(driver, virtioFields)
  return Object.keys(virtio).length > 0 ? { virtio } : {}
}
