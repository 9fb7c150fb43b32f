/** libvirt's own test data: nothing crashes, nothing is lost, and what was reached once stays reached (docs/corpus.json). */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { confResult, corpusFiles, identicalOutput } from '../../scripts/corpus.js'
import { qemuResult } from '../../scripts/corpus-qemu.js'
import { numbersOf, type CorpusNumbers } from '../../scripts/corpus-report.js'
import { inactiveDef } from '../../src/conf/inactive.js'
import { formatDomainXml } from '../../src/conf/format.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import { conformance, schemaMissing } from './support.js'

function recorded(): CorpusNumbers {
  return JSON.parse(readFileSync(join(import.meta.dirname, '../../../docs/corpus.json'), 'utf8')) as CorpusNumbers
}

const source = process.env['LIBVIRT_SOURCE']
const missing = source === undefined ? 'LIBVIRT_SOURCE does not name a tree of libvirt (apt-get source libvirt)' : false

describe("libvirt's test data", { skip: missing }, () => {
  const files = source === undefined ? [] : corpusFiles(source)
  const result = confResult(files)

  test('nothing crashes', () => {
    assert.deepEqual([...result.crashes], [])
  })

  test('nothing is refused that libvirt takes', () => {
    const refused = files.filter(({ name, mustFail }) => !mustFail && result.refused.has(name))
    assert.deepEqual(
      refused.map(({ name }) => `${name}: ${result.refused.get(name) ?? ''}`),
      [],
    )
  })

  test('every definition is the same after a round trip, and its XML as valid as before', (t) => {
    const reason = schemaMissing()
    if (reason !== undefined) t.diagnostic(`validity not looked at: ${reason}`)
    assert.deepEqual([...result.failures], [])
  })

  test('the inactive form of every definition is the same after a round trip', () => {
    for (const def of result.defs.values()) {
      const inactive = formatDomainXml(def, { inactive: true, secure: true })
      assert.deepEqual(inactiveDef(parseDomainXml(inactive)), parseDomainXml(inactive))
      conformance(inactive)
    }
  })

  const slow =
    process.env['CORPUS_QEMU'] === '1'
      ? false
      : 'runs where CORPUS_QEMU=1 is set besides LIBVIRT_SOURCE: it takes minutes'
  test('real QEMU takes as many command lines as recorded', { skip: slow }, async (t) => {
    const qemu = await qemuResult(result.defs, (text) => t.diagnostic(text))
    const now = numbersOf(result, { files: 0, identical: 0 }, qemu)
    assert.equal(now.crashes, 0)
    for (const name of ['defined', 'commands', 'accepted', 'refusedAtDefine'] as const) {
      assert.ok((now[name] ?? 0) >= (recorded()[name] ?? 0), `${name}: ${now[name]}, recorded were ${recorded()[name]}`)
    }
  })

  test('the recorded numbers have not fallen', (t) => {
    const before = recorded()
    const now = numbersOf(result, identicalOutput(source ?? ''))
    if (now.files !== before.files) {
      t.skip(`the tree has ${now.files} files, not the ${before.files} of libvirt 9.0.0`)
      return
    }
    for (const name of ['parsed', 'roundTrip', 'validOutput', 'identical', 'refusedByParser'] as const) {
      if (name === 'validOutput' && schemaMissing() !== undefined) continue
      const margin = name === 'parsed' || name === 'roundTrip' ? now.refusedByParser - before.refusedByParser : 0
      assert.ok(now[name] + margin >= before[name], `${name}: ${now[name]}, recorded were ${before[name]}`)
    }
  })
})
