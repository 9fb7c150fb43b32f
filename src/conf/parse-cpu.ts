import { failFrom } from '../error.js'
import { clockFields, cpuFields, cpuList } from './cpu-fields.js'
import type { ClockDef, CpuDef, TimerDef, VcpuDef } from './domain-def.js'
import type { Reader } from './reader.js'
import { needAttr, oneOf, readAttr, readFields, readText, toKib, uint, whole } from './values.js'

const fail = failFrom('VIR_FROM_DOMAIN')

/** `<vcpu>` (virDomainVcpuParse): one where nothing is said. */
export function parseVcpu(domain: Reader): VcpuDef {
  const reader = domain.child('vcpu')
  if (reader === undefined) return { max: 1 }
  const max = readText(reader, uint)
  if (max === 0 || max > 0xffff) throw fail('VIR_ERR_XML_ERROR', `a domain can't have '${max}' virtual CPUs`)
  const current = readAttr(reader, 'current', uint)
  if (current !== undefined && (current > max || current === 0)) {
    throw fail('VIR_ERR_XML_ERROR', `the domain has '${max}' virtual CPUs, so '${current}' of them can't be current`)
  }
  const placement = readAttr(reader, 'placement', oneOf('static', 'auto'))
  const cpuset = readAttr(reader, 'cpuset', cpuList)
  return {
    max,
    ...(current !== undefined && current !== max && { current }),
    ...(placement !== undefined && { placement }),
    ...(cpuset !== undefined && placement !== 'auto' && { cpuset }),
    ...reader.residue(),
  }
}

/** `<cpu>` of a guest (virCPUDefParseXML). */
export function parseCpu(domain: Reader): CpuDef | undefined {
  const reader = domain.child('cpu')
  if (reader === undefined) return undefined
  const mode = readAttr(reader, 'mode', oneOf('custom', 'host-model', 'host-passthrough', 'maximum')) ?? 'custom'
  const match = reader.peek('match')
  const model = readModel(reader, mode)
  const vendor = reader.childText('vendor')
  return {
    mode,
    ...(mode === 'custom' && model && match === undefined && { match: 'exact' }),
    ...readFields(reader, cpuFields.own),
    ...(model && { model }),
    ...(vendor !== undefined && { vendor }),
    ...readShape(reader),
    features: readFeatures(reader),
    numa: readNuma(reader),
    ...reader.residue(),
  }
}

function readModel(reader: Reader, mode: CpuDef['mode']): CpuDef['model'] {
  const model = reader.child('model')
  const name = model?.text() ?? ''
  if (model === undefined || (name === '' && mode !== 'custom')) {
    model?.leave()
    return undefined
  }
  if (name === '') throw fail('VIR_ERR_XML_ERROR', "element 'model' of element 'cpu' names no model")
  const fields = readFields(model, cpuFields.model)
  if (fields.vendorId !== undefined && !/^[^,]{12}$/.test(fields.vendorId))
    throw model.invalid('vendor_id', fields.vendorId)
  return { name, fallback: 'allow', ...fields }
}

function readShape(reader: Reader): Pick<CpuDef, 'topology' | 'cache' | 'maxphysaddr'> {
  const [topology, cache, address] = ['topology', 'cache', 'maxphysaddr'].map((name) => reader.child(name))
  for (const name of ['sockets', 'cores', 'threads']) topology?.required(name)
  cache?.required('mode')
  address?.required('mode')
  return {
    ...(topology && { topology: { sockets: 1, cores: 1, threads: 1, ...readFields(topology, cpuFields.topology) } }),
    ...(cache && { cache: { mode: 'emulate', ...readFields(cache, cpuFields.cache) } }),
    ...(address && { maxphysaddr: { mode: 'emulate', ...readFields(address, cpuFields.maxphysaddr) } }),
  }
}

const policies = oneOf('force', 'require', 'optional', 'disable', 'forbid')

function readFeatures(reader: Reader): CpuDef['features'] {
  const features = reader.children('feature').map((feature) => ({
    name: feature.required('name'),
    policy: readAttr(feature, 'policy', policies) ?? 'require',
  }))
  const seen = new Set<string>()
  for (const { name } of features) {
    if (seen.has(name)) throw fail('VIR_ERR_XML_ERROR', `the CPU feature '${name}' is given more than once`)
    seen.add(name)
  }
  return features
}

/** The cells have to be numbered from 0 without a gap. */
function readNuma(reader: Reader): CpuDef['numa'] {
  const cells = (reader.child('numa')?.children('cell') ?? []).map((cell, at) => ({
    id: at,
    memory: readMemory(cell),
    ...readFields(cell, cpuFields.cell),
  }))
  const ids = new Set(cells.map(({ id }) => id))
  if (ids.size !== cells.length || cells.some(({ id }) => id >= cells.length)) {
    throw fail(
      'VIR_ERR_XML_ERROR',
      `the ids of ${cells.length} NUMA cells have to be 0 to ${cells.length - 1}, each once`,
    )
  }
  return cells
}

function readMemory(cell: Reader): number {
  return toKib(needAttr(cell, 'memory', whole()), cell.attr('unit') ?? 'KiB', 'cell')
}

/** `<clock>` (virDomainClockDef); UTC where nothing is said. */
export function parseClock(domain: Reader): ClockDef {
  const reader = domain.child('clock')
  if (reader === undefined) return { offset: 'utc', timers: [] }
  const offset = readAttr(reader, 'offset', oneOf('utc', 'localtime', 'variable', 'timezone', 'absolute')) ?? 'utc'
  const fields = readFields(reader, clockFields.clock)
  if (offset === 'timezone' && fields.timezone === undefined) {
    throw fail('VIR_ERR_XML_ERROR', "a clock with the offset 'timezone' needs the attribute 'timezone'")
  }
  if (offset === 'absolute' && fields.start === undefined) {
    throw fail('VIR_ERR_XML_ERROR', "a clock with the offset 'absolute' needs the attribute 'start'")
  }
  return { offset, ...fields, timers: reader.children('timer').map(readTimer), ...reader.residue() }
}

function readTimer(reader: Reader): TimerDef {
  reader.required('name')
  return { name: '', ...readFields(reader, clockFields.timer), ...reader.residue() }
}
