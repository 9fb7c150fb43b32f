/** Which devices live on PCI and what slot they need (qemuDomainDeviceCalculatePCIConnectFlags). */
import type { ControllerDef, DeviceAddress, PciAddress } from '../conf/domain-def.js'
import { CONTROLLER_CONNECT, connect } from './addresses-pci-set.js'
import { isUsb2Part } from './controllers.js'
import type { AnyDevice } from './devices.js'

/** A conventional slot. */
const PCI = connect.autoassign | connect.pciDevice
/** An express slot, where the machine has such. */
const PCIE = connect.autoassign | connect.pcieDevice

/** What a device needs of its slot; 0: it is not on PCI. */
export function connectFlags(one: AnyDevice, express: boolean): number {
  const flags = onExpress(one)
  return flags === PCIE && !express ? PCI : flags
}

/** A virtio device: its transitional form only works in conventional slots. */
function virtio(model?: string): number {
  return model === 'virtio-transitional' ? PCI : PCIE
}

function onExpress(one: AnyDevice): number {
  switch (one.kind) {
    case 'controller':
      return controllerFlags(one.device)
    case 'interface':
      return interfaceFlags(one.device)
    case 'disk':
      return one.device.bus === 'virtio' ? virtio(one.device.model) : 0
    case 'memballoon':
    case 'rng':
      return one.device.model.startsWith('virtio') ? virtio(one.device.model) : 0
    case 'watchdog':
      return one.device.model === 'i6300esb' ? PCI : 0
    case 'video':
      return videoFlags(one.device.model)
    case 'input':
      return one.device.bus === 'virtio' ? virtio(one.device.model) : 0
    case 'serial':
      return one.device.targetType === 'pci-serial' ? PCI : 0
    default:
      return 0
  }
}

function controllerFlags(controller: ControllerDef): number {
  const model = controller.model ?? ''
  switch (controller.type) {
    case 'pci':
      return CONTROLLER_CONNECT[model] ?? 0
    case 'usb':
      if (model === 'none') return 0
      return model === 'nec-xhci' || model === 'qemu-xhci' ? PCIE : PCI
    case 'scsi':
      if (model === 'virtio-scsi' || model === 'virtio-non-transitional') return PCIE
      return model === 'ncr53c90' ? 0 : PCI
    case 'virtio-serial':
      return virtio(model)
    case 'ide':
    case 'sata':
      return PCI
    default:
      return 0
  }
}

function interfaceFlags({ type, model }: { type: string; model?: string }): number {
  if (type === 'hostdev' || model === 'usb-net') return 0
  if (model === undefined || model === 'virtio' || model === 'virtio-non-transitional' || model === 'e1000e')
    return PCIE
  return PCI
}

function videoFlags(model: string): number {
  if (model === 'none' || model === 'ramfb' || model === 'default') return 0
  return model === 'virtio' || model === 'bochs' ? PCIE : PCI
}

/** Whether a device still waits for its PCI address: none given, or `<address type='pci'/>` without a place. */
export function wantsPci(address: DeviceAddress | undefined): boolean {
  return address === undefined || (address.type === 'pci' && isEmpty(address))
}

export function pciPlace(address: DeviceAddress | undefined): PciAddress | undefined {
  return address?.type === 'pci' && !isEmpty(address) ? address : undefined
}

function isEmpty({ domain, bus, slot }: PciAddress): boolean {
  return domain === 0 && bus === 0 && slot === 0
}

/**
 * The order in which devices get their slots, which goes back to what the first QEMU with addresses did by itself
 * (qemuDomainAssignDevicePCISlots).
 */
export function assignmentRank(one: AnyDevice): number {
  switch (one.kind) {
    case 'controller':
      return one.device.type === 'pci' ? 0 : 2
    case 'interface':
      return 1
    case 'disk':
      return 3
    case 'memballoon':
      return 4
    case 'rng':
      return 5
    case 'watchdog':
      return 6
    case 'video':
      return 7
    case 'input':
      return 8
    default:
      return 9
  }
}

/** The function of a USB 2 part in the slot that all parts share. */
const USB2_FUNCTIONS: Record<string, number> = {
  'ich9-ehci1': 7,
  'ich9-uhci1': 0,
  'ich9-uhci2': 1,
  'ich9-uhci3': 2,
}

export function usb2Function(one: AnyDevice): number | undefined {
  return one.kind === 'controller' && isUsb2Part(one.device) ? USB2_FUNCTIONS[one.device.model ?? ''] : undefined
}
