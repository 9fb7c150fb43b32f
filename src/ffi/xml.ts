import { formatDomainXml } from '../conf/format.js'
import { parseDomainXml } from '../conf/parse.js'

/** A definition without what libvirtd says in it about its own host: the place of the domain among cgroups. */
export function forOtherHost(xml: string): string {
  const def = parseDomainXml(xml)
  for (const residue of def.residue ?? []) {
    if (residue.path !== '') continue
    const elements = residue.elements?.filter((element) => !/^<resource[\s/>]/.test(element))
    if (elements !== undefined) residue.elements = elements
  }
  return formatDomainXml(def, { inactive: true, secure: true, migratable: true })
}
