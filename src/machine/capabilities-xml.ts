/** `virsh capabilities` and `virsh domcapabilities`: what host and binary can do, in libvirt's XML. */
import { failFrom } from '../error.js'
import { readHost, type HostCpu, type HostInfo } from './capabilities-host.js'
import type { CpuInfo, MachineInfo } from './capabilities-probe.js'
import type { QemuCapabilities } from './capabilities.js'
import { readFirmwareDescriptors } from './firmware.js'

const fail = failFrom('VIR_FROM_QEMU')

// --- writing XML -----------------------------------------------------------------------------------------------

type Attributes = Record<string, string | number | undefined>
type Content = string | number | string[][]

const escape = (text: string): string =>
  text.replace(/[&<>']/g, (c) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', "'": '&apos;' })[c] ?? c)

/** An element as lines: with text on one, with children (each a list of lines) indented. */
function element(name: string, attributes: Attributes = {}, content: Content = []): string[] {
  const pairs = Object.entries(attributes).filter(([, value]) => value !== undefined)
  const start = [name, ...pairs.map(([key, value]) => `${key}='${escape(String(value))}'`)].join(' ')
  if (!Array.isArray(content)) return [`<${start}>${escape(String(content))}</${name}>`]
  if (content.length === 0) return [`<${start}/>`]
  return [`<${start}>`, ...content.flat().map((line) => `  ${line}`), `</${name}>`]
}

const document = (lines: string[]): string => lines.join('\n') + '\n'

// --- the host --------------------------------------------------------------------------------------------------

/** virConnectGetCapabilities, valid against libvirt's capability.rng. KVM is named only when a guest ran on it. */
export async function capabilitiesXml(caps: QemuCapabilities, secmodels: readonly string[] = []): Promise<string> {
  const kvm = await caps.kvmWorks()
  return document(element('capabilities', {}, [hostElement(await readHost(), secmodels), guestElement(caps, kvm)]))
}

function hostElement(host: HostInfo, secmodels: readonly string[]): string[] {
  const uri = element('uri_transports', {}, [element('uri_transport', {}, 'tcp')])
  return element('host', {}, [
    ...(host.uuid === undefined ? [] : [element('uuid', {}, host.uuid)]),
    element('cpu', {}, [element('arch', {}, host.arch)]),
    element('migration_features', {}, [element('live'), uri]),
    element('topology', {}, [element('cells', { num: host.cells.length }, host.cells.map(cellElement))]),
    ...secmodels.map((name) => element('secmodel', {}, [element('model', {}, name), element('doi', {}, 0)])),
  ])
}

function cellElement({ id, memoryKib, cpus }: HostInfo['cells'][number]): string[] {
  return element('cell', { id }, [
    element('memory', { unit: 'KiB' }, memoryKib),
    element('cpus', { num: cpus.length }, cpus.map(cpuElement)),
  ])
}

const cpuElement = ({ id, socket, die, core, siblings }: HostCpu): string[] =>
  element('cpu', { id, socket_id: socket, die_id: die, core_id: core, siblings })

function guestElement(caps: QemuCapabilities, kvm: boolean): string[] {
  const byName = (a: MachineInfo, b: MachineInfo): number => a.name.localeCompare(b.name)
  const machines = caps.machines.filter(({ name }) => name !== 'none').toSorted(byName)
  return element('guest', {}, [
    element('os_type', {}, 'hvm'),
    element('arch', { name: caps.arch }, [
      element('wordsize', {}, 64),
      element('emulator', {}, caps.emulator),
      ...machines.flatMap(machineElements),
      element('domain', { type: 'qemu' }),
      ...(kvm ? [element('domain', { type: 'kvm' })] : []),
    ]),
    element('features', {}, [
      element('acpi', { default: 'on', toggle: 'yes' }),
      element('apic', { default: 'on', toggle: 'no' }),
      element('cpuselection'),
      element('deviceboot'),
      element('disksnapshot', { default: 'off', toggle: 'no' }),
    ]),
  ])
}

function machineElements({ name, alias, maxCpus, deprecated }: MachineInfo): string[][] {
  const common = { maxCpus, deprecated: deprecated ? 'yes' : undefined }
  return [
    ...(alias === undefined ? [] : [element('machine', { canonical: name, ...common }, alias)]),
    element('machine', common, name),
  ]
}

// --- domains ---------------------------------------------------------------------------------------------------

/**
 * virConnectGetDomainCapabilities, valid against libvirt's domaincaps.rng. VIR_ERR_INVALID_ARG for a machine or domain type
 * that there is not. Default type: kvm where it works.
 */
export async function domainCapabilitiesXml(
  caps: QemuCapabilities,
  machineName?: string,
  virtType?: string,
): Promise<string> {
  const kvm = await caps.kvmWorks()
  const type = virtType ?? (kvm ? 'kvm' : 'qemu')
  if (type !== 'qemu' && !(type === 'kvm' && kvm)) {
    const why = type === 'kvm' ? await caps.kvmReason() : ''
    throw fail('VIR_ERR_INVALID_ARG', `virtualization type '${type}' is not supported here${why && `: ${why}`}`)
  }
  const machine = machineName === undefined ? caps.defaultMachine : caps.machine(machineName)
  if (machine === undefined) {
    throw fail(
      'VIR_ERR_INVALID_ARG',
      `the machine '${machineName ?? ''}' is not supported by emulator '${caps.emulator}'`,
    )
  }
  return document(
    element('domainCapabilities', {}, [
      element('path', {}, caps.emulator),
      element('domain', {}, type),
      element('machine', {}, machine.name),
      element('arch', {}, caps.arch),
      element('vcpu', { max: machine.maxCpus }),
      element('iothreads', { supported: 'yes' }),
      osElement(caps.arch, machine.name),
      cpuModes(caps, type),
      supported('memoryBacking', { sourceType: ['file', 'anonymous', 'memfd'] }),
      devicesElement(caps, machine),
      featuresElement(),
    ]),
  )
}

function supported(name: string, enums: Record<string, string[]>): string[] {
  return element(name, { supported: 'yes' }, Object.entries(enums).map(enumElement))
}

const enumElement = ([name, values]: [string, string[]]): string[] =>
  element(
    'enum',
    { name },
    values.map((value) => element('value', {}, value)),
  )

function osElement(arch: string, machine: string): string[] {
  const loader = supported('loader', { type: ['rom', 'pflash'], readonly: ['yes', 'no'], secure: ['yes', 'no'] })
  return element('os', { supported: 'yes' }, [enumElement(['firmware', firmwareTypes(arch, machine)]), loader])
}

/** BIOS is part of QEMU, UEFI is there when a descriptor names this machine. */
function firmwareTypes(arch: string, machine: string): string[] {
  const isPattern = (pattern: string): boolean => pattern === machine || machine.startsWith(pattern.replace(/\*$/, ''))
  const hasUefi = readFirmwareDescriptors().some(
    (descriptor) =>
      descriptor['interface-types'].includes('uefi') &&
      descriptor.targets.some(({ architecture, machines }) => architecture === arch && machines.some(isPattern)),
  )
  return hasUefi ? ['bios', 'efi'] : ['bios']
}

function cpuModes(caps: QemuCapabilities, type: string): string[] {
  const kvm = type === 'kvm'
  const onOff = (name: string): string[][] => [enumElement([name, ['on', 'off']])]
  const passthrough = element(
    'mode',
    { name: 'host-passthrough', supported: kvm ? 'yes' : 'no' },
    kvm ? onOff('hostPassthroughMigratable') : [],
  )
  const own = new Set(['max', 'host', 'base'])
  const models = caps.cpus.filter(({ name }) => !own.has(name)).toSorted((a, b) => a.name.localeCompare(b.name))
  return element('cpu', {}, [
    passthrough,
    element('mode', { name: 'maximum', supported: 'yes' }, onOff('maximumMigratable')),
    element('mode', { name: 'host-model', supported: 'yes' }),
    element(
      'mode',
      { name: 'custom', supported: 'yes' },
      models.map((cpu) => modelElement(cpu, kvm)),
    ),
  ])
}

/** QEMU was asked under TCG: what it says of missing features holds for that only. */
function modelElement({ name, blockers, deprecated }: CpuInfo, kvm: boolean): string[] {
  const usable = kvm ? 'unknown' : blockers.length === 0 ? 'yes' : 'no'
  return element('model', { usable, deprecated: deprecated ? 'yes' : undefined, vendor: 'unknown' }, name)
}

const virtioModels = ['virtio', 'virtio-transitional', 'virtio-non-transitional']

function devicesElement(caps: QemuCapabilities, machine: MachineInfo): string[] {
  const isQ35 = machine.name.startsWith('pc-q35')
  const only = (values: Record<string, string>): string[] =>
    Object.entries(values).flatMap(([value, device]) => (caps.hasDevice(device) ? [value] : []))
  const buses = only({
    fdc: 'floppy',
    scsi: 'scsi-hd',
    virtio: 'virtio-blk-pci',
    usb: 'usb-storage',
    sata: 'ich9-ahci',
  })
  const videos = only({ vga: 'VGA', cirrus: 'cirrus-vga', vmvga: 'vmware-svga', qxl: 'qxl', virtio: 'virtio-gpu-pci' })
  return element('devices', {}, [
    supported('disk', {
      diskDevice: ['disk', 'cdrom', 'floppy', 'lun'],
      bus: isQ35 ? buses : ['ide', ...buses],
      model: virtioModels,
    }),
    supported('graphics', { type: ['vnc'] }),
    supported('video', { modelType: [...videos, 'none', ...only({ bochs: 'bochs-display', ramfb: 'ramfb' })] }),
    element('hostdev', { supported: 'no' }),
    supported('rng', { model: virtioModels, backendModel: ['random', 'egd', 'builtin'] }),
    element('filesystem', { supported: 'no' }),
    element('tpm', { supported: 'no' }),
    element('redirdev', { supported: 'no' }),
    supported('channel', { type: ['pty', 'unix'] }),
  ])
}

function featuresElement(): string[] {
  const yes = ['backingStoreInput']
  const names = ['gic', 'vmcoreinfo', 'genid', 'backingStoreInput', 'backup', 'sev', 'sgx']
  return element(
    'features',
    {},
    names.map((name) => element(name, { supported: yes.includes(name) ? 'yes' : 'no' })),
  )
}
