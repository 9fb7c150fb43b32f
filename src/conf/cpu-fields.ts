import type { ClockDef, CpuDef, TimerDef } from './domain-def.js'
import type { Codec, Field } from './values.js'
import { anyText, oneOf, onOff, positive, text, uint, whole, yesNo } from './values.js'

/** '0-3,^2,7' */
export const cpuList: Codec<string> = {
  parse: (value) => (/^\s*\^?\d+(-\d+)?(\s*,\s*\^?\d+(-\d+)?)*\s*$/.test(value) ? value.replace(/\s/g, '') : undefined),
  format: (value) => value,
}

const own: Field<Pick<CpuDef, 'match' | 'check' | 'migratable'>>[] = [
  ['match', 'match', oneOf('minimum', 'exact', 'strict')],
  ['check', 'check', oneOf('none', 'partial', 'full')],
  ['migratable', 'migratable', onOff],
]
const model: Field<Omit<NonNullable<CpuDef['model']>, 'name'>>[] = [
  ['fallback', 'fallback', oneOf('allow', 'forbid')],
  ['vendor_id', 'vendorId', anyText],
]
const topology: Field<NonNullable<CpuDef['topology']>>[] = [
  ['sockets', 'sockets', positive],
  ['dies', 'dies', positive],
  ['cores', 'cores', positive],
  ['threads', 'threads', positive],
]
const cache: Field<NonNullable<CpuDef['cache']>>[] = [
  ['level', 'level', whole(1, 3)],
  ['mode', 'mode', oneOf('emulate', 'passthrough', 'disable')],
]
const maxphysaddr: Field<NonNullable<CpuDef['maxphysaddr']>>[] = [
  ['mode', 'mode', oneOf('emulate', 'passthrough')],
  ['bits', 'bits', uint],
]
const cell: Field<Omit<CpuDef['numa'][number], 'memory'>>[] = [
  ['id', 'id', uint],
  ['cpus', 'cpus', cpuList],
  ['memAccess', 'memAccess', oneOf('shared', 'private')],
  ['discard', 'discard', yesNo],
]
export const cpuFields = { own, model, topology, cache, maxphysaddr, cell }

const timer: Field<Omit<TimerDef, 'residue'>>[] = [
  ['name', 'name', oneOf('platform', 'pit', 'rtc', 'hpet', 'tsc', 'kvmclock', 'hypervclock', 'armvtimer')],
  ['present', 'present', yesNo],
  ['tickpolicy', 'tickpolicy', oneOf('delay', 'catchup', 'merge', 'discard')],
  ['track', 'track', oneOf('boot', 'guest', 'wall', 'realtime')],
  ['frequency', 'frequency', whole()],
  ['mode', 'mode', oneOf('auto', 'native', 'emulate', 'paravirt', 'smpsafe')],
]
const adjustment: Codec<string> = {
  parse: (value) => (/^(-?\d+|reset)$/.test(value) ? value : undefined),
  format: (value) => value,
}
const clock: Field<Pick<ClockDef, 'timezone' | 'adjustment' | 'basis' | 'start'>>[] = [
  ['timezone', 'timezone', text],
  ['adjustment', 'adjustment', adjustment],
  ['basis', 'basis', oneOf('utc', 'localtime')],
  ['start', 'start', whole()],
]
export const clockFields = { clock, timer }
