import type { ControllerDef, DomainDef } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import type { DefinitionCaps } from './definition-caps.js'
import { describeDevice } from './devices.js'
import { isQ35 } from './machine.js'

const fail = failFrom('VIR_FROM_QEMU')
const unsupported = (message: string): Error => fail('VIR_ERR_CONFIG_UNSUPPORTED', message)

/** The QEMU device of a model; what is not listed does not exist on a PC, '' needs none. */
const DEVICES: Record<string, Record<string, string>> = {
  scsi: {
    lsilogic: 'lsi53c895a',
    'virtio-scsi': 'virtio-scsi-pci',
    'virtio-transitional': 'virtio-scsi-pci-transitional',
    'virtio-non-transitional': 'virtio-scsi-pci-non-transitional',
    lsisas1068: 'mptsas1068',
    lsisas1078: 'megasas',
    vmpvscsi: 'pvscsi',
    dc390: 'dc390',
    am53c974: 'am53c974',
  },
  usb: {
    'piix3-uhci': 'piix3-usb-uhci',
    'piix4-uhci': 'piix4-usb-uhci',
    ehci: 'usb-ehci',
    'ich9-ehci1': 'ich9-usb-ehci1',
    'ich9-uhci1': 'ich9-usb-uhci1',
    'ich9-uhci2': 'ich9-usb-uhci2',
    'ich9-uhci3': 'ich9-usb-uhci3',
    'vt82c686b-uhci': 'vt82c686b-usb-uhci',
    'pci-ohci': 'pci-ohci',
    'nec-xhci': 'nec-usb-xhci',
    'qemu-xhci': 'qemu-xhci',
    none: '',
  },
}

const XHCI_PORTS = 15

export function checkControllers(def: DomainDef, caps: DefinitionCaps): void {
  for (const controller of def.controllers) {
    checkModel(controller, caps)
    checkDriver(def, controller)
    if (controller.type === 'pci') checkPci(def, controller, caps)
    if (controller.type === 'sata' && !(controller.index === 0 && isQ35(def)) && !caps.has('ich9-ahci'))
      throw unsupported('SATA is not supported by this emulator')
    if (controller.type === 'ide') checkIde(def, controller)
    if (controller.type === 'fdc' && controller.index !== 0)
      throw unsupported('there can be only one floppy controller')
    if (controller.type === 'ccid' && !caps.has('usb-ccid')) throw unsupported('smartcard readers are not supported')
  }
  checkUsbSet(def)
}

function labelOf(device: ControllerDef): string {
  return describeDevice({ kind: 'controller', device })
}

function checkModel(controller: ControllerDef, caps: DefinitionCaps): void {
  const { type, model, ports } = controller
  const known = DEVICES[type]
  if (!known) return
  if (model === undefined) throw unsupported(`no model is known for ${labelOf(controller)}`)
  const device = known[model]
  if (device === undefined || (device !== '' && !caps.has(device)))
    throw unsupported(`${labelOf(controller)}: model '${model}' is not supported`)
  if ((model === 'nec-xhci' || model === 'qemu-xhci') && (ports ?? 0) > XHCI_PORTS)
    throw unsupported(`${labelOf(controller)}: model '${model}' has at most ${XHCI_PORTS} ports`)
}

function checkDriver(def: DomainDef, controller: ControllerDef): void {
  const { driver, type, model } = controller
  if (!driver) return
  const isVirtioScsi = type === 'scsi' && (model === 'virtio-scsi' || model?.startsWith('virtio-') === true)
  const scsiOnly = driver.queues ?? driver.cmdPerLun ?? driver.maxSectors ?? driver.ioeventfd ?? driver.iothread
  if (scsiOnly !== undefined && !isVirtioScsi)
    throw unsupported(`${labelOf(controller)}: queues, limits and I/O threads are only for virtio-scsi controllers`)
  if (driver.virtio && !isVirtioScsi && type !== 'virtio-serial')
    throw unsupported(`${labelOf(controller)}: virtio options are only for virtio controllers`)
  if (driver.iothread !== undefined && !def.iothreads.some(({ id }) => id === driver.iothread))
    throw unsupported(`I/O thread ${driver.iothread} of ${labelOf(controller)} is not defined`)
}

function checkIde(def: DomainDef, { index }: ControllerDef): void {
  if (isQ35(def)) throw unsupported(`machine '${def.os.machine}' has no IDE controller`)
  if (index !== 0) throw unsupported(`machine '${def.os.machine}' has only one IDE controller`)
}

/** `<controller type='usb' model='none'/>` means no USB; a companion needs its master. */
function checkUsbSet({ controllers, inputs }: DomainDef): void {
  const usb = controllers.filter(({ type }) => type === 'usb')
  if (usb.length > 1 && usb.some(({ model }) => model === 'none'))
    throw fail('VIR_ERR_XML_DETAIL', 'USB is disabled for this domain, it cannot have another USB controller')
  if (usb.some(({ model }) => model === 'none') && inputs.some(({ bus }) => bus === 'usb'))
    throw unsupported('USB is disabled for this domain, it cannot have a USB input device')
  for (const { master, index } of usb) {
    if (master && !usb.some((other) => !other.master && other.index === index))
      throw fail('VIR_ERR_XML_DETAIL', `there is no master for the companions of USB controller ${index}`)
  }
}

// --- PCI -------------------------------------------------------------------------------------------------------

/** QEMU's device of a model, and which numbers such a controller has. */
const PCI_MODELS: Record<string, { names: string[]; numbers: string[] }> = {
  'pci-root': { names: [], numbers: ['hotplug'] },
  'pcie-root': { names: [], numbers: [] },
  'pci-bridge': { names: ['pci-bridge'], numbers: ['chassisNr'] },
  'dmi-to-pci-bridge': { names: ['i82801b11-bridge'], numbers: [] },
  'pcie-to-pci-bridge': { names: ['pcie-pci-bridge'], numbers: [] },
  'pcie-root-port': { names: ['pcie-root-port', 'ioh3420'], numbers: ['chassis', 'port', 'hotplug'] },
  'pcie-switch-upstream-port': { names: ['x3130-upstream'], numbers: [] },
  'pcie-switch-downstream-port': { names: ['xio3130-downstream'], numbers: ['chassis', 'port', 'hotplug'] },
  'pci-expander-bus': { names: ['pxb'], numbers: ['busNr', 'node'] },
  'pcie-expander-bus': { names: ['pxb-pcie'], numbers: ['busNr', 'node'] },
}

const RANGES = { chassisNr: [1, 255], chassis: [0, 255], port: [0, 255], busNr: [1, 254] } as const

function checkPci(def: DomainDef, controller: ControllerDef, caps: DefinitionCaps): void {
  const { model = '', index, pciModelName, pciTarget = {}, pcihole64 } = controller
  const label = labelOf(controller)
  const kind = PCI_MODELS[model]
  if (!kind) throw unsupported(`${label}: model '${model}' is not supported`)
  const isRoot = model === 'pci-root' || model === 'pcie-root'
  if (isRoot && index !== 0) throw fail('VIR_ERR_XML_ERROR', `${label}: model '${model}' must have index 0`)
  if (isRoot && controller.address) throw unsupported(`${label}: model '${model}' cannot have an address`)
  if (index > 255) throw unsupported(`${label}: the index can be at most 255`)
  if (pcihole64 !== undefined && !isRoot) throw unsupported(`${label}: <pcihole64> is only for the root`)
  if (pciModelName !== undefined && (!kind.names.includes(pciModelName) || !caps.has(pciModelName)))
    throw unsupported(`${label}: model '${model}' cannot be a '${pciModelName}'`)
  for (const name of Object.keys(pciTarget)) {
    if (!kind.numbers.includes(name)) throw unsupported(`${label}: '${name}' is not valid for model '${model}'`)
  }
  for (const name of Object.keys(RANGES) as (keyof typeof RANGES)[]) {
    const [least, most] = RANGES[name]
    const value = pciTarget[name]
    if (value !== undefined && (value < least || value > most))
      throw unsupported(`${label}: '${name}' must be in range [${least},${most}]`)
  }
  if (model === 'pci-expander-bus' && isQ35(def))
    throw unsupported(`${label}: model '${model}' is only for machine 'pc'`)
  if (model === 'pcie-expander-bus' && !isQ35(def))
    throw unsupported(`${label}: model '${model}' is only for machine 'q35'`)
}
