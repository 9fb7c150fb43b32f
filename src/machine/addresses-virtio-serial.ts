import type { ChardevDef, DomainDef, VirtioSerialAddress } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { ensureController } from './controllers.js'

const fail = failFrom('VIR_FROM_QEMU')

/** Ports of a controller that does not say how many it has. */
const DEFAULT_PORTS = 31

interface PortOwner {
  label: string
  device: ChardevDef
}

/** The virtio-serial ports of a domain: which there are and who has them. */
class PortBook {
  /** port numbers and their owners, by controller index */
  readonly #ports = new Map<number, { size: number; owners: Map<number, string> }>()
  readonly #def: DomainDef

  constructor(def: DomainDef) {
    this.#def = def
    for (const { type, index, ports } of def.controllers) {
      if (type === 'virtio-serial') this.#ports.set(index, { size: ports ?? DEFAULT_PORTS, owners: new Map() })
    }
  }

  reserve(label: string, controller: number, port: number): void {
    const book = this.#ports.get(controller)
    if (!book) throw fail('VIR_ERR_XML_ERROR', `virtio-serial controller ${controller} of ${label} is missing`)
    if (port >= book.size)
      throw fail('VIR_ERR_XML_ERROR', `virtio-serial controller ${controller} does not have port ${port} for ${label}`)
    const owner = book.owners.get(port)
    if (owner !== undefined)
      throw fail(
        'VIR_ERR_XML_ERROR',
        `virtio-serial port ${port} of controller ${controller} is taken by ${owner}, ${label} cannot have it`,
      )
    book.owners.set(port, label)
  }

  /** The first free port from `first` on, on one controller or on any; a controller is added when all are full. */
  next(first: number, controller?: number): { controller: number; port: number } {
    const candidates = controller === undefined ? [...this.#ports.keys()].sort((a, b) => a - b) : [controller]
    for (const index of candidates) {
      const book = this.#ports.get(index)
      for (let port = first; port < (book?.size ?? 0); port++) {
        if (!book?.owners.has(port)) return { controller: index, port }
      }
    }
    if (controller !== undefined)
      throw fail('VIR_ERR_XML_ERROR', `virtio-serial controller ${controller} has no free port`)
    return { controller: this.#addController(), port: first }
  }

  #addController(): number {
    let index = 0
    while (this.#ports.has(index)) index++
    ensureController(this.#def, 'virtio-serial', index)
    this.#ports.set(index, { size: DEFAULT_PORTS, owners: new Map() })
    return index
  }
}

/**
 * Ports for virtio channels and consoles (qemuDomainAssignVirtioSerialAddresses). Port 0 of a controller is for
 * consoles; a console without an address keeps none, QEMU places it on the first free port.
 */
export function assignVirtioSerialAddresses(def: DomainDef): void {
  const channels = portOwners(def.channels, 'channel')
  const consoles = portOwners(def.consoles, 'console')
  if (channels.length + consoles.length === 0) return
  const book = new PortBook(def)
  for (const { label, device } of [...channels, ...consoles]) {
    const address = serialAddress(device)
    if (address?.port) book.reserve(label, address.controller, address.port)
  }
  for (const { label, device } of consoles) {
    const address = serialAddress(device)
    if (address?.port) continue
    const place = book.next(address ? 1 : 0, address?.controller)
    book.reserve(label, place.controller, place.port)
  }
  for (const { label, device } of channels) {
    const address = serialAddress(device)
    if (address?.port) continue
    const place = book.next(1, address?.controller)
    book.reserve(label, place.controller, place.port)
    device.address = { type: 'virtio-serial', controller: place.controller, bus: 0, port: place.port }
  }
}

function serialAddress({ address }: ChardevDef): VirtioSerialAddress | undefined {
  return address?.type === 'virtio-serial' ? address : undefined
}

function portOwners(devices: ChardevDef[], kind: string): PortOwner[] {
  return devices
    .filter(({ targetType }) => targetType === 'virtio')
    .map((device, nth) => ({ label: `${kind} '${device.name ?? nth}'`, device }))
}
