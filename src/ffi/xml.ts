import type { DomainDef } from '../conf/domain-def.js'
import { formatDomainXml } from '../conf/format.js'
import { parseDomainXml } from '../conf/parse.js'

/** A definition without what libvirtd says in it about its own host: the place of the domain among cgroups. */
export function forOtherHost(xml: string): string {
  return withoutHost(parseDomainXml(xml))
}

/**
 * The definition `xml` for the destination of a guest. Where it has the CPU that libvirtd names for a migration, `begun`, which
 * is the one that was asked for, it gets the one that the guest really has, down to its features.
 */
export function forDestination(xml: string, { begun, live }: { begun: string; live: string }): string {
  const def = parseDomainXml(xml)
  const { cpu } = parseDomainXml(live)
  const isAsked = JSON.stringify(def.cpu) === JSON.stringify(parseDomainXml(begun).cpu)
  return withoutHost({ ...def, ...(isAsked && cpu && { cpu }) })
}

function withoutHost(def: DomainDef): string {
  for (const residue of def.residue ?? []) {
    if (residue.path !== '') continue
    const elements = residue.elements?.filter((element) => !/^<resource[\s/>]/.test(element))
    if (elements !== undefined) residue.elements = elements
  }
  return formatDomainXml(def, { inactive: true, secure: true, migratable: true })
}
