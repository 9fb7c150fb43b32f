/** The devices that sit at a fixed place of the chipset, and the first video card (qemuDomainValidateDevicePCISlots…). */
import type { ControllerDef, DomainDef, PciAddress } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { connectFlags, pciPlace, wantsPci } from './addresses-pci-flags.js'
import { connect, formatPci, type PciAddressSet } from './addresses-pci-set.js'
import { describeDevice } from './devices.js'
import { isQ35 } from './machine.js'

const fail = failFrom('VIR_FROM_QEMU')

const at = (slot: number, fn = 0): PciAddress => ({ type: 'pci', domain: 0, bus: 0, slot, function: fn })

/** With `keep`, what has to move away from its usual place gets its address for good. */
export function placeChipsetDevices(def: DomainDef, addresses: PciAddressSet, keep: boolean): void {
  if (isQ35(def)) placeOnQ35(def, addresses)
  else placeOnPiix3(def, addresses)
  placePrimaryVideo(def, addresses, keep)
}

/** The IDE and USB controllers inside the PIIX3: reserved with the chipset, not with the definition's own addresses. */
export function isPiix3Part(def: DomainDef, controller: ControllerDef): boolean {
  return !isQ35(def) && piix3Place(controller) !== undefined
}

function piix3Place({ type, index, model }: ControllerDef): PciAddress | undefined {
  if (index !== 0) return undefined
  if (type === 'ide') return at(1, 1)
  return type === 'usb' && (model === undefined || model === 'piix3-uhci') ? at(1, 2) : undefined
}

function placeOnPiix3(def: DomainDef, addresses: PciAddressSet): void {
  for (const device of def.controllers) {
    const place = piix3Place(device)
    if (!place) continue
    fix(device, place)
    addresses.reserve(describeDevice({ kind: 'controller', device }), place, connect.pciDevice)
  }
  addresses.reserve('the ISA bridge', at(1), connect.pciDevice)
  addresses.reserve('the power management bridge', at(1, 3), connect.pciDevice)
}

function placeOnQ35(def: DomainDef, addresses: PciAddressSet): void {
  for (const device of def.controllers) {
    const { type, model } = device
    if (type === 'sata' && device.index === 0) fixSata(device, addresses)
    if (device.address) continue
    if (type === 'usb' && model === 'ich9-uhci1') prefer(device, addresses, [at(0x1d), at(0x1a)], true)
    if (type === 'pci' && model === 'dmi-to-pci-bridge') prefer(device, addresses, [at(0x1e)], false)
  }
  addresses.reserve('the ISA bridge', at(0x1f), connect.pcieDevice)
  addresses.reserve('the SMBus', at(0x1f, 3), connect.pcieDevice)
}

/** A fixed place: given out if none was, refused if another was given. */
function fix(device: ControllerDef, place: PciAddress): void {
  const given = pciPlace(device.address)
  if (!given) device.address = place
  else if (formatPci(given) !== formatPci(place))
    throw fail(
      'VIR_ERR_XML_ERROR',
      `${describeDevice({ kind: 'controller', device })} is part of the chipset, its PCI address must be ${formatPci(place)}`,
    )
}

/** An address that the definition gave was reserved with all the others. */
function fixSata(device: ControllerDef, addresses: PciAddressSet): void {
  const given = pciPlace(device.address) !== undefined
  fix(device, at(0x1f, 2))
  if (!given) addresses.reserve(describeDevice({ kind: 'controller', device }), at(0x1f, 2), connect.pcieDevice)
}

function prefer(device: ControllerDef, addresses: PciAddressSet, places: PciAddress[], shared: boolean): void {
  const place = places.find((candidate) => !addresses.slotInUse(candidate))
  if (!place) return
  const flags = connect.pcieDevice | connect.dmiToPciBridge
  addresses.reserve(describeDevice({ kind: 'controller', device }), place, flags)
  device.address = shared ? { ...place, multifunction: 'on' } : place
}

/** The slot that QEMU itself gives to the first video card, or the next if that is taken. */
function placePrimaryVideo(def: DomainDef, addresses: PciAddressSet, keep: boolean): void {
  const [device] = def.videos
  if (!device || !wantsPci(device.address)) return
  const one = { kind: 'video' as const, device }
  const flags = connectFlags(one, isQ35(def))
  if (!flags) return
  const place = at(isQ35(def) ? 1 : 2)
  if (addresses.slotInUse(place)) {
    const next = addresses.reserveNext(describeDevice(one), flags)
    if (keep) device.address = next
  } else {
    addresses.reserve(describeDevice(one), place, flags)
    device.address = place
  }
}
