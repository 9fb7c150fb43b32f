import type { ControllerDef, ControllerType } from './domain-def.js'
import type { Codec, Field } from './values.js'
import { hex, oneOf, onOff, uint, whole } from './values.js'

export const controllerTypes = oneOf<ControllerType>(
  'pci',
  'usb',
  'scsi',
  'ide',
  'sata',
  'fdc',
  'virtio-serial',
  'ccid',
)

const scsi =
  'auto buslogic lsilogic lsisas1068 vmpvscsi ibmvscsi virtio-scsi lsisas1078 virtio-transitional ' +
  'virtio-non-transitional ncr53c90 dc390 am53c974'
const usb =
  'piix3-uhci piix4-uhci ehci ich9-ehci1 ich9-uhci1 ich9-uhci2 ich9-uhci3 vt82c686b-uhci pci-ohci nec-xhci qusb1 qusb2 ' +
  'qemu-xhci none'
const pci =
  'pci-root pcie-root pci-bridge dmi-to-pci-bridge pcie-to-pci-bridge pcie-root-port pcie-switch-upstream-port ' +
  'pcie-switch-downstream-port pci-expander-bus pcie-expander-bus'

export const controllerModels: Readonly<Record<string, readonly string[]>> = {
  scsi: scsi.split(' '),
  usb: usb.split(' '),
  pci: pci.split(' '),
  ide: ['piix3', 'piix4', 'ich6'],
  'virtio-serial': ['virtio', 'virtio-transitional', 'virtio-non-transitional'],
}

const own: Field<Pick<ControllerDef, 'ports' | 'vectors'>>[] = [
  ['ports', 'ports', whole(0, 0x7fffffff)],
  ['vectors', 'vectors', whole(0, 0x7fffffff)],
]

const driver: Field<Omit<NonNullable<ControllerDef['driver']>, 'virtio'>>[] = [
  ['queues', 'queues', uint],
  ['cmd_per_lun', 'cmdPerLun', uint],
  ['max_sectors', 'maxSectors', uint],
  ['ioeventfd', 'ioeventfd', onOff],
  ['iothread', 'iothread', uint],
]

const pciModelName = oneOf(
  ...['pci-bridge', 'i82801b11-bridge', 'ioh3420', 'x3130-upstream', 'xio3130-downstream', 'pxb', 'pxb-pcie'],
  ...['pcie-root-port', 'spapr-pci-host-bridge', 'pcie-pci-bridge'],
)

/** `<target>` of a PCI controller: its numbers may be written as in C */
const small: Codec<number> = { ...hex(255, 1), format: String }
const pciTarget: Field<Omit<NonNullable<ControllerDef['pciTarget']>, 'node'>>[] = [
  ['chassisNr', 'chassisNr', small],
  ['chassis', 'chassis', small],
  ['port', 'port', hex(255, 1)],
  ['busNr', 'busNr', small],
  ['hotplug', 'hotplug', onOff],
]

export const controllerFields = { own, driver, pciModelName, pciTarget }
