/** libvirt's own test data: nothing crashes, nothing is lost, and what was reached once stays reached (docs/corpus.json). */
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { confResult, corpusFiles, identicalOutput } from '../../scripts/corpus.js'
import { numbersOf, type CorpusNumbers } from '../../scripts/corpus-report.js'
import { inactiveDef } from '../../src/conf/inactive.js'
import { formatDomainXml } from '../../src/conf/format.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import { conformance, schemaMissing } from './support.js'

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

  test('the recorded numbers have not fallen', (t) => {
    const text = readFileSync(join(import.meta.dirname, '../../../docs/corpus.json'), 'utf8')
    const recorded = JSON.parse(text) as CorpusNumbers
    const now = numbersOf(result, identicalOutput(source ?? ''))
    if (now.files !== recorded.files) {
      t.skip(`the tree has ${now.files} files, not the ${recorded.files} of libvirt 9.0.0`)
      return
    }
    for (const name of ['parsed', 'roundTrip', 'validOutput', 'identical', 'refusedByParser'] as const) {
      if (name === 'validOutput' && schemaMissing() !== undefined) continue
      const margin = name === 'parsed' || name === 'roundTrip' ? now.refusedByParser - recorded.refusedByParser : 0
      assert.ok(now[name] + margin >= recorded[name], `${name}: ${now[name]}, recorded were ${recorded[name]}`)
    }
  })
})
