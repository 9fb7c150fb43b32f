import type { DefinitionCaps } from '../../src/machine/definition-caps.js'

/** QEMU 7.2 as Debian ships it: it has every device that a definition can want. */
export const testCaps: DefinitionCaps = {
  emulator: '/usr/bin/qemu-system-x86_64',
  machines: [
    { name: 'pc-i440fx-7.2', alias: 'pc', isDefault: true, maxCpus: 255, defaultCpu: 'qemu64' },
    { name: 'pc-q35-7.2', alias: 'q35', maxCpus: 288, defaultCpu: 'qemu64' },
    { name: 'pc-i440fx-6.0', maxCpus: 255, defaultCpu: 'qemu64' },
    { name: 'microvm', maxCpus: 288 },
  ],
  virtTypes: ['qemu', 'kvm'],
  nvramDir: '/state/nvram',
  has: () => true,
}

/** A definition around some devices, as a user would write it. */
export function domainXml(devices: string, { machine = 'pc', rest = '', type = 'qemu' } = {}): string {
  return `<domain type='${type}'><name>guest</name><uuid>11111111-2222-3333-4444-555555555555</uuid>
    <memory unit='MiB'>128</memory><os><type machine='${machine}'>hvm</type></os>${rest}
    <devices>${devices}</devices></domain>`
}

/** `<disk>` on a raw file. */
export function diskXml(target: string, bus: string, more = ''): string {
  return `<disk type='file'><source file='/images/${target}'/><target dev='${target}' bus='${bus}'/>${more}</disk>`
}
