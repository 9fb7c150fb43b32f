import { failFrom } from '../error.js'
import type { FeaturesDef, OnOff, OsDef } from './domain-def.js'
import { loaderFields, osTypes } from './os-fields.js'
import type { Reader } from './reader.js'
import { needAttr, oneOf, onOff, readAttr, readFields, whole, without, yesNo } from './values.js'

const fail = failFrom('VIR_FROM_DOMAIN')

/** `<os>`. VIR_ERR_XML_ERROR where the type is missing, VIR_ERR_CONFIG_UNSUPPORTED where it is not known. */
export function parseOs(domain: Reader): OsDef {
  const reader = domain.child('os')
  const type = reader?.child('type')
  if (reader === undefined || type === undefined || type.text() === '') {
    throw fail('VIR_ERR_XML_ERROR', "the domain needs an element 'type' in its element 'os'")
  }
  if (!osTypes.includes(type.text()))
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `the OS type '${type.text()}' is not known`)
  const firmware = readAttr(reader, 'firmware', oneOf('efi', 'bios'))
  return {
    type: type.text(),
    arch: type.attr('arch') ?? 'x86_64',
    machine: type.attr('machine') ?? '',
    ...(firmware !== undefined && { firmware }),
    ...readFirmware(reader),
    ...readTexts(reader),
    boot: reader.children('boot').map((boot) => needAttr(boot, 'dev', oneOf('fd', 'cdrom', 'hd', 'network'))),
    ...readBios(reader),
    ...reader.residue(),
  }
}

function readFirmware(reader: Reader): Pick<OsDef, 'loader' | 'nvram'> {
  const [loader, nvram] = [reader.child('loader'), reader.child('nvram')]
  return {
    ...(loader && { loader: { ...readFields(loader, loaderFields.loader), ...readPath(loader) } }),
    ...(nvram && { nvram: { ...readFields(nvram, loaderFields.nvram), ...readPath(nvram) } }),
  }
}

function readPath(reader: Reader): { path?: string } {
  const path = reader.text()
  return path === '' ? {} : { path }
}

function readTexts(reader: Reader): Pick<OsDef, 'kernel' | 'initrd' | 'cmdline' | 'dtb'> {
  const texts: Pick<OsDef, 'kernel' | 'initrd' | 'cmdline' | 'dtb'> = {}
  for (const name of ['kernel', 'initrd', 'cmdline', 'dtb'] as const) {
    const text = reader.childText(name)
    if (text !== undefined) texts[name] = text
  }
  return texts
}

function readBios(reader: Reader): Pick<OsDef, 'bootmenu' | 'bios' | 'smbiosMode'> {
  const [menu, bios, smbios] = ['bootmenu', 'bios', 'smbios'].map((name) => reader.child(name))
  const read = bios && readFields(bios, loaderFields.bios)
  return {
    ...(menu && readMenu(menu)),
    ...(read && Object.keys(read).length > 0 && { bios: read }),
    ...(smbios && { smbiosMode: needAttr(smbios, 'mode', oneOf('emulate', 'host', 'sysinfo')) }),
  }
}

/** Any other word than 'yes' means no; the time counts only where the menu shows (virDomainDefParseBootXML). */
function readMenu(menu: Reader): Pick<OsDef, 'bootmenu'> {
  const enable = readAttr(menu, 'enable', yesNo)
  if (enable === undefined) return {}
  const timeout = menu.peek('timeout')
  if (timeout === undefined) return { bootmenu: { enable } }
  const parsed = readAttr(menu, 'timeout', whole(0, 0xffffffff))
  if (parsed !== undefined && parsed > 65535) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `the timeout '${parsed}' of the boot menu is more than 65535`)
  }
  return { bootmenu: { enable, ...(parsed !== undefined && { timeout: parsed }) } }
}

/** `<features>`: what we model of it; the rest is residue. VIR_ERR_XML_ERROR for a feature that libvirt does not know. */
export function parseFeatures(domain: Reader): FeaturesDef {
  const reader = domain.child('features')
  if (reader === undefined) return {}
  const hidden = reader.child('kvm')?.child('hidden')
  const ioapic = reader.child('ioapic')
  const hyperv = reader.child('hyperv')
  return {
    ...(reader.child('acpi') && { acpi: true }),
    ...readApic(reader),
    ...(reader.child('pae') && { pae: true }),
    ...(hyperv && { hyperv: readHyperv(hyperv) }),
    ...(hidden && { kvmHidden: needAttr(hidden, 'state', onOff) }),
    ...readSwitch(reader, 'pmu'),
    ...readSwitch(reader, 'vmport'),
    ...readSwitch(reader, 'smm'),
    ...(ioapic && { ioapic: needAttr(ioapic, 'driver', oneOf('qemu', 'kvm')) }),
    ...reader.residue(),
  }
}

function readApic(reader: Reader): Pick<FeaturesDef, 'apic'> {
  const apic = reader.child('apic')
  if (apic === undefined) return {}
  const eoi = readAttr(apic, 'eoi', onOff)
  return { apic: eoi === undefined ? true : { eoi } }
}

/** An element whose attribute `state` is 'on' unless it says otherwise. */
function readSwitch<K extends 'pmu' | 'vmport' | 'smm'>(reader: Reader, name: K): Partial<Record<K, OnOff>> {
  const child = reader.child(name)
  const states: Partial<Record<K, OnOff>> = {}
  if (child !== undefined) states[name] = readAttr(child, 'state', onOff) ?? 'on'
  return states
}

const hypervNames = [
  ...['relaxed', 'vapic', 'spinlocks', 'vpindex', 'runtime', 'synic', 'stimer', 'reset', 'vendor_id', 'frequencies'],
  ...['reenlightenment', 'tlbflush', 'ipi', 'evmcs', 'avic', 'emsr_bitmap', 'xmm_input'],
]

function readHyperv(hyperv: Reader): NonNullable<FeaturesDef['hyperv']> {
  const mode = readAttr(hyperv, 'mode', oneOf('custom', 'passthrough'))
  const features = hyperv.childNames().map((name) => {
    const child = hyperv.child(name)
    if (child === undefined || !hypervNames.includes(name)) {
      throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `the Hyper-V feature '${name}' is not known`)
    }
    const state = readAttr(child, 'state', onOff)
    const attributes = without(child.attributes(), 'state')
    return { name, ...(state !== undefined && { state }), attributes }
  })
  return { ...(mode !== undefined && { mode }), features }
}
