import type { CpuDef, DomainDef } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { escapeComma } from './command-props.js'

const fail = failFrom('VIR_FROM_QEMU')

/** -cpu: the model and its features, paravirtual timers and the enlightenments for Windows among them. */
export function cpuModel(def: DomainDef, accel: 'kvm' | 'tcg'): string {
  return [
    escapeComma(modelName(def, accel)),
    ...(def.cpu ? modelFeatures(def.cpu) : []),
    ...timerFeatures(def),
    ...domainFeatures(def),
    ...hyperv(def),
    ...(def.cpu ? cacheAndAddress(def.cpu) : []),
  ].join(',')
}

/**
 * `host-model` becomes QEMU's own idea of the host (`host`, and `max` under TCG): as with libvirt the guest gets what the
 * host has and QEMU can migrate. A KVM domain that has to run without KVM gets `max` for `host-passthrough`.
 */
function modelName(def: DomainDef, accel: 'kvm' | 'tcg'): string {
  const { cpu } = def
  switch (cpu?.mode) {
    case 'maximum':
      return 'max'
    case 'host-model':
      return accel === 'kvm' ? 'host' : 'max'
    case 'host-passthrough':
      if (def.virtType !== 'kvm') throw noPassthrough(def)
      return accel === 'kvm' ? 'host' : 'max'
    case 'custom':
      return cpu.model?.name ?? defaultModel
    case undefined:
      return defaultModel
  }
}

const defaultModel = 'qemu64'

const noPassthrough = (def: DomainDef): Error =>
  fail(
    'VIR_ERR_CONFIG_UNSUPPORTED',
    `CPU mode 'host-passthrough' for ${def.os.arch} ${def.virtType} domain is not supported by hypervisor`,
  )

function modelFeatures(cpu: CpuDef): string[] {
  const onByPolicy = { force: 'on', require: 'on', disable: 'off', forbid: 'off', optional: undefined } as const
  const features = cpu.features.flatMap(({ name, policy }) => {
    const state = onByPolicy[policy]
    return state === undefined ? [] : [`${escapeComma(name)}=${state}`]
  })
  return [
    ...(cpu.migratable && cpu.mode !== 'custom' ? [`migratable=${cpu.migratable}`] : []),
    ...(cpu.model?.vendorId === undefined ? [] : [`vendor=${escapeComma(cpu.model.vendorId)}`]),
    ...features,
  ]
}

function timerFeatures(def: DomainDef): string[] {
  return def.clock.timers.flatMap(({ name, present, frequency }) => {
    if (name === 'kvmclock' && present) return [`kvmclock=${present === 'yes' ? 'on' : 'off'}`]
    if (name === 'hypervclock' && present === 'yes') return ['hv-time=on']
    return name === 'tsc' && frequency !== undefined ? [`tsc-frequency=${frequency}`] : []
  })
}

function domainFeatures({ features, panics }: DomainDef): string[] {
  const eoi = typeof features.apic === 'object' ? features.apic.eoi : undefined
  return [
    ...(eoi ? [`kvm-pv-eoi=${eoi}`] : []),
    ...(features.kvmHidden === 'on' ? ['kvm=off'] : []),
    ...(features.pmu ? [`pmu=${features.pmu}`] : []),
    ...(panics.some((panic) => panic.model === 'hyperv') ? ['hv-crash=on'] : []),
  ]
}

function hyperv({ features }: DomainDef): string[] {
  if (features.hyperv === undefined) return []
  const named = features.hyperv.features.filter((feature) => feature.state === 'on').flatMap(hypervFeature)
  return features.hyperv.mode === 'passthrough' ? ['hv-passthrough=on', ...named] : named
}

function hypervFeature({ name, attributes }: { name: string; attributes: Record<string, string> }): string[] {
  if (name === 'spinlocks') return [`hv-spinlocks=0x${Number(attributes['retries'] ?? 4095).toString(16)}`]
  if (name === 'vendor_id') return [`hv-vendor-id=${escapeComma(attributes['value'] ?? '')}`]
  const direct = name === 'stimer' && attributes['direct'] === 'on' ? ['hv-stimer-direct=on'] : []
  return [`hv-${escapeComma(name)}=on`, ...direct]
}

function cacheAndAddress({ mode, cache, maxphysaddr }: CpuDef): string[] {
  const ofHost = mode === 'host-passthrough' || mode === 'maximum'
  const cacheOptions = {
    emulate: ['l3-cache=on', ...(ofHost ? ['host-cache-info=off'] : [])],
    passthrough: ['host-cache-info=on', 'l3-cache=off'],
    disable: [...(ofHost ? ['host-cache-info=off'] : []), 'l3-cache=off'],
  }
  const bits = maxphysaddr?.bits === undefined ? [] : [`phys-bits=${maxphysaddr.bits}`]
  const address = maxphysaddr?.mode === 'passthrough' ? ['host-phys-bits=on'] : bits
  return [...(cache ? cacheOptions[cache.mode] : []), ...address]
}
