/** The addresses of servers in backing strings: NBD in each of its ways of writing, and what QEMU leaves to libcurl. */
import type { NetworkHost, StorageSource } from '../conf/domain-def.js'
import { failFrom } from '../error.js'

const fail = failFrom('VIR_FROM_STORAGE')

export type NetworkSource = Extract<StorageSource, { type: 'network' }>

const CURL = /^(https?|ftps?):\/\/([^/?#]*)([^?#]*)(?:\?([^#]*))?/

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

/** The NBD server that `text` names, in any of QEMU's ways; undefined when it names something else. */
export function parseNbdAddress(text: string): NetworkSource | undefined {
  if (/^nbd(\+tcp|\+unix)?:\/\//.test(text)) return parseNbdUri(text)
  return text.startsWith('nbd:') ? parseLegacyNbd(text) : undefined
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

export const isCurlUrl = (text: string): boolean => CURL.test(text)

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
