import type { DeviceAddress, PciAddress, VirtioOptions } from './domain-def.js'
import { address as fields, virtioFields } from './fields.js'
import { writeFields } from './values.js'
import type { Out } from './writer.js'
import { element } from './writer.js'

/** `<boot>`, `<alias>` and `<address>`, with which every device ends; what stands between them comes as `middle`. */
export function writeDevice(
  device: { alias?: string; address?: DeviceAddress; bootOrder?: number },
  middle: readonly (Out | undefined)[] = [],
): (Out | undefined)[] {
  return [
    device.bootOrder === undefined ? undefined : element('boot', { order: device.bootOrder }),
    device.alias === undefined ? undefined : element('alias', { name: device.alias }),
    ...middle,
    device.address === undefined ? undefined : element('address', addressAttributes(device.address)),
  ]
}

function addressAttributes(address: DeviceAddress): Record<string, string | undefined> {
  const { type } = address
  switch (type) {
    case 'pci':
      return { type, ...(isUnassigned(address) ? {} : writeFields(address, fields.pci)) }
    case 'drive':
      return { type, ...writeFields(address, fields.drive) }
    case 'virtio-serial':
      return { type, ...writeFields(address, fields.virtioSerial) }
    case 'usb':
      return { type, ...writeFields(address, fields.usb) }
    case 'isa':
      return { type, ...writeFields(address, fields.isa) }
  }
}

/** As libvirt's virPCIDeviceAddressIsEmpty: on a PCI bus, but nobody said where yet. */
function isUnassigned(address: PciAddress): boolean {
  const { domain, bus, slot, multifunction } = address
  return domain === 0 && bus === 0 && slot === 0 && address.function === 0 && multifunction === undefined
}

/** The attributes of a `<driver>` that virtio devices share. */
export function virtioAttributes(virtio: VirtioOptions | undefined): Record<string, string | undefined> {
  return virtio === undefined ? {} : writeFields(virtio, virtioFields)
}
