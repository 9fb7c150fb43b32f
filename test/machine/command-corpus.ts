/**
 * libvirt's expected command lines and ours, brought to a form in which they can be compared: what is named differently on
 * purpose (block nodes, the guard, sizes in KiB) is made equal, everything else is left as it is.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { StorageSource } from '../../src/conf/domain-def.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import { assignAliases, assignSourceIndexes } from '../../src/machine/alias.js'
import type { CommandCaps } from '../../src/machine/command-props.js'
import { buildCommand } from '../../src/machine/command.js'
import { prepareDefinition } from '../../src/machine/definition.js'
import { chooseFirmware, readFirmwareDescriptors } from '../../src/machine/firmware.js'
import { checkSupported } from '../../src/machine/supported.js'
import { capsWith } from './definition-corpus.js'

const folder = join(process.env['LIBVIRT_SOURCE'] ?? '', 'tests', 'qemuxml2argvdata')

const firmwareFolders = ['usr/share', 'etc'].map((top) =>
  join(process.env['LIBVIRT_SOURCE'] ?? '', 'tests/qemufirmwaredata', top, 'qemu/firmware'),
)

export const corpusNames = (): string[] =>
  readdirSync(folder).flatMap((file) => {
    const name = /^(.*)\.x86_64-latest\.args$/.exec(file)?.[1]
    return name !== undefined && existsSync(join(folder, `${name}.xml`)) ? [name] : []
  })

/** Options with their values, comparable. */
export type Comparable = string[]

export function libvirtCommand(name: string): Comparable {
  const text = readFileSync(join(folder, `${name}.x86_64-latest.args`), 'utf8')
  const words = shellWords(text)
  return comparable(words.slice(words.findIndex((word) => word.startsWith('/')) + 1))
}

export function ourCommand(name: string): Comparable {
  const def = parseDomainXml(readFileSync(join(folder, `${name}.xml`), 'utf8'))
  const caps = { ...capsWith(), ...commandCaps }
  chooseFirmware(def, () => readFirmwareDescriptors(firmwareFolders))
  prepareDefinition(def, caps)
  checkSupported(def, caps)
  for (const disk of def.disks) endChain(disk.source)
  assignAliases(def)
  assignSourceIndexes(def)
  const runDir = `/tmp/lib/domain--1-${def.name}`
  const accel = def.virtType === 'kvm' ? 'kvm' : 'tcg'
  return comparable(buildCommand(def, { caps, accel, monitorFd: 1729, runDir, vncPort: 5900 }))
}

const commandCaps: CommandCaps = {
  hasDevice: () => true,
  hasBlockDriver: () => true,
  hasCommand: () => true,
  hasOption: (name) => name !== 'action',
  hasMachineProperty: (name) => name !== 'acpi',
  takesJson: () => true,
  defaultRamId: () => 'pc.ram',
}

/** libvirt's tests have no images: a chain ends where the definition does. */
function endChain(source: StorageSource | undefined): void {
  for (let image = source; image; image = image.backingStore ?? undefined) image.backingStore ??= null
}

/** The words of a command for a shell, as libvirt writes them: single quotes and continued lines. */
function shellWords(text: string): string[] {
  const words = [...text.replaceAll('\\\n', ' ').matchAll(/(?:'[^']*'|\\.|[^\s'\\])+/g)]
  return words.map(([word]) =>
    word.replaceAll(/'([^']*)'|\\(.)/g, (_, quoted?: string, plain?: string) => quoted ?? plain ?? ''),
  )
}

function comparable(argv: string[]): Comparable {
  const options: string[] = []
  for (let at = 0; at < argv.length; at++) {
    const option = argv[at] ?? ''
    const next = argv[at + 1]
    const hasValue = next !== undefined && !/^-[a-z]/.test(next)
    if (hasValue) at++
    const line = hasValue ? `${option} ${normal(option, next)}` : option
    if (!isExpectedDifference(line)) options.push(line)
  }
  return options.toSorted()
}

function normal(option: string, value: string): string {
  if (value.startsWith('{')) return sortedJson(JSON.parse(renamed(value)))
  if (option === '-m') return value.replace(/^size=(\d+)k$/, (_, kib: string) => String(Math.ceil(Number(kib) / 1024)))
  if (option === '-chardev') return chardev(value)
  return renamed(value).replace(/,audiodev=audio1/, '')
}

/** libvirt opens what QEMU would by itself. */
const chardev = (value: string): string =>
  value
    .replace(/^(socket,id=[^,]+),(?:fd=1729|path=[^,]+)(,server=on)/, '$1$2')
    .replaceAll(/\b(logfile|path)=[^,]*/g, '$1')
    .replaceAll(/,(?:log)?append=(?:on|off)/g, '')

const renamed = (text: string): string =>
  text
    .replaceAll('libvirt-pflash', 'pflash')
    .replaceAll(/libvirt-(\d+)-(format|storage)/g, 'node-$1-$2')
    .replaceAll(/libvirt-(\d+)-slice-sto/g, 'node-$1-slice')
    .replaceAll(/libvirt-CoR-/g, 'cor-')
    .replaceAll(/"backing":"node-(\d+)-guard"/g, '"backing":"node-$1-format"')
    .replaceAll(/,"backing":null/g, '')
    .replaceAll(',"reconnect-delay":4000000000,"open-timeout":10', '')
    .replaceAll(/node-(\d+)-storage-httpcookie-secret0/g, 'node-$1-cookies')
    .replace(/hv-crash\b(?!=)/, 'hv-crash=on')
    .replace('"driver":"host_cdrom"', '"driver":"host_device"')
    .replace('"driver":"lsi"', '"driver":"lsi53c895a"')
    .replace('"driver":"dc-390"', '"driver":"dc390"')
    .replace('"driver":"ahci"', '"driver":"ich9-ahci"')

function sortedJson(value: unknown): string {
  return JSON.stringify(value, (name, member: unknown) =>
    name === 'size' && typeof member === 'number' && member > 1 << 20
      ? Math.ceil(member / (1 << 20)) // libvirt knows memory in MiB only
      : typeof member === 'object' && member !== null && !Array.isArray(member)
        ? Object.fromEntries(Object.entries(member).toSorted(([a], [b]) => (a < b ? -1 : 1)))
        : member,
  )
}

const isExpectedDifference = (line: string): boolean =>
  (line.startsWith('-object ') && line.includes('"qom-type":"secret"')) ||
  line.startsWith('-audiodev ') ||
  line.startsWith('-add-fd ') ||
  line.includes('"driver":"quorum"')
