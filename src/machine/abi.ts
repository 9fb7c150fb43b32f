/** What a guest sees of its machine: a definition that it is moved to must not change it (virDomainDefCheckABIStability), nor its name. */
import type { DomainDef } from '../conf/domain-def.js'
import { failFrom } from '../error.js'

const fail = failFrom('VIR_FROM_QEMU')

type Plain = string | number | boolean | null | Plain[] | { [key: string]: Plain }

/** What is the host's affair, wherever it stands in a device. */
const HOST_SIDE: ReadonlySet<string> = new Set([
  ...['alias', 'residue', 'source', 'driver', 'seclabels', 'log', 'state', 'bandwidth', 'iotune', 'backend', 'tray'],
  ...['listens', 'port', 'autoport', 'passwd', 'passwdValidTo', 'websocket', 'listen', 'socket', 'keymap', 'link'],
  ...['transient', 'target'],
])

/** Parts of a domain that its guest does not see. */
const OUTSIDE: ReadonlySet<string> = new Set([
  ...['id', 'title', 'description', 'metadata', 'emulator', 'seclabels', 'residue', 'virtType', 'iothreads'],
  ...['onPoweroff', 'onReboot', 'onCrash', 'memoryBacking', 'graphics', 'qemuCommandline', 'currentMemory', 'pm'],
])

/**
 * VIR_ERR_CONFIG_UNSUPPORTED, naming the place, when the guest would find another machine in `there` than it has in `here`.
 * Both are complete definitions: defaults and addresses filled in.
 */
export function checkAbi(here: DomainDef, there: DomainDef): void {
  for (const key of new Set([...Object.keys(here), ...Object.keys(there)])) {
    if (OUTSIDE.has(key)) continue
    const [one, other] = [guestView(here, key), guestView(there, key)]
    const place = difference(one, other, key)
    if (place !== undefined) refuse(place.path, place.one, place.other)
  }
}

function refuse(path: string, one: Plain | undefined, other: Plain | undefined): never {
  const show = (value: Plain | undefined): string =>
    value === undefined ? 'nothing' : `'${JSON.stringify(value).replaceAll('"', '')}'`
  throw fail(
    'VIR_ERR_CONFIG_UNSUPPORTED',
    `target domain's '${path}' ${show(other)} does not match source ${show(one)}`,
  )
}

function guestView(def: DomainDef, key: string): Plain | undefined {
  const value = (def as unknown as Record<string, unknown>)[key]
  if (key === 'os') return strip(value, new Set(['loader', 'nvram', 'kernel', 'initrd', 'cmdline', 'dtb', 'residue']))
  if (key === 'vcpu') return strip(value, new Set(['cpuset', 'placement', 'residue']))
  // where a disk stands tells its address and its bus; what it is called is for people
  if (key === 'disks') return strip(value, new Set([...HOST_SIDE].filter((name) => name !== 'target')))
  // libvirt lists them as they were made
  if (key === 'controllers') return strip(byNumber(def.controllers), HOST_SIDE)
  return strip(value, HOST_SIDE)
}

function byNumber(controllers: DomainDef['controllers']): DomainDef['controllers'] {
  const rank = ({ type, index }: DomainDef['controllers'][number]): string =>
    `${type} ${String(index).padStart(9, '0')}`
  return [...controllers].sort((one, other) => (rank(one) < rank(other) ? -1 : 1))
}

function strip(value: unknown, without: ReadonlySet<string>): Plain | undefined {
  if (Array.isArray(value)) return value.map((each) => strip(each, without) ?? null)
  if (typeof value !== 'object' || value === null) return value as Plain | undefined
  const entries = Object.entries(value).filter(([key, each]) => !without.has(key) && each !== undefined)
  return Object.fromEntries(entries.map(([key, each]) => [key, strip(each, without) ?? null]))
}

interface Difference {
  path: string
  one: Plain | undefined
  other: Plain | undefined
}

function difference(one: Plain | undefined, other: Plain | undefined, path: string): Difference | undefined {
  if (!isObject(one) || !isObject(other)) return one === other ? undefined : { path, one, other }
  for (const key of new Set([...Object.keys(one), ...Object.keys(other)])) {
    const step = Array.isArray(one) ? `${path}[${key}]` : `${path}.${key}`
    const found = difference(one[key], other[key], step)
    if (found !== undefined) return found
  }
  return undefined
}

function isObject(value: Plain | undefined): value is { [key: string]: Plain } {
  return typeof value === 'object' && value !== null
}
