/** AppArmor as a security driver: a profile for each domain, changed to at exec (libvirt's security_apparmor.c). */
import { existsSync, mkdirSync, readFileSync, realpathSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { DomainDef } from '../conf/domain-def.js'
import { errnoOf, failFrom, messageOf, wordsOf } from '../error.js'
import { run } from '../util/run.js'
import { fileRule, profileText } from './apparmor-profile.js'
import { seclabelOf, wantedLabel } from './seclabels.js'
import type { LabelTarget, SecurityDriver } from './security-driver.js'

const fail = failFrom('VIR_FROM_SECURITY')
const MODEL = 'apparmor'

export interface ApparmorOptions {
  /** where profiles of domains lie; default: libvirt's place */
  directory?: string
  /** hands a profile to the kernel, or takes it out; default: apparmor_parser */
  load?: (action: 'replace' | 'remove', file: string) => Promise<void>
}

const DIRECTORY = '/etc/apparmor.d/libvirt'
const ABSTRACTION = '/etc/apparmor.d/abstractions/libvirt-qemu'
const ENABLED = '/sys/module/apparmor/parameters/enabled'

/**
 * The driver 'apparmor'. A dynamic label is a profile 'libvirt-UUID', written from the domain's definition and loaded before
 * QEMU starts; it lists every file by name, and loses the backing images that a stream made superfluous. A static label is
 * the name of a profile that the administrator has loaded.
 */
export function apparmorDriver(options: ApparmorOptions = {}): SecurityDriver {
  const { directory = DIRECTORY, load = loadByParser } = options
  const profile = (def: DomainDef): string => join(directory, `libvirt-${def.uuid}`)
  const rulesFile = (def: DomainDef): string => `${profile(def)}.files`

  const rules = (def: DomainDef): string[] =>
    existsSync(rulesFile(def)) ? readFileSync(rulesFile(def), 'utf8').split('\n').filter(Boolean) : []
  const writeRules = async (def: DomainDef, lines: readonly string[]): Promise<void> => {
    writeFileSync(rulesFile(def), lines.map((line) => `${line}\n`).join(''), { mode: 0o600 })
    // not there yet: the domain is still being started, and all of it is loaded at once
    if (existsSync(profile(def))) await load('replace', profile(def))
  }

  return {
    name: MODEL,

    async probe() {
      if (!existsSync(ENABLED) || !readFileSync(ENABLED, 'utf8').startsWith('Y'))
        return 'the kernel of this host has no AppArmor, or it is disabled'
      if (process.geteuid?.() !== 0) return 'only root can load profiles'
      return run('apparmor_parser', ['--version']).then(() => undefined, messageOf)
    },

    generateLabel(def) {
      const label = seclabelOf(def, MODEL)
      if (label === undefined || label.type === 'none') return Promise.resolve()
      if (label.type === 'static') {
        if (label.label === undefined)
          throw fail(
            'VIR_ERR_XML_ERROR',
            `the static <seclabel model='apparmor'> of domain '${def.name}' lacks a label`,
          )
      } else {
        label.label = `libvirt-${def.uuid}`
        label.imagelabel = label.label
        mkdirSync(directory, { recursive: true, mode: 0o755 })
        for (const left of [profile(def), rulesFile(def)]) rmSync(left, { force: true })
      }
      return Promise.resolve()
    },

    async setImageLabel(def, target, note) {
      if (!isOurs(def) || wantedLabel(def, target, MODEL, '') === undefined) return
      const rule = ruleFor(target)
      note(rule)
      await writeRules(def, [...rules(def), rule])
    },

    async restoreImageLabel(def, target, rule) {
      if (!isOurs(def)) return
      const lines = rules(def)
      const at = lines.indexOf(rule)
      // only backing images leave a domain that runs; with the others the whole profile goes
      if (target.kind === 'backing' && at >= 0) await writeRules(def, lines.toSpliced(at, 1))
    },

    processLabel(def) {
      const apparmorProfile = seclabelOf(def, MODEL)?.label
      return Promise.resolve(apparmorProfile === undefined ? {} : { apparmorProfile })
    },

    async labelsSet(def, program) {
      if (!isOurs(def)) return
      const host = { binary: realpathSync(program), hasAbstraction: existsSync(ABSTRACTION) }
      writeFileSync(profile(def), profileText(def, `libvirt-${def.uuid}`, rulesFile(def), host), { mode: 0o600 })
      await load('replace', profile(def))
    },

    async releaseLabel(def) {
      if (!isOurs(def)) return
      if (existsSync(profile(def))) await load('remove', profile(def))
      for (const file of [profile(def), rulesFile(def)]) rmSync(file, { force: true })
    },
  }
}

/** Is its profile made by us? */
function isOurs(def: DomainDef): boolean {
  const label = seclabelOf(def, MODEL)
  return label?.type !== 'static' && label?.label === `libvirt-${def.uuid}`
}

function ruleFor(target: LabelTarget): string {
  try {
    // the kernel asks about the file that a link leads to
    const path = realpathSync(target.path)
    return fileRule({ ...target, path }, statSync(path).isDirectory())
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') throw fail('VIR_ERR_SYSTEM_ERROR', `'${target.path}' does not exist`, error)
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot find '${target.path}': ${wordsOf(error)}`, error)
  }
}

async function loadByParser(action: 'replace' | 'remove', file: string): Promise<void> {
  try {
    await run('apparmor_parser', [`--${action}`, file], { timeout: 30_000 })
  } catch (error) {
    throw fail('VIR_ERR_INTERNAL_ERROR', `cannot ${action} the AppArmor profile '${file}': ${wordsOf(error)}`, error)
  }
}
