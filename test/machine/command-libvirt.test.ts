import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { VirError } from '../../src/error.js'
import { requires } from '../support/requires.js'
import { corpusNames, libvirtCommand, ourCommand } from './command-corpus.js'
import { goldenFolder } from './command-golden.js'

interface Record {
  /** libvirt's test cases with an expected command line for x86_64 */
  total: number
  /** those where ours says the same */
  equal: number
  /** those that ask for what we refuse, by name */
  refused: number
  /** those where ours differs */
  different: string[]
}

const recordFile = join(goldenFolder, 'libvirt.json')

function compare(): Record {
  const names = corpusNames()
  const record: Record = { total: names.length, equal: 0, refused: 0, different: [] }
  for (const name of names) {
    try {
      const ours = ourCommand(name)
      if (JSON.stringify(ours) === JSON.stringify(libvirtCommand(name))) record.equal++
      else record.different.push(name)
    } catch (error) {
      assert.ok(error instanceof VirError, `${name}: ${error instanceof Error ? (error.stack ?? '') : String(error)}`)
      record.refused++
    }
  }
  return record
}

test('libvirt’s own test cases give libvirt’s command line, or are refused', (t) => {
  if (!requires(t, 'env:LIBVIRT_SOURCE')) return
  const now = compare()
  const before = JSON.parse(readFileSync(recordFile, 'utf8')) as Record
  const news = now.different.filter((name) => !before.different.includes(name))
  t.diagnostic(`${now.equal} equal, ${now.different.length} different, ${now.refused} refused of ${now.total}`)
  if (process.env['UPDATE'] === '1') writeFileSync(recordFile, JSON.stringify(now, null, 2) + '\n')
  assert.deepEqual(news, [], 'these did not differ before, or were refused')
  assert.ok(now.equal >= before.equal, `${now.equal} are equal, it were ${before.equal}`)
})
