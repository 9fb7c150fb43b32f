import { clockFields, cpuFields } from './cpu-fields.js'
import type { ClockDef, CpuDef, FeaturesDef, OsDef, VcpuDef } from './domain-def.js'
import { loaderFields } from './os-fields.js'
import { writeFields } from './values.js'
import type { Out } from './writer.js'
import { element, textElement, unlessEmpty, withResidue } from './writer.js'

export function formatVcpu(vcpu: VcpuDef): Out {
  const { max, current, placement, cpuset } = vcpu
  return withResidue(element('vcpu', { placement, cpuset, current }, String(max)), vcpu.residue)
}

/** `<os>` (virDomainDefFormatOS of libvirt's formatter). */
export function formatOs(os: OsDef): Out {
  const { loader, nvram, bootmenu, bios } = os
  const out = element('os', { firmware: os.firmware }, [
    element('type', { arch: os.arch, machine: os.machine === '' ? undefined : os.machine }, os.type),
    loader === undefined
      ? undefined
      : withText(element('loader', writeFields(loader, loaderFields.loader)), loader.path),
    nvram === undefined ? undefined : withText(element('nvram', writeFields(nvram, loaderFields.nvram)), nvram.path),
    textElement('kernel', os.kernel),
    textElement('initrd', os.initrd),
    textElement('cmdline', os.cmdline),
    textElement('dtb', os.dtb),
    ...os.boot.map((dev) => element('boot', { dev })),
    bootmenu === undefined ? undefined : element('bootmenu', { enable: bootmenu.enable, timeout: bootmenu.timeout }),
    bios === undefined ? undefined : element('bios', writeFields(bios, loaderFields.bios)),
    os.smbiosMode === undefined ? undefined : element('smbios', { mode: os.smbiosMode }),
  ])
  return withResidue(out, os.residue)
}

function withText(out: Out, text: string | undefined): Out {
  return text === undefined ? out : { ...out, text }
}

export function formatFeatures(features: FeaturesDef): Out | undefined {
  const { apic, hyperv, kvmHidden, pmu, vmport, smm, ioapic } = features
  const out = element('features', {}, [
    features.acpi === true ? element('acpi') : undefined,
    apic === undefined || apic === false ? undefined : element('apic', apic === true ? {} : { eoi: apic.eoi }),
    features.pae === true ? element('pae') : undefined,
    hyperv === undefined ? undefined : formatHyperv(hyperv),
    kvmHidden === undefined ? undefined : element('kvm', {}, [element('hidden', { state: kvmHidden })]),
    pmu === undefined ? undefined : element('pmu', { state: pmu }),
    vmport === undefined ? undefined : element('vmport', { state: vmport }),
    smm === undefined ? undefined : element('smm', { state: smm }),
    ioapic === undefined ? undefined : element('ioapic', { driver: ioapic }),
  ])
  return unlessEmpty(withResidue(out, features.residue))
}

function formatHyperv({ mode, features }: NonNullable<FeaturesDef['hyperv']>): Out {
  return element(
    'hyperv',
    { mode },
    features.map(({ name, state, attributes }) => element(name, { state, ...attributes })),
  )
}

/** `<cpu>` of a guest (virCPUDefFormatBufFull). */
export function formatCpu(cpu: CpuDef): Out {
  const { mode, model, topology, cache, maxphysaddr } = cpu
  const { match, ...others } = writeFields(cpu, cpuFields.own)
  const out = element('cpu', { mode: mode === 'custom' && model === undefined ? undefined : mode, match, ...others }, [
    model === undefined ? undefined : element('model', writeFields(model, cpuFields.model), model.name),
    textElement('vendor', cpu.vendor),
    maxphysaddr === undefined ? undefined : element('maxphysaddr', writeFields(maxphysaddr, cpuFields.maxphysaddr)),
    topology === undefined ? undefined : element('topology', writeFields(topology, cpuFields.topology)),
    cache === undefined ? undefined : element('cache', writeFields(cache, cpuFields.cache)),
    ...cpu.features.map(({ name, policy }) => element('feature', { policy, name })),
    cpu.numa.length === 0 ? undefined : element('numa', {}, cpu.numa.map(formatCell)),
  ])
  return withResidue(out, cpu.residue)
}

function formatCell(cell: CpuDef['numa'][number]): Out {
  const { id, cpus, ...others } = writeFields(cell, cpuFields.cell)
  return element('cell', { id, cpus, memory: cell.memory, unit: 'KiB', ...others })
}

export function formatClock(clock: ClockDef): Out {
  const timers = clock.timers.map((timer) =>
    withResidue(element('timer', writeFields(timer, clockFields.timer)), timer.residue),
  )
  return withResidue(
    element('clock', { offset: clock.offset, ...writeFields(clock, clockFields.clock) }, timers),
    clock.residue,
  )
}
