import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { formatDomainXml } from '../../src/conf/format.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import { schemaFolders } from '../../src/conf/validate.js'

/** The text, and what is said about a domain in it, survive being read and written any number of times. */
export function conformance(xml: string): void {
  const def = parseDomainXml(xml)
  const before = structuredClone(def)
  const text = formatDomainXml(def, { secure: true })
  assert.deepEqual(def, before, 'writing changes nothing')
  const again = parseDomainXml(text)
  assert.deepEqual(again, def)
  assert.equal(formatDomainXml(again, { secure: true }), text)
}

/** Why the test can't run, or undefined. */
export function schemaMissing(): string | undefined {
  if (schemaFolders.some((folder) => existsSync(join(folder, 'domain.rng')))) return undefined
  return "libvirt's schemas (Debian package libvirt0) are not installed"
}

/** Files of libvirt's test data by name, or undefined and why. */
export function libvirtData(folder: string): { files: Map<string, string> } | { missing: string } {
  const source = process.env['LIBVIRT_SOURCE']
  if (source === undefined)
    return { missing: 'LIBVIRT_SOURCE does not name a tree of libvirt (apt-get source libvirt)' }
  const path = join(source, 'tests', folder)
  const names = readdirSync(path).filter((name) => name.endsWith('.xml') && existsSync(join(path, name)))
  return { files: new Map(names.map((name) => [name, readFileSync(join(path, name), 'utf8')])) }
}

/** A small domain with more in the places that are named. */
export function domainXml(parts: { devices?: string; os?: string; top?: string; attributes?: string } = {}): string {
  return `<domain type='qemu'${parts.attributes ?? ''}>
  <name>small</name>
  <memory unit='MiB'>64</memory>
  ${parts.top ?? ''}
  ${parts.os ?? "<os><type arch='x86_64' machine='pc'>hvm</type></os>"}
  <devices>
    ${parts.devices ?? ''}
  </devices>
</domain>`
}
