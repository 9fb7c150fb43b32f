import type { ControllerDef, ControllerType, DiskBus, DomainDef } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import type { DefinitionCaps } from './definition-caps.js'
import { isQ35 } from './machine.js'

const fail = failFrom('VIR_FROM_QEMU')

const ICH9_COMPANIONS = ['ich9-uhci1', 'ich9-uhci2', 'ich9-uhci3']
/** The parts of one USB 2 controller: they share an index and a PCI slot. */
const USB2_PARTS = ['ich9-ehci1', ...ICH9_COMPANIONS]

export function isUsb2Part(controller: ControllerDef): boolean {
  return controller.type === 'usb' && USB2_PARTS.includes(controller.model ?? '')
}

export function findController(def: DomainDef, type: ControllerType, index: number): ControllerDef | undefined {
  return def.controllers.find((controller) => controller.type === type && controller.index === index)
}

/** Puts a controller where libvirt lists it: beside its kind, by index, a companion after its master. */
export function addController(def: DomainDef, added: ControllerDef): ControllerDef {
  const { type, index } = added
  const isLater = (other: ControllerDef): boolean =>
    other.type === type &&
    (other.index > index || (other.index === index && !added.master && other.master !== undefined))
  const later = def.controllers.findIndex(isLater)
  const last = def.controllers.findLastIndex((other) => other.type === type)
  const at = later >= 0 ? later : last >= 0 ? last + 1 : def.controllers.length
  def.controllers.splice(at, 0, added)
  return added
}

/** Adds a controller unless there is one of that kind and index. */
export function ensureController(def: DomainDef, type: ControllerType, index: number, model?: string): ControllerDef {
  return (
    findController(def, type, index) ?? addController(def, { type, index, ...(model === undefined ? {} : { model }) })
  )
}

/** Lists the controllers in libvirt's order. */
export function orderControllers(def: DomainDef): void {
  const types = [...new Set(def.controllers.map(({ type }) => type))]
  const rank = ({ index, master }: ControllerDef): number => index * 2 + (master ? 1 : 0)
  def.controllers.sort((a, b) => types.indexOf(a.type) - types.indexOf(b.type) || rank(a) - rank(b))
}

/** The controllers that a machine has or that every guest gets: PCI root, USB, the SATA of q35. */
export function addMachineControllers(def: DomainDef, caps: DefinitionCaps): void {
  if (!findController(def, 'usb', 0)) addDefaultUsb(def, caps)
  if (isQ35(def)) ensureController(def, 'sata', 0)
  const rootModel = isQ35(def) ? 'pcie-root' : 'pci-root'
  const root = ensureController(def, 'pci', 0, rootModel)
  if (root.model !== rootModel)
    throw fail(
      'VIR_ERR_XML_ERROR',
      `PCI controller 0 must be of model '${rootModel}' for machine '${def.os.machine}', not '${root.model ?? ''}'`,
    )
}

function addDefaultUsb(def: DomainDef, caps: DefinitionCaps): void {
  if (!isQ35(def)) {
    ensureController(def, 'usb', 0)
  } else if (caps.has('qemu-xhci')) {
    ensureController(def, 'usb', 0, 'qemu-xhci')
  } else if (caps.has('nec-usb-xhci')) {
    ensureController(def, 'usb', 0, 'nec-xhci')
  } else if (caps.has('ich9-usb-ehci1')) {
    ensureController(def, 'usb', 0, 'ich9-ehci1')
    ICH9_COMPANIONS.forEach((model, nth) =>
      addController(def, { type: 'usb', index: 0, model, master: { startport: nth * 2 } }),
    )
  }
}

/** Models that a controller gets when it names none; what is PCI is settled with the addresses. */
export function settleControllerModels(def: DomainDef, caps: DefinitionCaps): void {
  for (const controller of def.controllers) {
    if (controller.type === 'scsi' && (!controller.model || controller.model === 'auto')) {
      controller.model = caps.has('lsi53c895a') ? 'lsilogic' : defaultVirtioScsi(controller, caps)
    }
    if (controller.type === 'usb' && !controller.model && caps.has('piix3-usb-uhci')) controller.model = 'piix3-uhci'
  }
}

function defaultVirtioScsi(controller: ControllerDef, caps: DefinitionCaps): string {
  if (!caps.has('virtio-scsi-pci'))
    throw fail('VIR_ERR_INTERNAL_ERROR', `unable to determine a model for SCSI controller ${controller.index}`)
  return 'virtio-scsi'
}

/** No machine has room for more controllers of a kind. */
export const MAX_INDEX = 255

const CONTROLLER_OF_BUS: [DiskBus, ControllerType][] = [
  ['scsi', 'scsi'],
  ['fdc', 'fdc'],
  ['ide', 'ide'],
  ['sata', 'sata'],
]

/** The controllers that the addresses of disks and virtio-serial ports speak of (virDomainDefAddImplicitControllers). */
export function addImpliedControllers(def: DomainDef): void {
  for (const [bus, type] of CONTROLLER_OF_BUS) {
    const used = def.disks.flatMap(({ bus: its, address }) =>
      its === bus && address?.type === 'drive' ? [address.controller] : [],
    )
    const highest = used.reduce((most, index) => Math.max(most, index), -1)
    if (highest > MAX_INDEX)
      throw fail('VIR_ERR_XML_ERROR', `a disk on bus '${bus}' needs controller ${highest}, the last is ${MAX_INDEX}`)
    for (let index = 0; index <= highest; index++) ensureController(def, type, index)
  }
  for (const { targetType, address } of [...def.channels, ...def.consoles]) {
    if (targetType === 'virtio')
      ensureController(def, 'virtio-serial', address?.type === 'virtio-serial' ? address.controller : 0)
  }
}
