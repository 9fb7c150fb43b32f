import type { DomainDef, Residue, StorageSource } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { checkDevices } from './checks-device.js'
import { checkDisks } from './checks-disk.js'
import { checkDomain } from './checks-domain.js'
import type { DefinitionCaps } from './definition-caps.js'
import { describeDevice, devicesOf } from './devices.js'
import { UNSUPPORTED } from './supported-table.js'

const fail = failFrom('VIR_FROM_QEMU')

/**
 * Refuses a prepared definition that asks for something that we know and cannot honour, or that contradicts itself:
 * VIR_ERR_CONFIG_UNSUPPORTED and VIR_ERR_XML_ERROR, as libvirt's qemu driver does at define (virDomainDefValidate,
 * qemuValidateDomainDef). The sentence names the element.
 */
export function checkSupported(def: DomainDef, caps: DefinitionCaps): void {
  for (const { owner, label, residue } of residuesOf(def)) checkResidue(owner, label, residue)
  checkDomain(def, caps)
  checkDisks(def, caps)
  checkDevices(def, caps)
}

interface OwnedResidue {
  /** first word of a path in the table */
  owner: string
  /** how an error names the owner; '' for the domain itself */
  label: string
  residue: Residue[]
}

function residuesOf(def: DomainDef): OwnedResidue[] {
  const of = (owner: string, label: string, part?: { residue?: Residue[] }): OwnedResidue[] =>
    part?.residue ? [{ owner, label, residue: part.residue }] : []
  return [
    ...of('domain', '', def),
    ...of('vcpu', '', def.vcpu),
    ...of('os', '', def.os),
    ...of('features', '', def.features),
    ...of('cpu', '', def.cpu),
    ...of('clock', '', def.clock),
    ...def.clock.timers.flatMap((timer) => of('timer', `timer '${timer.name}'`, timer)),
    ...devicesOf(def).flatMap((one) => of(one.kind, describeDevice(one), one.device)),
    ...def.graphics.flatMap((graphics) => of('graphics', `graphics '${graphics.type}'`, graphics)),
    ...def.disks.flatMap((disk) =>
      imagesOf(disk.source).flatMap((image) => of('image', `disk '${disk.target}'`, image)),
    ),
  ]
}

function imagesOf(source: StorageSource | undefined): StorageSource[] {
  const images: StorageSource[] = []
  for (let image = source; image; image = image.backingStore ?? undefined) images.push(image)
  return images
}

function checkResidue(owner: string, label: string, residue: Residue[]): void {
  for (const { path, attributes = [], elements = [] } of residue) {
    const place = path.replaceAll(/\[\d+\]/g, '')
    const names = [...attributes.map(({ name }) => `@${name}`), ...elements.flatMap(elementName)]
    for (const name of names) refuseKnown([owner, place, name], label)
    for (const element of elements) refuseNested(owner, place, element, label)
  }
}

function refuseKnown([owner, ...rest]: string[], label: string): void {
  const path = rest.filter((step) => step !== '').join('/')
  const what = UNSUPPORTED[`${owner ?? ''}/${path}`] ?? (label ? UNSUPPORTED[`*/${path}`] : undefined)
  if (what === undefined) return
  throw fail('VIR_ERR_CONFIG_UNSUPPORTED', label ? `${label}: ${what} cannot be used` : `${what} cannot be used`)
}

/** What an element that was kept whole holds, one level down: `<kvm><poll-control …/></kvm>`. */
function refuseNested(owner: string, place: string, element: string, label: string): void {
  const [name] = elementName(element)
  if (name === undefined) return
  for (const inner of element.slice(1).matchAll(/<([\w.-]+)[\s/>]/g))
    refuseKnown([owner, place, name, inner[1] ?? ''], label)
}

/** The name of a serialized element; none for one of a foreign namespace. */
function elementName(element: string): string[] {
  const [, name, rest] = /^<([\w.-]+)([\s/>][^>]*)/.exec(element) ?? []
  if (name === undefined || /\sxmlns=/.test(rest ?? '')) return []
  return [name]
}
