import assert from 'node:assert/strict'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import type { DomainDef } from '../../src/conf/domain-def.js'
import { formatDomainXml } from '../../src/conf/format.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import { readXml, type XmlElement } from '../../src/conf/xml.js'
import { VirError } from '../../src/error.js'
import { prepareDefinition } from '../../src/machine/definition.js'
import { checkSupported } from '../../src/machine/supported.js'
import { requires } from '../support/requires.js'
import { capsWith, type Expectation, expectations, invalidDefinitions } from './definition-corpus.js'

const data = join(import.meta.dirname, '../../../test/data/definition')
const validRatchet = join(data, 'libvirt-valid.json')
const invalidRatchet = join(data, 'libvirt-invalid.json')

/** Compares with the best so far; `UPDATE=1` makes what was reached the best. */
function record<T>(file: string, reached: T, compare: (reached: T, recorded: T) => void): void {
  if (process.env['UPDATE']) writeFileSync(file, `${JSON.stringify(reached, null, 2)}\n`)
  compare(reached, JSON.parse(readFileSync(file, 'utf8')) as T)
}

/** How far we agree with libvirt; only ever more. */
interface Ratchet {
  definitions: number
  /** same XML, element by element */
  agree: number
  /** other XML */
  differ: number
  /** refused by us by name, while libvirt takes them */
  refused: number
}

/** What libvirt adds and we do not: a sound server for no sound. */
const IGNORED = ['audio']

function lines(element: XmlElement, path = ''): string[] {
  const attributes = element.attributes.map(({ name, value }) => `${name}=${value}`).sort()
  const children = element.children.filter((child) => child.kind === 'element')
  const text =
    children.length > 0 ? '' : element.children.map((child) => ('value' in child ? child.value : '')).join('')
  const counts = new Map<string, number>()
  const below = children
    .filter((child) => !IGNORED.includes(child.name))
    .flatMap((child) => {
      const nth = counts.get(child.name) ?? 0
      counts.set(child.name, nth + 1)
      return lines(child, `${path}/${child.name}[${nth}]`)
    })
  return [`${path} ${attributes.join(' ')} ${text.trim()}`, ...below]
}

/** libvirt's test reads definitions as if they were old ones, and those get no USB ports. */
const isUsbPort = (line: string): boolean => / type=usb/.test(line) && /\/address\[0\]/.test(line)

function differences(ours: string, theirs: string): string[] {
  const a = lines(readXml(ours))
  const b = lines(readXml(theirs))
  return [
    ...a.filter((line) => !b.includes(line) && !isUsbPort(line)).map((line) => `+ ${line}`),
    ...b.filter((line) => !a.includes(line)).map((line) => `- ${line}`),
  ]
}

type Outcome = { kind: 'agree' } | { kind: 'refused'; why: string } | { kind: 'differ'; how: string[] }

function outcome({ xml, expected, caps }: Expectation): Outcome {
  let def: DomainDef
  try {
    def = parseDomainXml(xml)
    prepareDefinition(def, caps)
    const full = parseDomainXml(xml)
    prepareDefinition(full, capsWith())
    checkSupported(full, capsWith())
  } catch (error) {
    if (!(error instanceof VirError)) throw error
    return { kind: 'refused', why: `${error.code}: ${error.message}` }
  }
  const prepared = formatDomainXml(def, { inactive: true, secure: true })
  prepareDefinition(def, caps)
  assert.equal(formatDomainXml(def, { inactive: true, secure: true }), prepared, 'a second time changes nothing')
  const again = parseDomainXml(prepared)
  prepareDefinition(again, caps)
  assert.equal(formatDomainXml(again, { inactive: true, secure: true }), prepared, 'what was stored stays as it is')
  const how = differences(prepared, expected)
  return how.length === 0 ? { kind: 'agree' } : { kind: 'differ', how }
}

test("prepared definitions of libvirt's test data agree with libvirt, as often as they ever did", (t) => {
  if (!requires(t, 'env:LIBVIRT_SOURCE')) return
  const outcomes = expectations().map((one) => ({ name: one.name, ...named(one) }))
  const count = (kind: Outcome['kind']): number => outcomes.filter((one) => one.kind === kind).length
  const reached: Ratchet = {
    definitions: outcomes.length,
    agree: count('agree'),
    differ: count('differ'),
    refused: count('refused'),
  }
  for (const one of outcomes) if (one.kind !== 'agree') t.diagnostic(`${one.name}: ${JSON.stringify(one)}`)
  record(validRatchet, reached, (now, best) => {
    assert.ok(now.agree >= best.agree, `${now.agree} agree, ${best.agree} did`)
    assert.ok(now.differ <= best.differ, `${now.differ} differ, ${best.differ} did`)
    assert.ok(now.refused <= best.refused, `${now.refused} are refused, ${best.refused} were`)
  })
})

function named(one: Expectation): Outcome {
  try {
    return outcome(one)
  } catch (error) {
    throw new Error(`with ${one.name}`, { cause: error })
  }
}

test("definitions of libvirt's test data that libvirt refuses are refused, as often as they ever were", (t) => {
  if (!requires(t, 'env:LIBVIRT_SOURCE')) return
  const all = invalidDefinitions()
  const taken = all.filter(({ xml }) => refusal(xml) === undefined)
  for (const { name, xml, reason } of all) t.diagnostic(`${name}: ${refusal(xml) ?? 'TAKEN'} (libvirt: ${reason})`)
  record(invalidRatchet, { definitions: all.length, taken: taken.length }, (reached, recorded) =>
    assert.ok(reached.taken <= recorded.taken, `${reached.taken} are taken, ${recorded.taken} were`),
  )
})

function refusal(xml: string): string | undefined {
  try {
    const def = parseDomainXml(xml)
    prepareDefinition(def, capsWith())
    checkSupported(def, capsWith())
    return undefined
  } catch (error) {
    if (!(error instanceof VirError)) throw error
    return `${error.code}: ${error.message}`
  }
}
