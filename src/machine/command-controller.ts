import type { ControllerDef, DomainDef } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { ioThreadName } from './alias.js'
import {
  addressProps,
  aliasOf,
  bool,
  device,
  isQ35,
  virtioDriver,
  virtioProps,
  type CommandCaps,
  type Props,
} from './command-props.js'

const fail = failFrom('VIR_FROM_QEMU')

/** Controllers that others are plugged into come first. Floppy controllers belong to the disks. */
const order = ['pci', 'usb', 'scsi', 'ide', 'sata', 'virtio-serial', 'ccid'] as const

/** `-global` options and devices of all controllers that are not built into the machine. */
export function controllersCommand(def: DomainDef, caps: CommandCaps): string[] {
  const globals = def.controllers.flatMap((controller) => rootGlobals(controller))
  const devices = order.flatMap((type) => {
    const ofType = def.controllers.filter((c) => c.type === type && !isBuiltIn(def, c) && c.model !== 'none')
    return ofType.flatMap((c) => device(caps, { ...controllerProps(def, c), ...addressProps(def, c.address) }))
  })
  return [...globals, ...devices]
}

function rootGlobals(controller: ControllerDef): string[] {
  if (controller.type !== 'pci' || controller.index !== 0) return []
  const isPci = controller.model === 'pci-root'
  const hole = controller.pcihole64
  const host = isPci ? 'i440FX-pcihost' : 'q35-pcihost'
  const hotplug = isPci ? controller.pciTarget?.hotplug : undefined
  return [
    ...(hole === undefined ? [] : ['-global', `${host}.pci-hole64-size=${hole}K`]),
    ...(hotplug === undefined ? [] : ['-global', `PIIX4_PM.acpi-root-pci-hotplug=${hotplug}`]),
  ]
}

function isBuiltIn(def: DomainDef, { type, index, model }: ControllerDef): boolean {
  if (type === 'pci') return model === 'pci-root' || model === 'pcie-root'
  return index === 0 && ((type === 'sata' && isQ35(def)) || (type === 'ide' && !isQ35(def)))
}

function controllerProps(def: DomainDef, controller: ControllerDef): Props & { driver: string } {
  const id = aliasOf(controller, `${controller.type} controller ${controller.index}`)
  switch (controller.type) {
    case 'pci':
      return { ...pciProps(controller), id }
    case 'usb':
      return usbProps(def, controller, id)
    case 'scsi':
      return { ...scsiProps(controller), id }
    case 'sata':
      return { driver: 'ich9-ahci', id }
    case 'virtio-serial':
      return {
        driver: virtioDriver('virtio-serial', controller.model),
        ...virtioProps(controller.driver?.virtio),
        id,
        max_ports: controller.ports,
        vectors: controller.vectors,
      }
    case 'ccid':
      return { driver: 'usb-ccid', id }
    case 'ide':
    case 'fdc':
      throw unsupported(controller)
  }
}

const unsupported = ({ type, index, model }: ControllerDef): Error =>
  fail('VIR_ERR_CONFIG_UNSUPPORTED', `${type} controller ${index} of model '${model ?? ''}' is not supported`)

/** The device that QEMU has for a model where `<model name>` does not say it. */
const pciDrivers: Record<string, string> = {
  'pci-bridge': 'pci-bridge',
  'dmi-to-pci-bridge': 'i82801b11-bridge',
  'pcie-to-pci-bridge': 'pcie-pci-bridge',
  'pcie-root-port': 'pcie-root-port',
  'pcie-switch-upstream-port': 'x3130-upstream',
  'pcie-switch-downstream-port': 'xio3130-downstream',
  'pci-expander-bus': 'pxb',
  'pcie-expander-bus': 'pxb-pcie',
}

function pciProps(controller: ControllerDef): Props & { driver: string } {
  const { model = '', pciTarget: target } = controller
  const driver = controller.pciModelName ?? pciDrivers[model]
  if (driver === undefined) throw unsupported(controller)
  const isPort = model === 'pcie-root-port' || model === 'pcie-switch-downstream-port'
  if (isPort) return { driver, port: target?.port, chassis: target?.chassis, hotplug: bool(target?.hotplug) }
  if (model === 'pci-bridge') return { driver, chassis_nr: target?.chassisNr }
  if (model.endsWith('expander-bus')) return { driver, bus_nr: target?.busNr, numa_node: target?.node }
  return { driver }
}

const usbDrivers: Record<string, string> = {
  'piix3-uhci': 'piix3-usb-uhci',
  'piix4-uhci': 'piix4-usb-uhci',
  'vt82c686b-uhci': 'vt82c686b-usb-uhci',
  ehci: 'usb-ehci',
  'ich9-ehci1': 'ich9-usb-ehci1',
  'ich9-uhci1': 'ich9-usb-uhci1',
  'ich9-uhci2': 'ich9-usb-uhci2',
  'ich9-uhci3': 'ich9-usb-uhci3',
  'pci-ohci': 'pci-ohci',
  'nec-xhci': 'nec-usb-xhci',
  'qemu-xhci': 'qemu-xhci',
}

function usbProps(def: DomainDef, controller: ControllerDef, id: string): Props & { driver: string } {
  const driver = usbDrivers[controller.model ?? '']
  if (driver === undefined) throw unsupported(controller)
  if (controller.master === undefined) return { driver, p2: controller.ports, p3: controller.ports, id }
  const isMaster = (c: ControllerDef): boolean =>
    c.type === 'usb' && c.index === controller.index && c.master === undefined
  const master = def.controllers.find(isMaster)
  if (master === undefined) throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `USB controller ${controller.index} has no master`)
  return { driver, masterbus: `${aliasOf(master, 'USB controller')}.0`, firstport: controller.master.startport }
}

const scsiDrivers: Record<string, string> = {
  lsilogic: 'lsi53c895a',
  lsisas1068: 'mptsas1068',
  lsisas1078: 'megasas',
  vmpvscsi: 'pvscsi',
  am53c974: 'am53c974',
  dc390: 'dc390',
}

function scsiProps(controller: ControllerDef): Props & { driver: string } {
  const { model = '', driver } = controller
  const plain = scsiDrivers[model]
  if (plain !== undefined) return { driver: plain }
  if (!model.startsWith('virtio')) throw unsupported(controller)
  return {
    driver: virtioDriver('virtio-scsi', model === 'virtio-scsi' ? undefined : model),
    ...virtioProps(driver?.virtio),
    iothread: driver?.iothread === undefined ? undefined : ioThreadName(driver.iothread),
    num_queues: driver?.queues,
    cmd_per_lun: driver?.cmdPerLun,
    max_sectors: driver?.maxSectors,
    ioeventfd: bool(driver?.ioeventfd),
  }
}
