import type { ControllerDef, DomainDef } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { type AnyDevice, describeDevice, devicesOf } from './devices.js'

const fail = failFrom('VIR_FROM_QEMU')

/** Ports of a USB controller (virDomainUSBAddressControllerModelToPorts); a USB 2 group counts at its EHCI part. */
function portsOf({ model, ports }: ControllerDef): number {
  switch (model) {
    case undefined:
    case 'piix3-uhci':
    case 'piix4-uhci':
    case 'vt82c686b-uhci':
      return 2
    case 'ehci':
    case 'ich9-ehci1':
      return 6
    case 'pci-ohci':
      return 3
    case 'nec-xhci':
    case 'qemu-xhci':
      return ports ?? 4
    default:
      return 0
  }
}

function isUsbDevice(one: AnyDevice): boolean {
  if (one.kind === 'serial') return one.device.targetType === 'usb-serial'
  if (one.kind === 'controller') return one.device.type === 'ccid'
  return (one.kind === 'disk' || one.kind === 'input') && one.device.bus === 'usb'
}

/** libvirt hands out ports in this order of kinds. */
const ORDER = ['disk', 'controller', 'input', 'serial']

/** A port for every USB device: the given one, or the first free one (qemuDomainAssignUSBAddresses). */
export function assignUsbAddresses(def: DomainDef): void {
  const devices = devicesOf(def)
    .filter(isUsbDevice)
    .sort((a, b) => ORDER.indexOf(a.kind) - ORDER.indexOf(b.kind))
  if (devices.length === 0) return
  const buses = usbBuses(def)
  if (buses.size === 0)
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', 'USB is disabled for this domain, but it has USB devices')
  for (const one of devices) reserveGiven(buses, one)
  for (const one of devices) assignFree(buses, one)
}

interface UsbBus {
  size: number
  owners: Map<number, string>
}

function usbBuses(def: DomainDef): Map<number, UsbBus> {
  const buses = new Map<number, UsbBus>()
  for (const controller of def.controllers) {
    const size = controller.type === 'usb' ? portsOf(controller) : 0
    if (size === 0) continue
    if (buses.has(controller.index))
      throw fail('VIR_ERR_XML_ERROR', `there are several USB controllers with index ${controller.index}`)
    buses.set(controller.index, { size, owners: new Map() })
  }
  return new Map([...buses].sort(([a], [b]) => a - b))
}

function reserveGiven(buses: Map<number, UsbBus>, one: AnyDevice): void {
  const { address } = one.device
  if (address?.type !== 'usb' || address.port === undefined) return
  const label = describeDevice(one)
  const bus = buses.get(address.bus)
  if (!bus) throw fail('VIR_ERR_XML_ERROR', `USB bus ${address.bus} of ${label} is missing`)
  if (address.port.includes('.'))
    throw fail('VIR_ERR_XML_ERROR', `there is no hub for ${label} at USB bus ${address.bus} port ${address.port}`)
  const port = Number(address.port)
  if (port > bus.size)
    throw fail('VIR_ERR_XML_ERROR', `USB port ${port} of ${label} is not present on bus ${address.bus}`)
  const owner = bus.owners.get(port)
  if (owner !== undefined)
    throw fail('VIR_ERR_XML_ERROR', `USB bus ${address.bus} port ${port} is taken by ${owner}, ${label} cannot have it`)
  bus.owners.set(port, label)
}

function assignFree(buses: Map<number, UsbBus>, one: AnyDevice): void {
  const { address } = one.device
  if (address && (address.type !== 'usb' || address.port !== undefined)) return
  const label = describeDevice(one)
  if (address && !buses.has(address.bus))
    throw fail('VIR_ERR_XML_ERROR', `USB bus ${address.bus} of ${label} has no controller`)
  for (const [index, { size, owners }] of buses) {
    if (address && address.bus !== index) continue
    for (let port = 1; port <= size; port++) {
      if (owners.has(port)) continue
      owners.set(port, label)
      one.device.address = { type: 'usb', bus: index, port: String(port) }
      return
    }
  }
  throw fail('VIR_ERR_XML_ERROR', `no USB port is free for ${label}`)
}
