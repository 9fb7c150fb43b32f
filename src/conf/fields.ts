/** Which attribute holds which property, for the elements that more than one device has. */
import type {
  DriveAddress,
  IsaAddress,
  PciAddress,
  SeclabelDef,
  UsbAddress,
  VirtioOptions,
  VirtioSerialAddress,
} from './domain-def.js'
import type { Codec, Field } from './values.js'
import { hex, oneOf, onOff, text, uint, whole, yesNo } from './values.js'

const usbPort: Codec<string> = {
  parse: (value) => (/^[1-9]\d{0,2}(\.[1-9]\d{0,2}){0,3}$/.test(value) ? value : undefined),
  format: (value) => value,
}
const isaNumber: Codec<string> = {
  parse: (value) => (/^(0x)?[0-9a-f]{1,8}$/i.test(value) ? `0x${value.toLowerCase().replace(/^0x/, '')}` : undefined),
  format: (value) => value,
}

const pci: Field<Omit<PciAddress, 'type'>>[] = [
  ['domain', 'domain', hex(0xffff_ffff, 4)],
  ['bus', 'bus', hex(0xff, 2)],
  ['slot', 'slot', hex(0x1f, 2)],
  ['function', 'function', hex(7, 1)],
  ['multifunction', 'multifunction', onOff],
]
const drive: Field<Omit<DriveAddress, 'type'>>[] = [
  ['controller', 'controller', uint],
  ['bus', 'bus', uint],
  ['target', 'target', uint],
  ['unit', 'unit', uint],
]
const virtioSerial: Field<Omit<VirtioSerialAddress, 'type'>>[] = [
  ['controller', 'controller', uint],
  ['bus', 'bus', uint],
  ['port', 'port', uint],
]
const usb: Field<Omit<UsbAddress, 'type'>>[] = [
  ['bus', 'bus', uint],
  ['port', 'port', usbPort],
]
const isa: Field<Omit<IsaAddress, 'type'>>[] = [
  ['iobase', 'iobase', isaNumber],
  ['irq', 'irq', isaNumber],
]
export const address = { pci, drive, virtioSerial, usb, isa }

export const virtioFields: Field<VirtioOptions>[] = [
  ['iommu', 'iommu', onOff],
  ['ats', 'ats', onOff],
  ['packed', 'packed', onOff],
]

export const seclabelFields: Field<Omit<SeclabelDef, 'label' | 'imagelabel' | 'baselabel'>>[] = [
  ['type', 'type', oneOf('static', 'dynamic', 'none')],
  ['model', 'model', text],
  ['relabel', 'relabel', yesNo],
]

export interface Reconnect {
  enabled: 'yes' | 'no'
  timeout?: number
}
export const port: Codec<number> = whole(0, 65535)
