/** Firmware for `<os firmware='efi'>`: chosen among what the host has, by QEMU's descriptors (docs/interop/firmware.json). */
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { DomainDef } from '../conf/domain-def.js'
import { failFrom, messageOf } from '../error.js'

const fail = failFrom('VIR_FROM_QEMU')

/** a file of a later folder replaces one of the same name of an earlier one; an empty file hides it */
const FOLDERS = ['/usr/share/qemu/firmware', '/etc/qemu/firmware']

interface FirmwareFile {
  filename: string
  format: string
}
export interface FirmwareDescriptor {
  'interface-types': string[]
  mapping: { device: string; executable?: FirmwareFile; 'nvram-template'?: FirmwareFile }
  targets: { architecture: string; machines: string[] }[]
  features: string[]
}

/** All descriptors of the host, in the order of preference (by file name). */
export function readFirmwareDescriptors(folders: readonly string[] = FOLDERS): FirmwareDescriptor[] {
  const files = new Map<string, string>()
  for (const folder of folders)
    for (const name of listIfThere(folder)) if (name.endsWith('.json')) files.set(name, join(folder, name))
  const descriptors: FirmwareDescriptor[] = []
  for (const name of [...files.keys()].toSorted()) {
    const text = readFileSync(files.get(name) ?? '', 'utf8')
    if (text.trim() !== '') descriptors.push(JSON.parse(text) as FirmwareDescriptor)
  }
  return descriptors
}

function listIfThere(folder: string): string[] {
  try {
    return readdirSync(folder)
  } catch {
    return []
  }
}

/** '*' stands for any characters, as in 'pc-q35-*'. */
function matches(pattern: string, text: string): boolean {
  const escaped = pattern.split('*').map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'))
  return new RegExp(`^${escaped.join('.*')}$`).test(text)
}

function fits(descriptor: FirmwareDescriptor, { os, features }: DomainDef): boolean {
  const { mapping, targets } = descriptor
  const has = (feature: string): boolean => descriptor.features.includes(feature)
  const onTarget = targets.some(
    ({ architecture, machines }) =>
      architecture === os.arch && machines.some((machine) => matches(machine, os.machine)),
  )
  if (!descriptor['interface-types'].includes('uefi') || mapping.device !== 'flash' || !onTarget) return false
  if (mapping.executable?.format !== 'raw' || mapping['nvram-template'] === undefined) return false
  if (has('requires-smm') && features.smm !== 'on' && os.loader?.secure !== 'yes') return false
  return os.loader?.secure !== 'yes' || has('secure-boot')
}

/**
 * Fills in the loader and the template of the variable store of a definition that leaves them to us, as libvirt does when a
 * domain starts; what it says itself stays. The definition has its versioned machine by now. VIR_ERR_OPERATION_FAILED when the host has no firmware that fits.
 */
export function chooseFirmware(def: DomainDef, descriptors = readFirmwareDescriptors): void {
  const { os } = def
  if (os.firmware === 'efi' && os.loader?.path === undefined) {
    const mapping = descriptors().find((descriptor) => fits(descriptor, def))?.mapping
    const [code, variables] = [mapping?.executable, mapping?.['nvram-template']]
    if (code === undefined || variables === undefined)
      throw fail(
        'VIR_ERR_OPERATION_FAILED',
        `no UEFI firmware for machine '${os.machine}' is installed (package 'ovmf')`,
      )
    os.loader = { ...os.loader, path: code.filename, readonly: 'yes', type: 'pflash' }
    delete os.firmware
    os.nvram = { template: variables.filename, ...os.nvram }
    return
  }
  if (os.loader?.type !== 'pflash' || os.nvram === undefined || os.nvram.template !== undefined) return
  const known = descriptors().find(({ mapping }) => mapping.executable?.filename === os.loader?.path)
  const template = known?.mapping['nvram-template']?.filename
  if (template !== undefined) os.nvram.template = template
}

/** A guest with UEFI gets a variable store of its own, copied from the firmware's template at its first start. */
export function makeVariableStore(def: DomainDef): void {
  const { nvram } = def.os
  if (nvram?.path === undefined || nvram.template === undefined || existsSync(nvram.path)) return
  try {
    mkdirSync(dirname(nvram.path), { recursive: true, mode: 0o700 })
    // as a whole or not at all: a part of one would be taken for the guest's own next time
    copyFileSync(nvram.template, `${nvram.path}.new`)
    renameSync(`${nvram.path}.new`, nvram.path)
  } catch (error) {
    rmSync(`${nvram.path}.new`, { force: true })
    throw fail(
      'VIR_ERR_OPERATION_FAILED',
      `cannot make '${nvram.path}' from '${nvram.template}': ${messageOf(error)}`,
      error,
    )
  }
}
