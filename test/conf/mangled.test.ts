/** Definitions with random damage: each is refused as a VirError, or survives a round trip. The damage is the same each time. */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { parseDomainXml } from '../../src/conf/parse.js'
import { VirError } from '../../src/error.js'
import { conformance } from './support.js'

const folder = join(import.meta.dirname, '../../../test/data/conf')
const rounds = Number(process.env['MANGLE_ROUNDS'] ?? 300)

/** Numerical Recipes' generator: enough to pick places, and the same on every machine. */
function random(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state % below
  }
}

const odd = [
  '',
  '-1',
  '0',
  '99999999999999999999',
  '0x',
  'yes',
  'on',
  'auto',
  'none',
  'a b',
  '&amp;#',
  'é',
  '%s%n',
  '../..',
  '1e3',
]

function mangle(xml: string, pick: (below: number) => number): string {
  const at = <T>(items: readonly T[]): T | undefined => items[pick(items.length || 1)]
  const attribute = at([...xml.matchAll(/ [\w:]+='[^']*'/g)])
  const element = at([...xml.matchAll(/<(\w+)(?: [^<>]*)?\/>/g)])
  const text = at([...xml.matchAll(/>[^<>\s][^<>]*</g)])
  const cut = (match: RegExpExecArray | undefined, by: string): string =>
    match === undefined ? xml : xml.slice(0, match.index) + by + xml.slice(match.index + match[0].length)
  switch (pick(6)) {
    case 0:
      return cut(
        attribute,
        (attribute?.[0] ?? '').replace(/'.*'/s, () => `'${at(odd) ?? ''}'`),
      )
    case 1:
      return cut(attribute, '')
    case 2:
      return cut(element, '')
    case 3:
      return cut(element, (element?.[0] ?? '').repeat(2))
    case 4:
      return cut(text, `>${at(odd) ?? ''}<`)
    default:
      return cut(element, `<x>${element?.[0] ?? ''}</x>`)
  }
}

for (const name of readdirSync(folder).filter((file) => file.endsWith('.out.xml'))) {
  test(`damaged forms of ${name} are refused properly or kept whole`, (t) => {
    const pick = random(name.length)
    const xml = readFileSync(join(folder, name), 'utf8')
    let taken = 0
    for (let round = 0; round < rounds; round++) {
      let damaged = xml
      for (let times = pick(3); times >= 0; times--) damaged = mangle(damaged, pick)
      try {
        parseDomainXml(damaged)
      } catch (error) {
        assert.ok(error instanceof VirError, `${String(error)}\n${damaged}`)
        continue
      }
      taken++
      try {
        conformance(damaged)
      } catch (error) {
        assert.fail(`${String(error)}\n${damaged}`)
      }
    }
    t.diagnostic(`${taken} of ${rounds} were taken`)
    assert.ok(taken > rounds / 20 && taken < rounds)
  })
}
