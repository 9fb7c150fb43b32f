/** The PCI buses of a guest, who sits in which slot, and where there is room (virDomainPCIAddressSet). */
import type { PciAddress } from '../conf/domain-def.js'
import { failFrom } from '../error.js'

const fail = failFrom('VIR_FROM_QEMU')

/** What a bus takes and a device needs: bits, so that both can hold several (virDomainPCIConnectFlags). */
export const connect = {
  /** libvirt may place a device here by itself */
  autoassign: 1 << 0,
  /** shares a slot with its like, a function each */
  aggregateSlot: 1 << 1,
  pciDevice: 1 << 4,
  pcieDevice: 1 << 5,
  pcieRootPort: 1 << 6,
  pcieSwitchUpstreamPort: 1 << 7,
  pcieSwitchDownstreamPort: 1 << 8,
  dmiToPciBridge: 1 << 9,
  pciExpanderBus: 1 << 10,
  pcieExpanderBus: 1 << 11,
  pciBridge: 1 << 12,
  pcieToPciBridge: 1 << 13,
} as const

const TYPES = ~(connect.autoassign | connect.aggregateSlot)
const ENDPOINT = connect.pciDevice | connect.pcieDevice
const MAX_BUSES = 256
const LAST_SLOT = 31
const LAST_FUNCTION = 7

interface BusKind {
  flags: number
  minSlot: number
  maxSlot: number
}

const PCI_BRIDGE: BusKind = {
  flags: connect.autoassign | connect.pciDevice | connect.pciBridge,
  minSlot: 1,
  maxSlot: LAST_SLOT,
}
const PCIE_PORT: BusKind = {
  flags: connect.autoassign | connect.pcieDevice | connect.pcieSwitchUpstreamPort | connect.pcieToPciBridge,
  minSlot: 0,
  maxSlot: 0,
}
/** What can be plugged in below a controller of a model (virDomainPCIAddressBusSetModel). */
const BUS_KINDS: Record<string, BusKind> = {
  'pci-root': { ...PCI_BRIDGE, flags: PCI_BRIDGE.flags | connect.pciExpanderBus },
  'pci-bridge': PCI_BRIDGE,
  'pcie-to-pci-bridge': PCI_BRIDGE,
  'pci-expander-bus': { ...PCI_BRIDGE, minSlot: 0 },
  'dmi-to-pci-bridge': { flags: connect.pciDevice | connect.pciBridge, minSlot: 0, maxSlot: LAST_SLOT },
  'pcie-root': {
    flags: connect.pcieDevice | connect.pcieRootPort | connect.dmiToPciBridge | connect.pcieExpanderBus,
    minSlot: 1,
    maxSlot: LAST_SLOT,
  },
  'pcie-root-port': PCIE_PORT,
  'pcie-switch-downstream-port': PCIE_PORT,
  'pcie-switch-upstream-port': { flags: connect.pcieSwitchDownstreamPort, minSlot: 0, maxSlot: LAST_SLOT },
  'pcie-expander-bus': { flags: connect.pcieRootPort | connect.dmiToPciBridge, minSlot: 0, maxSlot: LAST_SLOT },
}

/** How the one upstream connection of a controller model is called; absent: it has none. */
export const CONTROLLER_CONNECT: Record<string, number> = {
  'pci-bridge': connect.pciBridge,
  'pci-expander-bus': connect.pciExpanderBus,
  'pcie-expander-bus': connect.pcieExpanderBus,
  'dmi-to-pci-bridge': connect.dmiToPciBridge,
  'pcie-to-pci-bridge': connect.pcieToPciBridge,
  'pcie-root-port': connect.pcieRootPort | connect.aggregateSlot,
  'pcie-switch-upstream-port': connect.pcieSwitchUpstreamPort,
  'pcie-switch-downstream-port': connect.pcieSwitchDownstreamPort,
}

export function isPciControllerModel(model: string): boolean {
  return model in BUS_KINDS
}

interface Slot {
  /** owners by function */
  functions: Map<number, string>
  /** every user may share the slot */
  aggregate: boolean
}

class Bus {
  readonly model: string
  readonly minSlot: number
  readonly maxSlot: number
  flags: number
  readonly slots: Slot[] = Array.from({ length: LAST_SLOT + 1 }, () => ({ functions: new Map(), aggregate: false }))

  constructor(model: string) {
    const kind = BUS_KINDS[model]
    if (!kind) throw fail('VIR_ERR_INTERNAL_ERROR', `'${model}' is not a PCI controller model`)
    this.model = model
    this.flags = kind.flags
    this.minSlot = kind.minSlot
    this.maxSlot = kind.maxSlot
  }

  isFull(): boolean {
    return this.slots.slice(this.minSlot, this.maxSlot + 1).every(({ functions }) => functions.size > 0)
  }
}

export interface PciSlot {
  bus: number
  slot: number
  function: number
}

export function formatPci({ bus, slot, function: fn }: PciSlot): string {
  const hex = (value: number): string => value.toString(16).padStart(2, '0')
  return `0000:${hex(bus)}:${hex(slot)}.${fn}`
}

export class PciAddressSet {
  readonly buses: Bus[]
  /** buses are added as they are needed */
  readonly #grows: boolean
  readonly #pcieToPci: boolean

  constructor(models: string[], options: { grows: boolean; pcieToPci: boolean }) {
    this.buses = models.map((model) => new Bus(model))
    this.#grows = options.grows
    this.#pcieToPci = options.pcieToPci
  }

  slotInUse({ bus, slot }: { bus: number; slot: number }): boolean {
    return (this.buses[bus]?.slots[slot]?.functions.size ?? 0) > 0
  }

  isFull(): boolean {
    return this.buses.every((bus) => bus.isFull())
  }

  /** Takes a place that the definition or the machine names; VIR_ERR_XML_ERROR when it cannot be had. */
  reserve(label: string, address: PciSlot & { domain?: number }, flags: number): void {
    const place = `${formatPci(address)} of ${label}`
    if (address.domain)
      throw fail('VIR_ERR_XML_ERROR', `PCI address of ${label} is invalid: only domain 0 is available`)
    if (this.#grows && address.bus >= this.buses.length) this.#grow(address.bus - this.buses.length + 1, flags)
    const bus = this.buses[address.bus]
    if (!bus)
      throw fail(
        'VIR_ERR_XML_ERROR',
        `PCI address ${place} is invalid: there are only buses up to ${this.buses.length - 1}`,
      )
    this.#checkFit(place, bus, address, flags)
    this.#take(label, bus, address, flags)
  }

  #checkFit(place: string, bus: Bus, address: PciSlot, flags: number): void {
    const offered = bus.flags & ENDPOINT ? bus.flags | ENDPOINT : bus.flags
    const needed = flags & connect.pciBridge ? flags | connect.pciDevice : flags
    if (!(offered & needed & TYPES))
      throw fail('VIR_ERR_XML_ERROR', `PCI address ${place} cannot be used: bus ${address.bus} is a ${bus.model}`)
    if (address.slot < bus.minSlot || address.slot > bus.maxSlot)
      throw fail(
        'VIR_ERR_XML_ERROR',
        `PCI address ${place} is invalid: the slots of bus ${address.bus} are ${bus.minSlot} to ${bus.maxSlot}`,
      )
    if (address.function > LAST_FUNCTION)
      throw fail('VIR_ERR_XML_ERROR', `PCI address ${place} is invalid: functions are 0 to ${LAST_FUNCTION}`)
  }

  #take(label: string, bus: Bus, address: PciSlot, flags: number): void {
    const slot = bus.slots[address.slot]
    if (!slot) return
    const owner = slot.functions.get(address.function)
    if (owner !== undefined)
      throw fail('VIR_ERR_XML_ERROR', `PCI address ${formatPci(address)} is taken by ${owner}, ${label} cannot have it`)
    if (slot.functions.size === 0 && flags & connect.aggregateSlot) slot.aggregate = true
    slot.functions.set(address.function, label)
  }

  /** Finds and takes the first place where a device of these needs may go, on a new bus if there is none. */
  reserveNext(label: string, flags: number, fn?: number): PciAddress {
    const found = this.#findFree(flags, fn) ?? this.#newPlace(label, flags, fn ?? 0)
    const bus = this.buses[found.bus]
    if (bus) this.#take(label, bus, found, flags)
    return { type: 'pci', domain: 0, ...found }
  }

  #findFree(flags: number, fn: number | undefined): PciSlot | undefined {
    for (const [at, bus] of this.buses.entries()) {
      if (!(bus.flags & flags & TYPES) || (flags & connect.autoassign && !(bus.flags & connect.autoassign))) continue
      for (let number = bus.minSlot; number <= bus.maxSlot; number++) {
        const slot = bus.slots[number]
        if (!slot) continue
        const free = this.#freeFunction(slot, flags, fn)
        if (free !== undefined) return { bus: at, slot: number, function: free }
      }
    }
    return undefined
  }

  #freeFunction({ functions, aggregate }: Slot, flags: number, fn: number | undefined): number | undefined {
    if (functions.size === 0) return fn ?? 0
    if (!aggregate || !(flags & connect.aggregateSlot)) return undefined
    const wanted = fn === undefined ? [...Array(LAST_FUNCTION + 1).keys()] : [fn]
    return wanted.find((number) => !functions.has(number))
  }

  #newPlace(label: string, flags: number, fn: number): PciSlot {
    if (!this.#grows) throw fail('VIR_ERR_INTERNAL_ERROR', `no PCI slot is left for ${label}`)
    const bridgesNeeded = flags & connect.pciDevice && !this.#takesBridges()
    this.#grow(bridgesNeeded ? 2 : 1, flags)
    const bus = this.buses.length - 1
    return { bus, slot: this.buses[bus]?.minSlot ?? 0, function: fn }
  }

  #takesBridges(): boolean {
    return this.buses.some((bus) => bus.flags & connect.pciBridge)
  }

  /** Adds buses, on the last of which a device of these needs can sit (virDomainPCIAddressSetGrow). */
  #grow(count: number, flags: number): void {
    if (flags & connect.pciDevice && this.#takesBridges()) this.#add('pci-bridge', count)
    else if (flags & connect.pciDevice && count > 1) this.#growFromExpress(count)
    else if (flags & (connect.pciDevice | connect.pcieDevice | connect.pcieSwitchUpstreamPort))
      this.#add('pcie-root-port', count)
    else
      throw fail(
        'VIR_ERR_XML_ERROR',
        'a PCI controller has no free slot to be plugged in, and none can be added for it',
      )
  }

  /** From PCI Express to conventional PCI: a root port that is kept for the bridge, the bridge, and more below it. */
  #growFromExpress(count: number): void {
    if (this.#pcieToPci) {
      this.#add('pcie-root-port', 1, connect.pcieToPciBridge)
      this.#add('pcie-to-pci-bridge', 1)
      this.#add('pci-bridge', count - 2)
    } else {
      this.#add('dmi-to-pci-bridge', 1)
      this.#add('pci-bridge', count - 1)
    }
  }

  #add(model: string, count: number, flags?: number): void {
    if (this.buses.length + count > MAX_BUSES)
      throw fail('VIR_ERR_XML_ERROR', `there are more devices than ${MAX_BUSES} PCI buses hold`)
    for (let i = 0; i < count; i++) {
      const bus = new Bus(model)
      if (flags !== undefined) bus.flags = flags
      this.buses.push(bus)
    }
  }
}
