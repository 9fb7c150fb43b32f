import type { DomainDef } from '../conf/domain-def.js'
import { assignPciAddresses } from './addresses-pci.js'
import { assignUsbAddresses } from './addresses-usb.js'
import { assignVirtioSerialAddresses } from './addresses-virtio-serial.js'
import type { DefinitionCaps } from './definition-caps.js'

/** Gives every device that lacks one its address on the guest's buses (qemuDomainAssignAddresses). */
export function assignAddresses(def: DomainDef, caps: DefinitionCaps): void {
  assignVirtioSerialAddresses(def)
  assignPciAddresses(def, caps)
  assignUsbAddresses(def)
}
