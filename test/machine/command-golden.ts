/** The definitions in test/data/command, made ready for a command line as the driver does before a start. */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { DomainDef } from '../../src/conf/domain-def.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import { assignAliases, assignSourceIndexes } from '../../src/machine/alias.js'
import type { CommandCaps } from '../../src/machine/command-props.js'
import type { DefinitionCaps } from '../../src/machine/definition-caps.js'
import { prepareDefinition } from '../../src/machine/definition.js'

export const goldenFolder = join(import.meta.dirname, '../../../test/data/command')

export const goldenNames = readdirSync(goldenFolder).flatMap((name) => /^(.*)\.xml$/.exec(name)?.[1] ?? [])

/** A binary that has everything, the same on every machine. */
export const goldenCaps: CommandCaps & DefinitionCaps = {
  emulator: '/usr/bin/qemu-system-x86_64',
  machines: [
    { name: 'pc-i440fx-7.2', alias: 'pc', isDefault: true, maxCpus: 255, defaultCpu: 'qemu64' },
    { name: 'pc-q35-7.2', alias: 'q35', maxCpus: 288, defaultCpu: 'qemu64' },
  ],
  virtTypes: ['qemu', 'kvm'],
  nvramDir: '/srv/guests/nvram',
  has: () => true,
  hasDevice: () => true,
  hasBlockDriver: () => true,
  hasCommand: () => true,
  hasOption: () => true,
  hasMachineProperty: () => true,
  takesJson: () => true,
  defaultRamId: () => 'pc.ram',
}

/** A definition with its files in `folder`. */
export function goldenDefinition(name: string, caps: DefinitionCaps, folder: string): DomainDef {
  const def = parseDomainXml(readFileSync(join(goldenFolder, `${name}.xml`), 'utf8').replaceAll('@DIR@', folder))
  prepareDefinition(def, caps)
  assignAliases(def)
  assignSourceIndexes(def)
  return def
}

/** One option with its value on a line. */
export function asText(argv: string[]): string {
  return (
    argv.map((word, at) => (at > 0 && word.startsWith('-') ? `\n${word}` : at > 0 ? ` ${word}` : word)).join('') + '\n'
  )
}
