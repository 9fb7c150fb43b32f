import { failFrom } from '../error.js'
import type { NetworkHost, NetworkProtocol, SeclabelDef, StorageSource } from './domain-def.js'
import * as fields from './disk-fields.js'
import { parseSeclabel } from './parse-seclabel.js'
import type { Reader } from './reader.js'
import { needAttr, oneOf, positive, readAttr, readFields, whole, yesNo } from './values.js'

const fail = failFrom('VIR_FROM_DOMAIN')

type NetworkSource = Extract<StorageSource, { type: 'network' }>
type Place = NetworkSource | { type: 'file' | 'block'; path: string }

const types = ['file', 'block', 'dir', 'network', 'volume', 'nvme', 'vhostuser']
const protocols = [
  'nbd',
  'rbd',
  'sheepdog',
  'gluster',
  'iscsi',
  'http',
  'https',
  'ftp',
  'ftps',
  'tftp',
  'ssh',
  'vxhs',
  'nfs',
]
const modelled = ['nbd', 'http', 'https', 'ftp', 'ftps']

/**
 * Whether every image of a `<disk>` or `<backingStore>` lies where we can say so in a `StorageSource`. VIR_ERR_XML_ERROR for
 * a type or protocol that libvirt does not know either.
 */
export function isModelledSource(owner: Reader): boolean {
  const type = owner.peek('type') ?? 'file'
  if (!types.includes(type)) throw owner.invalid('type', type)
  const source = owner.has('source')
  if (source && type !== 'file' && type !== 'block' && type !== 'network') return false
  const protocol = type === 'network' ? owner.peekChild('source', 'protocol') : undefined
  if (protocol !== undefined && !protocols.includes(protocol)) {
    throw fail('VIR_ERR_XML_ERROR', `attribute 'protocol' of element 'source' can't be '${protocol}'`)
  }
  if (protocol !== undefined && !modelled.includes(protocol)) return false
  const hosts = owner.child('source')?.children('host') ?? []
  if (hosts.some((host) => host.peek('transport') === 'rdma')) return false
  const backing = owner.child('backingStore')
  return backing?.peek('type') === undefined || isModelledSource(backing)
}

/** The image that `owner`'s `<source>` names; undefined where there is none or it names nothing (an empty drive). */
export function readSource(owner: Reader, source: Reader | undefined): StorageSource | undefined {
  const type =
    readAttr(owner, 'type', oneOf('file', 'block', 'network', 'dir', 'volume', 'nvme', 'vhostuser')) ?? 'file'
  if (source === undefined) return undefined
  const place = type === 'network' ? readNetwork(source) : readLocal(source, type === 'block' ? 'block' : 'file')
  if (place === undefined) return undefined
  const index = readAttr(source, 'index', fields.index)
  const startupPolicy = readAttr(source, 'startupPolicy', fields.startupPolicy)
  return {
    ...place,
    ...(index !== undefined && { index }),
    ...(startupPolicy !== undefined && { startupPolicy }),
    ...readSlice(source),
    ...readLabels(source),
    ...(owner.name === 'disk' && source.residue()),
  }
}

function readLocal(source: Reader, type: 'file' | 'block'): Place | undefined {
  const [attribute, other] = type === 'file' ? (['file', 'dev'] as const) : (['dev', 'file'] as const)
  const path = source.peek(attribute)
  if (path === undefined && source.peek(other) !== undefined) {
    throw fail(
      'VIR_ERR_XML_ERROR',
      `a disk of type '${type}' needs the attribute '${attribute}' in its source, not '${other}'`,
    )
  }
  source.attr(attribute)
  if (path === undefined || path === '') return undefined
  return { type, path }
}

/** `<backingStore>` below a disk or another one: null ends the chain, undefined leaves it to the image's own header. */
export function readBackingStore(owner: Reader): StorageSource | null | undefined {
  const store = owner.child('backingStore')
  if (store === undefined) return undefined
  if (store.peek('type') === undefined) return null
  const format = store.child('format')
  if (format === undefined) throw fail('VIR_ERR_XML_ERROR', "element 'backingStore' needs an element 'format'")
  const source = store.child('source')
  if (source === undefined) throw fail('VIR_ERR_XML_ERROR', "element 'backingStore' needs an element 'source'")
  const index = readAttr(store, 'index', fields.index)
  const image = readSource(store, source)
  if (image === undefined) throw fail('VIR_ERR_XML_ERROR', "the source of element 'backingStore' names no image")
  const next = readBackingStore(store)
  return {
    ...image,
    format: needAttr(format, 'type', fields.format),
    ...(index !== undefined && { index }),
    ...(next !== undefined && { backingStore: next }),
    ...store.residue(),
  }
}

function readNetwork(source: Reader): NetworkSource {
  const protocol: NetworkProtocol = needAttr(source, 'protocol', oneOf('nbd', 'http', 'https', 'ftp', 'ftps'))
  const name = source.attr('name')
  if (name === undefined && protocol !== 'nbd') {
    throw fail('VIR_ERR_XML_ERROR', `a source of protocol '${protocol}' needs the attribute 'name'`)
  }
  const hosts = source.children('host').map((host) => readHost(host, protocol))
  const tls = readAttr(source, 'tls', yesNo)
  const tlsHostname = source.attr('tlsHostname')
  return {
    type: 'network',
    protocol,
    ...(name !== undefined && { name }),
    hosts,
    ...(tls !== undefined && { tls }),
    ...(tlsHostname !== undefined && { tlsHostname }),
    ...(protocol === 'nbd' ? readReconnect(source) : readTransfer(source, protocol)),
  }
}

function readHost(reader: Reader, protocol: NetworkProtocol): NetworkHost {
  const transport = readAttr(reader, 'transport', oneOf('tcp', 'unix')) ?? 'tcp'
  const host = readFields(reader, fields.host)
  if (transport === 'unix') {
    if (host.socket === undefined)
      throw fail('VIR_ERR_XML_ERROR', "a host of transport 'unix' needs the attribute 'socket'")
    return { transport, socket: host.socket }
  }
  if (host.socket !== undefined)
    throw fail('VIR_ERR_XML_ERROR', `a host of transport '${transport}' has no socket, but '${host.socket}' is given`)
  if (host.name === undefined) throw fail('VIR_ERR_XML_ERROR', "element 'host' needs the attribute 'name'")
  return { name: host.name, port: host.port ?? fields.defaultPorts[protocol] }
}

function readReconnect(source: Reader): Pick<NetworkSource, 'reconnectDelay'> {
  const reconnect = source.child('reconnect')
  const delay = reconnect && readAttr(reconnect, 'delay', whole(0, 0xffffffff))
  return delay === undefined ? {} : { reconnectDelay: delay }
}

type Transfer = Pick<NetworkSource, 'query' | 'ssl' | 'cookies' | 'timeout' | 'readahead'>
function readTransfer(source: Reader, protocol: NetworkProtocol): Transfer {
  const isHttp = protocol === 'http' || protocol === 'https'
  const query = isHttp ? source.attr('query') : undefined
  const verify = protocol === 'https' || protocol === 'ftps' ? source.child('ssl') : undefined
  const cookies = isHttp ? source.child('cookies')?.children('cookie').map(readCookie) : undefined
  const [timeout, readahead] = [source.child('timeout'), source.child('readahead')]
  return {
    ...(query !== undefined && { query }),
    ...(verify && { ssl: { verify: needAttr(verify, 'verify', yesNo) } }),
    ...(cookies && cookies.length > 0 && { cookies: refuseTwice(cookies) }),
    ...(timeout && { timeout: needAttr(timeout, 'seconds', positive) }),
    ...(readahead && { readahead: needAttr(readahead, 'size', whole(1)) }),
  }
}

/** RFC 6265: neither the name nor the value of a cookie may hold separators. */
function readCookie(reader: Reader): { name: string; value: string } {
  const name = reader.required('name')
  const value = reader.rawText()
  if (!/^[!#$%&'*+\-.^_`|~\w]+$/.test(name)) throw fail('VIR_ERR_XML_ERROR', `a cookie can't be called '${name}'`)
  if (!/^(?:"[^\s",;\\]*"|[^\s",;\\]*)$/.test(value))
    throw fail('VIR_ERR_XML_ERROR', `the cookie '${name}' holds a character that no cookie can`)
  return { name, value }
}

function refuseTwice(cookies: { name: string; value: string }[]): { name: string; value: string }[] {
  const seen = new Set<string>()
  for (const { name } of cookies) {
    if (seen.has(name)) throw fail('VIR_ERR_XML_ERROR', `the cookie '${name}' is given more than once`)
    seen.add(name)
  }
  return cookies
}

function readSlice(source: Reader): { slice?: { offset: number; size: number } } {
  const slice = source.child('slices')?.child('slice', '', (each) => each('type') === 'storage')
  if (slice === undefined) return {}
  slice.attr('type')
  return { slice: { offset: needAttr(slice, 'offset', fields.bytes), size: needAttr(slice, 'size', fields.bytes) } }
}

function readLabels(source: Reader): { seclabels?: SeclabelDef[] } {
  const seclabels = source.children('seclabel').map(parseSeclabel)
  return seclabels.length === 0 ? {} : { seclabels }
}
