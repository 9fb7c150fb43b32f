/** The text by which an image's header names its backing image (QEMU manual, "Device URL Syntax"; pseudo protocol `json:`). */
import type { NetworkHost, StorageSource } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { isCurlUrl, type NetworkSource, parseCurlUrl, parseNbdAddress } from './backing-address.js'
import { parseBackingJson } from './backing-json.js'

const fail = failFrom('VIR_FROM_STORAGE')

/** Bytes that fit into a header (QEMU docs/interop/qcow2.txt). */
export const MAX_BACKING_STRING = 1023

/**
 * The image that `text` names, without its format unless the text has it. A relative path is relative to `parent`, the
 * image that has the text in its header. A path of a host device is answered as a file: only the host knows better.
 * VIR_ERR_CONFIG_UNSUPPORTED for what we can't reach, VIR_ERR_INTERNAL_ERROR for text that makes no sense.
 */
export function parseBackingString(text: string, parent?: StorageSource): StorageSource {
  if (text.startsWith('json:')) return relativeTo(parseBackingJson(text.slice(5)), parent)
  if (text.startsWith('file:')) return relativeTo(fileSource(text.slice(5).replace(/^\/+/, '/')), parent)
  const remote = parseNbdAddress(text) ?? (isCurlUrl(text) ? parseCurlUrl(text) : undefined)
  if (remote !== undefined) return remote
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
