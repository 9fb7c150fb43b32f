import { existsSync, lstatSync, readdirSync, readFileSync, rmSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import type { DomainDef } from '../../conf/domain-def.js'
import { formatDomainXml } from '../../conf/format.js'
import { parseDomainXml } from '../../conf/parse.js'
import { failFrom, wordsOf } from '../../error.js'
import { type Root, writeFileAtomically } from './root.js'

const fail = failFrom('VIR_FROM_QEMU')

const configFile = (root: Root, name: string): string => join(root.configDir, `${name}.xml`)
const autostartLink = (root: Root, name: string): string => join(root.autostartDir, `${name}.xml`)

/** A name becomes a file name; libvirt refuses the same ones. */
export function checkDomainName(name: string): void {
  if (name.includes('/')) throw fail('VIR_ERR_XML_ERROR', `name '${name}' cannot contain '/'`)
  if (name.includes('\n')) throw fail('VIR_ERR_XML_ERROR', `name '${name}' cannot contain a line break`)
  if (name === '.' || name === '..') throw fail('VIR_ERR_XML_ERROR', `name '${name}' cannot be used for a file`)
  if (Buffer.byteLength(name) > 200) throw fail('VIR_ERR_XML_ERROR', `name '${name}' is longer than 200 bytes`)
}

export function saveConfig(root: Root, def: DomainDef): void {
  writeFileAtomically(configFile(root, def.name), formatDomainXml(def, { inactive: true, secure: true }))
}

export function deleteConfig(root: Root, name: string): void {
  // the link first: one that is left behind would start the next domain of that name
  rmSync(autostartLink(root, name), { force: true })
  rmSync(configFile(root, name), { force: true })
}

export function setAutostartLink(root: Root, name: string, autostart: boolean): void {
  const link = autostartLink(root, name)
  rmSync(link, { force: true })
  if (autostart) symlinkSync(join('..', `${name}.xml`), link)
}

/** Every persistent definition of the root. One that cannot be read is reported and left where it is. */
export function loadConfigs(root: Root, warn: (text: string) => void): { def: DomainDef; autostart: boolean }[] {
  const found = new Map<string, { def: DomainDef; autostart: boolean }>()
  for (const file of readdirSync(root.configDir)) {
    const path = join(root.configDir, file)
    if (!file.endsWith('.xml') || !lstatSync(path).isFile()) continue
    try {
      const def = parseDomainXml(readFileSync(path, 'utf8'))
      if (file !== `${def.name}.xml`) throw new Error(`it is the definition of domain '${def.name}'`)
      const other = found.get(def.uuid)
      if (other !== undefined) throw new Error(`its uuid ${def.uuid} is that of domain '${other.def.name}'`)
      found.set(def.uuid, { def, autostart: existsSync(autostartLink(root, def.name)) })
    } catch (error) {
      warn(`cannot load the definition '${path}': ${wordsOf(error)}`)
    }
  }
  return [...found.values()]
}
