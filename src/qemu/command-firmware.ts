/**
 * Firmware that the host offers, as QEMU's interop descriptors tell it (docs/interop/firmware.json): what `<os firmware='efi'>`
 * stands for, and which template belongs to a loader that the definition names.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { DomainDef } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { isQ35 } from './command-props.js'

const fail = failFrom('VIR_FROM_QEMU')

/** What of a descriptor matters here. */
interface Descriptor {
  'interface-types': string[]
  mapping: {
    device: string
    mode?: string
    filename?: string
    executable?: FlashFile
    'nvram-template'?: FlashFile
  }
  targets: { architecture: string; machines: string[] }[]
  features: string[]
}
interface FlashFile {
  filename: string
  format: string
}

/** The administrator's before the distribution's: a file hides one of the same name further down, an empty one altogether. */
export const firmwareDirs: readonly string[] = ['/etc/qemu/firmware', '/usr/share/qemu/firmware']

/**
 * Fills in loader, variable store and what the firmware needs (SMM) for a domain that is about to start. Does nothing for a
 * plain BIOS guest. VIR_ERR_OPERATION_FAILED when no firmware of the host fits.
 */
export function settleFirmware(def: DomainDef, nvramDir: string | undefined, dirs = firmwareDirs): void {
  const { os } = def
  if (os.firmware === undefined || os.loader?.path !== undefined) {
    settleTemplate(def, dirs)
    return
  }
  const found = readDescriptors(dirs).find((descriptor) => fits(descriptor, def))
  if (found === undefined) {
    if (os.firmware === 'bios') return // QEMU brings its own
    throw fail('VIR_ERR_OPERATION_FAILED', `Unable to find any firmware to satisfy '${os.firmware}'`)
  }
  if (found.mapping.device === 'memory') {
    os.loader = { ...os.loader, type: 'rom', path: found.mapping.filename ?? '' }
    return
  }
  useFlash(def, found, nvramDir)
}

/** What can be `<os firmware=…>` for a machine here. */
export function firmwareTypes(arch: string, machine: string, dirs = firmwareDirs): ('bios' | 'efi')[] {
  const hasUefi = readDescriptors(dirs).some(
    (descriptor) =>
      descriptor['interface-types'].includes('uefi') &&
      descriptor.targets.some((target) => fitsMachine(target, arch, machine)),
  )
  return hasUefi ? ['bios', 'efi'] : ['bios']
}

function useFlash(def: DomainDef, { mapping, features }: Descriptor, nvramDir: string | undefined): void {
  const { os } = def
  const secure = features.includes('secure-boot') && features.includes('requires-smm') ? 'yes' : 'no'
  const code = mapping.executable
  if (code === undefined) return
  const format = code.format === 'qcow2' ? ({ format: 'qcow2' } as const) : {}
  os.loader = { ...os.loader, type: 'pflash', readonly: 'yes', secure, path: code.filename, ...format }
  if (features.includes('requires-smm')) def.features.smm = 'on'
  const template = mapping['nvram-template']
  if (template === undefined) return
  const own = nvramDir === undefined ? {} : { path: join(nvramDir, `${def.name}_VARS.${suffix(template)}`) }
  const ofTemplate = template.format === 'qcow2' ? ({ format: 'qcow2' } as const) : {}
  os.nvram = { ...own, template: template.filename, ...ofTemplate, ...os.nvram }
}

const suffix = ({ format }: FlashFile): string => (format === 'qcow2' ? 'qcow2' : 'fd')

/** A loader that the definition names has a variable store but maybe no template for it. */
function settleTemplate({ os }: DomainDef, dirs: readonly string[]): void {
  if (os.loader?.type !== 'pflash' || os.nvram === undefined || os.nvram.template !== undefined) return
  const { path } = os.loader
  const known = readDescriptors(dirs).find(({ mapping }) => mapping.executable?.filename === path)
  const template = known?.mapping['nvram-template']?.filename
  if (template !== undefined) os.nvram.template = template
}

// --- descriptors -----------------------------------------------------------------------------------------------

/** In the order of their file names, whatever folder they are in; what is no descriptor is passed over. */
function readDescriptors(dirs: readonly string[]): Descriptor[] {
  const files = new Map<string, string>()
  for (const dir of dirs.filter((path) => existsSync(path))) {
    for (const name of readdirSync(dir).filter((file) => file.endsWith('.json'))) {
      if (!files.has(name)) files.set(name, join(dir, name))
    }
  }
  const inOrder = [...files.entries()].toSorted(([a], [b]) => (a < b ? -1 : 1))
  return inOrder.flatMap(([, path]) => readDescriptor(path) ?? [])
}

function readDescriptor(path: string): Descriptor | undefined {
  try {
    const value = JSON.parse(readFileSync(path, 'utf8')) as Partial<Descriptor>
    const whole = value['interface-types'] && value.mapping && value.targets && value.features
    return whole ? (value as Descriptor) : undefined
  } catch {
    return undefined // empty on purpose, or somebody else's mistake
  }
}

function fits(descriptor: Descriptor, def: DomainDef): boolean {
  return (
    descriptor['interface-types'].includes(def.os.firmware === 'efi' ? 'uefi' : 'bios') &&
    descriptor.targets.some((target) => fitsMachine(target, def.os.arch, def.os.machine)) &&
    fitsLoader(descriptor, def) &&
    fitsFeatures(descriptor.features, def)
  )
}

function fitsMachine({ architecture, machines }: Descriptor['targets'][0], arch: string, machine: string): boolean {
  const matches = (pattern: string): boolean =>
    new RegExp(`^${pattern.split('*').map(escapeRegExp).join('.*')}$`).test(machine)
  return architecture === arch && machines.some(matches)
}

function fitsLoader({ mapping }: Descriptor, { os }: DomainDef): boolean {
  const flash = mapping.device === 'flash' && (mapping.mode ?? 'split') === 'split'
  const file = flash ? mapping.executable?.filename : mapping.filename
  if (file === undefined || !existsSync(file) || (!flash && mapping.device !== 'memory')) return false
  if (flash && (os.loader?.format ?? 'raw') !== mapping.executable?.format) return false
  return os.loader?.type === undefined || (os.loader.type === 'pflash') === flash
}

function fitsFeatures(features: string[], def: DomainDef): boolean {
  const smm = isQ35(def) && def.features.smm !== 'off'
  const secure = features.includes('secure-boot')
  if (features.includes('requires-smm') && !smm) return false
  if (def.os.loader?.secure === 'yes' && !(secure && features.includes('requires-smm'))) return false
  if (def.os.loader?.secure === 'no' && secure) return false
  if (def.pm?.suspendToMem === 'yes' && !features.includes('acpi-s3')) return false
  return def.pm?.suspendToDisk !== 'yes' || features.includes('acpi-s4')
}

const escapeRegExp = (text: string): string => text.replaceAll(/[.+?^${}()|[\]\\]/g, '\\$&')
