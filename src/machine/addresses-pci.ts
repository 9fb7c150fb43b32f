import type { ControllerDef, DomainDef, PciAddress } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { isPiix3Part, placeChipsetDevices } from './addresses-pci-chipset.js'
import { assignmentRank, connectFlags, pciPlace, usb2Function, wantsPci } from './addresses-pci-flags.js'
import { connect, isPciControllerModel, PciAddressSet } from './addresses-pci-set.js'
import { addController, findController, isUsb2Part, MAX_INDEX } from './controllers.js'
import type { DefinitionCaps } from './definition-caps.js'
import { type AnyDevice, describeDevice, devicesOf } from './devices.js'
import { isQ35 } from './machine.js'

const fail = failFrom('VIR_FROM_QEMU')

/**
 * PCI addresses, and the bridges and root ports that they need (qemuDomainAssignPCIAddresses). A first pass only finds out which
 * controllers are missing; with them in the definition, the second places everything.
 */
export function assignPciAddresses(def: DomainDef, caps: DefinitionCaps): void {
  const hadOnlyRoot = pciControllers(def).every(({ index }) => index === 0)
  const trial = createSet(def, caps, true)
  placeChipsetDevices(def, trial, false)
  if (!isQ35(def) && !trial.isFull()) trial.reserveNext('a later device', connect.autoassign | connect.pciDevice)
  placeDevices(def, trial, false)
  if (isQ35(def) && hadOnlyRoot && trial.buses.length > 1)
    trial.reserveNext('a later device', connect.autoassign | connect.pcieDevice)
  addMissingControllers(def, trial)

  const addresses = createSet(def, caps, false)
  placeChipsetDevices(def, addresses, true)
  placeDevices(def, addresses, true)
  markMultifunction(def)
  pciControllers(def).forEach((controller) => settlePciController(def, controller, caps))
}

function pciControllers(def: DomainDef): ControllerDef[] {
  return def.controllers.filter(({ type }) => type === 'pci')
}

function createSet(def: DomainDef, caps: DefinitionCaps, grows: boolean): PciAddressSet {
  const models: string[] = []
  for (const { index, model } of pciControllers(def)) {
    if (index > MAX_INDEX)
      throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `PCI controller ${index} cannot be, the last is ${MAX_INDEX}`)
    if (model === undefined || !isPciControllerModel(model))
      throw fail('VIR_ERR_XML_ERROR', `PCI controller ${index} has an unknown model '${model ?? ''}'`)
    models[index] = model
  }
  const usual = isQ35(def) ? 'pcie-root-port' : 'pci-bridge'
  const buses = Array.from(models, (model: string | undefined) => model ?? usual)
  const addresses = new PciAddressSet(buses, { grows, pcieToPci: caps.has('pcie-pci-bridge') })
  for (const one of devicesOf(def)) collect(def, addresses, one)
  return addresses
}

function collect(def: DomainDef, addresses: PciAddressSet, one: AnyDevice): void {
  const given = pciPlace(one.device.address)
  if (!given || (one.kind === 'controller' && isPiix3Part(def, one.device))) return
  const flags = connectFlags(one, isQ35(def)) || connect.pciDevice
  addresses.reserve(describeDevice(one), given, flags)
}

function placeDevices(def: DomainDef, addresses: PciAddressSet, keep: boolean): void {
  const waiting = devicesOf(def)
    .filter((one) => wantsPci(one.device.address) && connectFlags(one, isQ35(def)) > 0)
    .sort((a, b) => assignmentRank(a) - assignmentRank(b))
  for (const one of waiting) {
    const address = placeDevice(def, addresses, one)
    if (keep) one.device.address = address
  }
}

function placeDevice(def: DomainDef, addresses: PciAddressSet, one: AnyDevice): PciAddress {
  const flags = connectFlags(one, isQ35(def))
  const label = describeDevice(one)
  const fn = usb2Function(one)
  if (fn === undefined) return addresses.reserveNext(label, flags)
  const shared = one.kind === 'controller' ? usb2Slot(def, one.device) : undefined
  if (!shared) return withSharedFunction(addresses.reserveNext(label, flags, fn))
  const address: PciAddress = { type: 'pci', domain: 0, bus: shared.bus, slot: shared.slot, function: fn }
  addresses.reserve(label, address, flags)
  return withSharedFunction(address)
}

function withSharedFunction(address: PciAddress): PciAddress {
  return address.function === 0 ? { ...address, multifunction: 'on' } : address
}

/** Where another part of the same USB 2 controller sits. */
function usb2Slot(def: DomainDef, controller: ControllerDef): PciAddress | undefined {
  return def.controllers
    .filter((other) => isUsb2Part(other) && other.index === controller.index)
    .map(({ address }) => pciPlace(address))
    .find((address) => address !== undefined)
}

/** What the trial pass had to add becomes part of the definition. */
function addMissingControllers(def: DomainDef, trial: PciAddressSet): void {
  for (let index = 1; index < trial.buses.length; index++) {
    const model = trial.buses[index]?.model
    if (model === undefined || findController(def, 'pci', index)) continue
    const device = addController(def, { type: 'pci', index, model })
    const one: AnyDevice = { kind: 'controller', device }
    trial.reserveNext(describeDevice(one), connectFlags(one, isQ35(def)))
  }
}

/** Function 0 of a slot with several functions says so, unless the definition says otherwise. */
function markMultifunction(def: DomainDef): void {
  const places = devicesOf(def).flatMap(({ device }) => pciPlace(device.address) ?? [])
  for (const place of places) {
    if (place.function === 0) continue
    const first = places.find(({ bus, slot, function: fn }) => bus === place.bus && slot === place.slot && fn === 0)
    if (first) first.multifunction ??= 'on'
  }
}

const MODEL_NAMES: Record<string, string> = {
  'pci-bridge': 'pci-bridge',
  'dmi-to-pci-bridge': 'i82801b11-bridge',
  'pcie-to-pci-bridge': 'pcie-pci-bridge',
  'pcie-root-port': 'pcie-root-port',
  'pcie-switch-upstream-port': 'x3130-upstream',
  'pcie-switch-downstream-port': 'xio3130-downstream',
  'pci-expander-bus': 'pxb',
  'pcie-expander-bus': 'pxb-pcie',
}

/** The device that a PCI controller is in QEMU, and how it is numbered. */
function settlePciController(def: DomainDef, controller: ControllerDef, caps: DefinitionCaps): void {
  const { model = '', index } = controller
  const name = model === 'pcie-root-port' && !caps.has('pcie-root-port') ? 'ioh3420' : MODEL_NAMES[model]
  if (name === undefined) return
  controller.pciModelName ??= name
  const target = { ...controller.pciTarget }
  const place = pciPlace(controller.address)
  if (model === 'pci-bridge') target.chassisNr ??= index
  if (model === 'pcie-root-port' || model === 'pcie-switch-downstream-port') {
    target.chassis ??= index
    target.port ??= model === 'pcie-root-port' ? (place?.slot ?? 0) * 8 + (place?.function ?? 0) : (place?.slot ?? 0)
  }
  if (model.endsWith('expander-bus')) target.busNr ??= freeBusNumber(def, index)
  if (Object.keys(target).length > 0) controller.pciTarget = target
  if (model === 'pci-bridge' && index <= (place?.bus ?? 0))
    throw fail(
      'VIR_ERR_CONFIG_UNSUPPORTED',
      `PCI controller ${index} sits on bus ${place?.bus ?? 0}, but its index must be larger than its bus`,
    )
}

/** Two below the lowest so far: one number for the expander, one for the bridge in it. */
function freeBusNumber(def: DomainDef, index: number): number {
  const used = pciControllers(def).flatMap(({ pciTarget }) => pciTarget?.busNr ?? [])
  const lowest = Math.min(256, ...used)
  if (lowest <= 2)
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `no bus number is free for PCI controller ${index}, give it one`)
  return lowest - 2
}
