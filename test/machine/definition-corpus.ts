/**
 * libvirt's own test data as a yardstick: definitions, what libvirt makes of them, and which of a binary's abilities each
 * expectation takes for granted. Read by path from the tree that LIBVIRT_SOURCE names.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { DefinitionCaps, MachineCaps } from '../../src/machine/definition-caps.js'

const testsFolder = join(process.env['LIBVIRT_SOURCE'] ?? '', 'tests')

/** libvirt's flag of a binary for each device that a definition can depend on. */
const DEVICE_OF_FLAG: Record<string, string> = {
  PIIX3_USB_UHCI: 'piix3-usb-uhci',
  SCSI_LSI: 'lsi53c895a',
  VIRTIO_SCSI: 'virtio-scsi-pci',
  DEVICE_CIRRUS_VGA: 'cirrus-vga',
  DEVICE_VGA: 'VGA',
  DEVICE_QEMU_XHCI: 'qemu-xhci',
  NEC_USB_XHCI: 'nec-usb-xhci',
  ICH9_USB_EHCI1: 'ich9-usb-ehci1',
  DEVICE_RTL8139: 'rtl8139',
  DEVICE_E1000: 'e1000',
  DEVICE_VIRTIO_NET: 'virtio-net-pci',
  DEVICE_PCIE_PCI_BRIDGE: 'pcie-pci-bridge',
  DEVICE_PCIE_ROOT_PORT: 'pcie-root-port',
}

const PC = /<type[^>]*arch=['"](x86_64|i686)['"]/

/** Machines go by their aliases here, so that an expectation does not depend on the version of the day. */
function machines(defaultCpu: string | undefined): MachineCaps[] {
  const versions = [1, 2, 3, 4, 5, 6, 7, 8].flatMap((major) =>
    [...Array(18).keys()].map((minor) => `${major}.${minor}`),
  )
  const names = ['pc', 'q35', ...versions.flatMap((version) => [`pc-i440fx-${version}`, `pc-q35-${version}`])]
  return names.map((name) => ({
    name,
    maxCpus: name.includes('q35') ? 288 : 255,
    ...(name === 'pc' ? { isDefault: true } : {}),
    ...(defaultCpu === undefined ? {} : { defaultCpu }),
  }))
}

/** A binary with all devices, or with the named ones only and no known default CPU. */
export function capsWith(devices?: string[]): DefinitionCaps {
  return {
    emulator: '/usr/bin/qemu-system-x86_64',
    machines: machines(devices ? undefined : 'qemu64'),
    virtTypes: ['qemu', 'kvm'],
    pinsVcpus: true,
    nvramDir: '/var/lib/libvirt/qemu/nvram',
    has: (device) => devices === undefined || devices.includes(device),
  }
}

export interface Expectation {
  name: string
  xml: string
  expected: string
  caps: DefinitionCaps
}

/** Every expectation of libvirt's qemuxml2xmltest that is about a PC. */
export function expectations(): Expectation[] {
  const source = readFileSync(join(testsFolder, 'qemuxml2xmltest.c'), 'utf8')
  const found: Expectation[] = []
  for (const [, kind = '', name = '', rest = ''] of source.matchAll(/ DO_TEST(\w*)\(\s*"([^"]+)"([^;]*)\);/g)) {
    if (!['', '_NOCAPS', '_CAPS_LATEST', '_CAPS_VER'].includes(kind)) continue
    const suffix = kind === '_CAPS_LATEST' ? '.x86_64-latest' : versionSuffix(kind, rest)
    const xml = join(testsFolder, 'qemuxml2argvdata', `${name}.xml`)
    const expected = [`${name}-inactive${suffix}.xml`, `${name}${suffix}.xml`]
      .map((file) => join(testsFolder, 'qemuxml2xmloutdata', file))
      .find((file) => existsSync(file))
    if (expected === undefined || !existsSync(xml)) continue
    const text = readFileSync(xml, 'utf8')
    if (!PC.test(text)) continue
    const caps = kind.startsWith('_CAPS') ? capsWith() : capsWith(devicesIn(rest))
    found.push({ name: name + suffix, xml: text, expected: readFileSync(expected, 'utf8'), caps })
  }
  return found
}

function versionSuffix(kind: string, rest: string): string {
  const version = /"([\d.]+)"/.exec(rest)?.[1]
  return kind === '_CAPS_VER' && version !== undefined ? `.x86_64-${version}` : ''
}

function devicesIn(flags: string): string[] {
  return [...flags.matchAll(/QEMU_CAPS_(\w+)/g)].flatMap(([, flag = '']) => DEVICE_OF_FLAG[flag] ?? [])
}

export interface Invalid {
  name: string
  xml: string
  /** libvirt's sentence */
  reason: string
}

/** Every definition of a PC that libvirt's qemuxml2argvtest wants refused. */
export function invalidDefinitions(): Invalid[] {
  const folder = join(testsFolder, 'qemuxml2argvdata')
  return readdirSync(folder)
    .filter((file) => file.endsWith('.err'))
    .flatMap((file) => {
      const name = file.replace(/(\.[a-z0-9_]+-[a-z0-9.]+)?\.err$/, '')
      const path = join(folder, `${name}.xml`)
      if (!existsSync(path)) return []
      const xml = readFileSync(path, 'utf8')
      if (!PC.test(xml)) return []
      return [{ name, xml, reason: readFileSync(join(folder, file), 'utf8').trim() }]
    })
}

export interface CommandLine {
  name: string
  xml: string
  /** of every `-device`: its id and the block node that it shows */
  devices: { id: string; drive?: string }[]
}

/** The device ids on the command lines that libvirt expects for a PC with the newest QEMU. */
export function commandLines(): CommandLine[] {
  const folder = join(testsFolder, 'qemuxml2argvdata')
  return readdirSync(folder).flatMap((file) => {
    const name = /^(.*)\.x86_64-latest\.args$/.exec(file)?.[1]
    const path = join(folder, `${name ?? ''}.xml`)
    if (name === undefined || !existsSync(path)) return []
    const xml = readFileSync(path, 'utf8')
    const args = readFileSync(join(folder, file), 'utf8').replaceAll('\\\n', ' ')
    const devices = [...args.matchAll(/-device '(\{.*?\})'/g)].flatMap(([, json = '{}']) => {
      const { id, drive } = JSON.parse(json) as { id?: string; drive?: string }
      return id === undefined ? [] : [{ id, ...(drive === undefined ? {} : { drive }) }]
    })
    return PC.test(xml) ? [{ name, xml, devices }] : []
  })
}
