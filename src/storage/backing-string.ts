/** The text by which an image's header names its backing image (QEMU manual, "Device URL Syntax"; pseudo protocol `json:`). */
import type { NetworkHost, StorageSource } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { parseBackingJson } from './backing-json.js'

const fail = failFrom('VIR_FROM_STORAGE')

export type NetworkSource = Extract<StorageSource, { type: 'network' }>

/** Bytes that fit into a header (QEMU docs/interop/qcow2.txt). */
export const MAX_BACKING_STRING = 1023

const CURL = /^(https?|ftps?):\/\/([^/?#]*)([^?#]*)(?:\?([^#]*))?/

/**
 * The image that `text` names, without its format unless the text has it. A relative path is relative to `parent`, the
 * image that has the text in its header. A path of a host device is answered as a file: only the host knows better.
 * VIR_ERR_CONFIG_UNSUPPORTED for what we can't reach, VIR_ERR_INTERNAL_ERROR for text that makes no sense.
 */
export function parseBackingString(text: string, parent?: StorageSource): StorageSource {
  if (text.startsWith('json:')) return relativeTo(parseBackingJson(text.slice(5)), parent)
  if (text.startsWith('file:')) return relativeTo(fileSource(text.slice(5).replace(/^\/+/, '/')), parent)
  if (/^nbd(\+tcp|\+unix)?:\/\//.test(text)) return parseNbdUri(text)
  if (text.startsWith('nbd:')) return parseLegacyNbd(text)
  if (CURL.test(text)) return parseCurlUrl(text)
  const scheme = /^([^/:]*):/.exec(text)
  if (scheme !== null)
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `backing protocol '${scheme[1] ?? ''}' is not supported`)
  return relativeTo(fileSource(text), parent)
}

function fileSource(path: string): StorageSource {
  if (path === '' || path.includes('\0'))
    throw fail('VIR_ERR_INTERNAL_ERROR', 'backing string has an empty or broken path')
  return { type: 'file', path }
}

function relativeTo(source: StorageSource, parent: StorageSource | undefined): StorageSource {
  if (source.type === 'network' || source.path.startsWith('/')) return source
  if (parent?.type === 'file' || parent?.type === 'block') {
    return { ...source, path: parent.path.slice(0, parent.path.lastIndexOf('/') + 1) + source.path }
  }
  if (parent?.type === 'network' && parent.protocol !== 'nbd') {
    const name = parent.name ?? ''
    return { ...withoutBacking(parent), name: name.slice(0, name.lastIndexOf('/') + 1) + source.path }
  }
  const of = parent === undefined ? '' : ` of '${formatBackingString(parent)}'`
  throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `backing path '${source.path}'${of} is relative to nothing`)
}

function withoutBacking(source: NetworkSource): NetworkSource {
  const copy = { ...source }
  delete copy.backingStore
  delete copy.index
  delete copy.format
  delete copy.slice
  delete copy.residue
  return copy
}

function malformed(text: string, cause?: unknown): Error {
  return fail('VIR_ERR_INTERNAL_ERROR', `failed to parse backing string '${text}'`, cause)
}

function decode(part: string, text: string): string {
  try {
    return decodeURIComponent(part)
  } catch (error) {
    throw malformed(text, error)
  }
}

/** 'host', 'host:port', '[::1]:port'; a user's name or password is refused, as it has no place in a StorageSource. */
function parseAuthority(authority: string, text: string): NetworkHost {
  if (authority.includes('@')) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', 'a backing string with a user name is not supported')
  }
  const match = /^(?:\[([0-9A-Fa-f:.%]+)\]|([^:[\]]+))(?::(\d*))?$/.exec(authority)
  const name = match?.[1] ?? match?.[2]
  if (match === null || name === undefined) throw malformed(text)
  return { name: decode(name, text), ...port(match[3], text) }
}

function port(digits: string | undefined, text: string): { port?: number } {
  if (digits === undefined || digits === '') return {}
  const number = Number(digits)
  if (!Number.isInteger(number) || number < 1 || number > 65535) throw malformed(text)
  return { port: number }
}

/** nbd://host:port/export, nbd+tcp://…, nbd+unix:///export?socket=path (the NBD project's doc/uri.md) */
function parseNbdUri(text: string): NetworkSource {
  const match = /^nbd(\+\w+)?:\/\/([^/?#]*)(?:\/([^?#]*))?(?:\?([^#]*))?(?:#.*)?$/.exec(text)
  if (match === null) throw malformed(text)
  const [, transport, authority = '', path = '', query = ''] = match
  const name = decode(path, text)
  const named = name === '' ? {} : { name }
  if (transport !== '+unix') {
    return { type: 'network', protocol: 'nbd', ...named, hosts: [parseAuthority(authority, text)] }
  }
  const socket = query
    .split('&')
    .find((pair) => pair.startsWith('socket='))
    ?.slice('socket='.length)
  if (socket === undefined || socket === '' || authority !== '') throw malformed(text)
  return { type: 'network', protocol: 'nbd', ...named, hosts: [{ transport: 'unix', socket: decode(socket, text) }] }
}

/** nbd:unix:path[:exportname=name] and nbd:host:port[:exportname=name] */
function parseLegacyNbd(text: string): NetworkSource {
  const at = text.indexOf(':exportname=')
  const name = at < 0 ? '' : text.slice(at + ':exportname='.length)
  const where = text.slice('nbd:'.length, at < 0 ? undefined : at)
  const named = name === '' ? {} : { name }
  if (where.startsWith('unix:')) {
    const socket = where.slice('unix:'.length).replace(/:$/, '')
    if (socket === '') throw malformed(text)
    return { type: 'network', protocol: 'nbd', ...named, hosts: [{ transport: 'unix', socket }] }
  }
  const host = parseAuthority(where, text)
  if (host.port === undefined) throw malformed(text)
  return { type: 'network', protocol: 'nbd', ...named, hosts: [host] }
}

/** An address that QEMU's curl driver takes; what follows the host is kept as it is written. */
export function parseCurlUrl(text: string): NetworkSource {
  const match = CURL.exec(text)
  const protocol = match?.[1]
  if (protocol !== 'http' && protocol !== 'https' && protocol !== 'ftp' && protocol !== 'ftps') throw malformed(text)
  const name = (match?.[3] ?? '').replace(/^\//, '')
  const query = match?.[4]
  return {
    type: 'network',
    protocol,
    name,
    ...(query !== undefined && { query }),
    hosts: [parseAuthority(match?.[2] ?? '', text)],
  }
}

// --- the other way -----------------------------------------------------------------------------------------------

/**
 * The text that names `source` to QEMU: a path, a URL where it says all, `json:{…}` otherwise (a slice, certificates that
 * are not checked). Which image, not how to treat it: reconnect delays, time limits, cookies and the like are left out.
 */
export function formatBackingString(source: StorageSource): string {
  if (source.slice !== undefined || (source.type === 'network' && source.ssl?.verify === 'no'))
    return blockdevString(source)
  if (source.type !== 'network') return source.path
  return source.protocol === 'nbd' ? nbdUri(source) : curlUrl(source)
}

function onlyHost(source: NetworkSource): NetworkHost {
  const [host, second] = source.hosts
  if (host === undefined || second !== undefined) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `protocol '${source.protocol}' accepts only one host`)
  }
  return host
}

function authorityOf(host: NetworkHost, source: NetworkSource): string {
  if (host.name === undefined) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `protocol '${source.protocol}' needs the name of a host`)
  }
  const name = host.name.includes(':') ? `[${host.name}]` : host.name
  return host.port === undefined ? name : `${name}:${host.port}`
}

function encode(text: string): string {
  return encodeURIComponent(text).replaceAll('%2F', '/')
}

function nbdUri(source: NetworkSource): string {
  const host = onlyHost(source)
  const name = encode(source.name ?? '')
  if (host.transport !== 'unix') return `nbd://${authorityOf(host, source)}${name === '' ? '' : `/${name}`}`
  return `nbd+unix:///${name}?socket=${encode(unixSocket(host))}`
}

function unixSocket(host: NetworkHost): string {
  if (host.socket === undefined) throw fail('VIR_ERR_CONFIG_UNSUPPORTED', "transport 'unix' needs a socket")
  return host.socket
}

function curlUrl(source: NetworkSource): string {
  const host = onlyHost(source)
  if (host.transport === 'unix') {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `protocol '${source.protocol}' needs a TCP host`)
  }
  const query = source.query === undefined ? '' : `?${source.query}`
  return `${source.protocol}://${authorityOf(host, source)}/${(source.name ?? '').replace(/^\//, '')}${query}`
}

function protocolJson(source: StorageSource): Record<string, unknown> {
  if (source.type === 'block') return { driver: 'host_device', filename: source.path }
  if (source.type === 'file') return { driver: 'file', filename: source.path }
  if (source.protocol !== 'nbd') {
    return {
      driver: source.protocol,
      url: curlUrl(source),
      ...(source.ssl && { sslverify: source.ssl.verify === 'yes' }),
    }
  }
  const host = onlyHost(source)
  const server =
    host.transport === 'unix'
      ? { type: 'unix', path: unixSocket(host) }
      : { type: 'inet', host: host.name ?? '', port: String(host.port ?? 10809) }
  return { driver: 'nbd', server, ...(source.name !== undefined && source.name !== '' && { export: source.name }) }
}

/** `json:{…}` with the image's format around its protocol: QEMU takes it for a backing image only like that. */
export function blockdevString(source: StorageSource): string {
  const { slice, format = 'raw' } = source
  const file = protocolJson(source)
  if (slice === undefined) return `json:${JSON.stringify({ driver: format, file })}`
  const part = { driver: 'raw', offset: slice.offset, size: slice.size, file }
  return `json:${JSON.stringify(format === 'raw' ? part : { driver: format, file: part })}`
}
