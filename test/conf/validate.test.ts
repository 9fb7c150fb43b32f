import assert from 'node:assert/strict'
import { cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { schemaFolders, validateDomainXml } from '../../src/conf/validate.js'
import { VirError, type VirErrorCode } from '../../src/error.js'
import { domainXml, schemaMissing } from './support.js'

function refuses(action: () => void, code: VirErrorCode, says: RegExp): void {
  assert.throws(action, (error) => {
    assert.ok(error instanceof VirError, String(error))
    assert.match(error.message, says)
    assert.equal(error.code, code)
    return true
  })
}

const grammar = (inside: string): string => `<grammar xmlns="http://relaxng.org/ns/structure/1.0">${inside}</grammar>`

test('where the schema is not installed, the error says which folders were searched', () => {
  refuses(
    () => validateDomainXml(domainXml(), ['/nowhere', '/else']),
    'VIR_ERR_OPERATION_UNSUPPORTED',
    /'\/nowhere', '\/else'/,
  )
})

test('a schema may include files of its own folder only', () => {
  const folder = mkdtempSync(join(tmpdir(), 'virstream-schema-'))
  try {
    const start = '<start><element name="domain"><ref name="inside"/></element></start>'
    const definition = grammar('<define name="inside"><empty/></define>')
    for (const name of ['good', 'bad']) mkdirSync(join(folder, name))
    writeFileSync(join(folder, 'outside.rng'), definition)
    writeFileSync(join(folder, 'good/inside.rng'), definition)
    writeFileSync(join(folder, 'good/domain.rng'), grammar(`<include href="inside.rng"/>${start}`))
    writeFileSync(join(folder, 'bad/domain.rng'), grammar(`<include href="../outside.rng"/>${start}`))
    validateDomainXml('<domain/>', [join(folder, 'good')])
    refuses(() => validateDomainXml('<host/>', [join(folder, 'good')]), 'VIR_ERR_XML_INVALID_SCHEMA', /domain/)
    refuses(() => validateDomainXml('<domain/>', [join(folder, 'bad')]), 'VIR_ERR_INTERNAL_ERROR', /can't be read/)
  } finally {
    rmSync(folder, { recursive: true })
  }
})

describe("libvirt's own schema", { skip: schemaMissing() ?? false }, () => {
  test('takes a small domain', () => {
    validateDomainXml(domainXml())
  })

  test('refuses an element that is none, and says where', () => {
    const xml = domainXml({ devices: '<bogus/>' })
    refuses(
      () => validateDomainXml(xml),
      'VIR_ERR_XML_INVALID_SCHEMA',
      /line 6 \(\/domain\/devices\): Extra element devices/,
    )
  })

  test('refuses text that is no XML as the parser does', () => {
    refuses(() => validateDomainXml('<domain>'), 'VIR_ERR_XML_DETAIL', /not well-formed: line 1/)
    refuses(() => validateDomainXml('<!DOCTYPE a [<!ENTITY b "c">]><a/>'), 'VIR_ERR_XML_ERROR', /not allowed/)
  })

  test('is read again from another folder', () => {
    const folder = mkdtempSync(join(tmpdir(), 'virstream-schema-'))
    try {
      const installed = schemaFolders.find((each) => existsSync(join(each, 'domain.rng'))) ?? ''
      cpSync(installed, folder, { recursive: true })
      validateDomainXml(domainXml(), [folder])
    } finally {
      rmSync(folder, { recursive: true })
    }
  })
})
