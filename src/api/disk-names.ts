import { parseDomainXml } from '../conf/parse.js'
import type { StorageSource } from '../conf/domain-def.js'
import type { Domain } from './domain.js'

function pathOf(source: StorageSource | undefined): string | undefined {
  if (source === undefined) return undefined
  return source.type === 'network' ? source.name : source.path
}

/** The target dev of the disk that has `name` as its target dev, alias or source path; `name` itself where none has. */
export async function resolveDisk(domain: Domain, name: string): Promise<string> {
  const { disks } = parseDomainXml(await domain.getXMLDesc())
  const disk =
    disks.find(({ target }) => target === name) ??
    disks.find(({ alias, source }) => alias === name || pathOf(source) === name)
  return disk?.target ?? name
}
