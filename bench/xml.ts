/**
 * How many domain definitions a second are read, written and validated: over libvirt's test data where LIBVIRT_SOURCE names
 * its tree, else over our own. Run: `node dist/bench/xml.js [seconds per row]`.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { formatDomainXml } from '../src/conf/format.js'
import { parseDomainXml } from '../src/conf/parse.js'
import { validateDomainXml } from '../src/conf/validate.js'
import { messageOf, VirError } from '../src/error.js'

export interface XmlRate {
  what: string
  /** definitions a second */
  rate: number
  /** MB of XML a second */
  megabytes: number
}

const own = join(import.meta.dirname, '../../test/data/conf')

/** Texts that parse, and where they come from. */
export function benchTexts(source = process.env['LIBVIRT_SOURCE']): { from: string; texts: string[] } {
  const folder = source === undefined ? own : join(source, 'tests/qemuxml2argvdata')
  const texts = readdirSync(folder)
    .filter((name) => name.endsWith('.xml'))
    .flatMap((name) => readable(join(folder, name)))
  return { from: source === undefined ? 'test/data/conf' : "libvirt's tests/qemuxml2argvdata", texts }
}

/** A file that is a definition; the corpus holds broken ones and dangling links on purpose. */
function readable(path: string): string[] {
  try {
    const text = readFileSync(path, 'utf8')
    parseDomainXml(text)
    return [text]
  } catch (error) {
    if (error instanceof VirError || (error instanceof Error && 'code' in error && error.code === 'ENOENT')) return []
    throw error
  }
}

function measure(what: string, texts: string[], seconds: number, action: (at: number) => void): XmlRate {
  const bytes = texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0) / texts.length
  texts.forEach((_, at) => action(at))
  let count = 0
  const started = performance.now()
  while (performance.now() - started < seconds * 1000) action(count++ % texts.length)
  const rate = count / ((performance.now() - started) / 1000)
  return { what, rate, megabytes: (rate * bytes) / 1e6 }
}

/** Rates of reading, writing, both, and of validation where the schema is installed. */
export function benchXml(texts: string[], seconds: number): XmlRate[] {
  const defs = texts.map((text) => parseDomainXml(text))
  const at = (index: number): string => texts[index] ?? ''
  const rows = [
    measure('parse', texts, seconds, (index) => parseDomainXml(at(index))),
    measure('format', texts, seconds, (index) => defs[index] && formatDomainXml(defs[index])),
    measure('parse + format', texts, seconds, (index) => formatDomainXml(parseDomainXml(at(index)))),
  ]
  try {
    rows.push(measure('validate', texts, seconds, (index) => validateOrNot(at(index))))
  } catch (error) {
    console.error(`validation is left out: ${messageOf(error)}`)
  }
  return rows
}

function validateOrNot(text: string): void {
  try {
    validateDomainXml(text)
  } catch (error) {
    if (!(error instanceof VirError) || error.code !== 'VIR_ERR_XML_INVALID_SCHEMA') throw error
  }
}

if (process.argv[1] === import.meta.filename) {
  const { from, texts } = benchTexts()
  console.log(`${texts.length} definitions of ${from}\n`)
  console.log('| what | definitions/s | MB/s |\n|---|---:|---:|')
  for (const { what, rate, megabytes } of benchXml(texts, Number(process.argv[2] ?? 2))) {
    console.log(`| ${what} | ${Math.round(rate)} | ${megabytes.toFixed(1)} |`)
  }
}
