/** XML in → XML out. `UPDATE=1` rewrites what is expected. */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { formatDomainXml } from '../../src/conf/format.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import { validateDomainXml } from '../../src/conf/validate.js'
import { conformance, schemaMissing } from './support.js'

const folder = join(import.meta.dirname, '../../../test/data/conf')
const names = readdirSync(folder).filter((name) => name.endsWith('.xml') && !name.includes('.out'))

function expectFile(name: string, actual: string): void {
  const path = join(folder, name)
  if (process.env['UPDATE'] === '1') writeFileSync(path, actual)
  assert.equal(actual, readFileSync(path, 'utf8'))
}

for (const name of names) {
  const xml = readFileSync(join(folder, name), 'utf8')
  const stem = name.replace('.xml', '')

  test(`${name} is written as libvirt would write it`, () => {
    expectFile(`${stem}.out.xml`, formatDomainXml(parseDomainXml(xml), { secure: true }))
  })

  test(`${name} loses passwords and what only a running domain has in its inactive form`, () => {
    expectFile(`${stem}.out-inactive.xml`, formatDomainXml(parseDomainXml(xml), { inactive: true }))
  })

  test(`${name} says the same after a round trip`, () => {
    conformance(xml)
  })
}

test('what virt-install writes for a server stays valid against the schema of libvirt', (t) => {
  const missing = schemaMissing()
  if (missing !== undefined) {
    t.skip(missing)
    return
  }
  validateDomainXml(formatDomainXml(parseDomainXml(readFileSync(join(folder, 'server.xml'), 'utf8'))))
})
