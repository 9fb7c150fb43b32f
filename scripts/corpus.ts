/** libvirt's own test data as a yardstick for conf: what is read, kept and refused. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import type { DomainDef } from '../src/conf/domain-def.js'
import { formatDomainXml } from '../src/conf/format.js'
import { parseDomainXml } from '../src/conf/parse.js'
import { validateDomainXml } from '../src/conf/validate.js'
import { messageOf, VirError } from '../src/error.js'

export interface CorpusFile {
  name: string
  xml: string
  /** libvirt refuses it with its newest QEMU, or with every one */
  mustFail: boolean
}

/** Reasons by sentence (without the values in it), each with the files that it is about. */
export type Reasons = Map<string, string[]>

export interface ConfResult {
  files: CorpusFile[]
  /** those that parse, by name */
  defs: Map<string, DomainDef>
  /** refused by the parser, by name */
  refused: Map<string, string>
  roundTrip: number
  /** valid against domain.rng as they are, and that parse */
  validInput: number
  /** of those: still valid after a round trip */
  validOutput: number
  crashes: Reasons
  failures: Reasons
}

/** Every domain XML under tests/qemuxml2argvdata of libvirt's sources. */
export function corpusFiles(source: string): CorpusFile[] {
  const folder = join(source, 'tests/qemuxml2argvdata')
  const all = readdirSync(folder)
  const errors = new Set(all.filter((name) => name.endsWith('.err')))
  return all
    .filter((name) => name.endsWith('.xml') && existsSync(join(folder, name)))
    .map((file) => {
      const name = file.slice(0, -'.xml'.length)
      const latest = [...errors].some((error) => error.startsWith(`${name}.`) && error.endsWith('-latest.err'))
      return { name, xml: readFileSync(join(folder, file), 'utf8'), mustFail: errors.has(`${name}.err`) || latest }
    })
}

export function note(reasons: Reasons, reason: string, name: string): void {
  const general = reason.replace(/'[^']*'/g, "'…'").replace(/\d+/g, 'N')
  reasons.set(general, [...(reasons.get(general) ?? []), name])
}

/** What is not a VirError is a crash. */
export function attempt<T>(name: string, crashes: Reasons, action: () => T): { value: T } | { refused: string } {
  try {
    return { value: action() }
  } catch (error) {
    if (!(error instanceof VirError)) note(crashes, String(error), name)
    return { refused: messageOf(error) }
  }
}

export function confResult(files: CorpusFile[]): ConfResult {
  const result: ConfResult = {
    ...{ files, defs: new Map<string, DomainDef>(), refused: new Map<string, string>() },
    ...{ roundTrip: 0, validInput: 0, validOutput: 0 },
    ...{ crashes: new Map<string, string[]>(), failures: new Map<string, string[]>() },
  }
  for (const file of files) readOne(file, result)
  return result
}

function readOne({ name, xml }: CorpusFile, result: ConfResult): void {
  const parsed = attempt(name, result.crashes, () => parseDomainXml(xml))
  if ('refused' in parsed) {
    result.refused.set(name, parsed.refused)
    return
  }
  result.defs.set(name, parsed.value)
  const written = attempt(name, result.crashes, () => formatDomainXml(parsed.value, { secure: true }))
  if ('refused' in written) return
  const again = attempt(name, result.crashes, () => parseDomainXml(written.value))
  const same = 'value' in again && isDeepStrictEqual(again.value, parsed.value)
  if (same && formatDomainXml(again.value, { secure: true }) === written.value) result.roundTrip++
  else note(result.failures, 'another definition after a round trip', name)
  if ('refused' in attempt(name, result.crashes, () => validateDomainXml(xml))) return
  result.validInput++
  const valid = attempt(name, result.crashes, () => validateDomainXml(written.value))
  if ('value' in valid) result.validOutput++
  else note(result.failures, `no longer valid: ${valid.refused}`, name)
}

export interface Identical {
  files: number
  identical: number
}

/** What libvirt itself wrote (tests/qemuxml2xmloutdata), read and written again: how much comes back to the letter. */
export function identicalOutput(source: string): Identical {
  const folder = join(source, 'tests/qemuxml2xmloutdata')
  const names = readdirSync(folder).filter((name) => name.endsWith('.xml') && existsSync(join(folder, name)))
  const identical = names.filter((name) => {
    const xml = readFileSync(join(folder, name), 'utf8')
    const written = attempt(name, new Map(), () => formatDomainXml(parseDomainXml(xml), { secure: true }))
    return 'value' in written && written.value === xml
  })
  return { files: names.length, identical: identical.length }
}
