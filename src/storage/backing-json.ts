/** Backing strings of the form `json:{…}`: block device options as of QEMU's `-blockdev`, nested or with dotted keys. */
import type { NetworkHost, StorageSource } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { type NetworkSource, parseCurlUrl, parseNbdAddress } from './backing-address.js'

const fail = failFrom('VIR_FROM_STORAGE')

type Options = Map<string, Options | string | number | boolean | null>

/** The formats that may stand as a driver around the protocol's. */
const FORMATS = new Set(['raw', 'qcow2', 'qed', 'qcow', 'vmdk', 'vdi', 'vhdx', 'vpc', 'luks', 'parallels'])
const MAX_DEPTH = 8

/** The image that the text after `json:` describes. */
export function parseBackingJson(text: string): StorageSource {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw fail('VIR_ERR_INTERNAL_ERROR', `backing string 'json:${text}' is not JSON`, error)
  }
  const options: Options = new Map()
  collect(options, value, 0)
  return sourceOf(options, 0)
}

/** Nested objects, lists and dotted keys all become nested maps: {"server.0.host": …} is {"server": [{"host": …}]}. */
function collect(into: Options, value: unknown, depth: number): void {
  if (typeof value !== 'object' || value === null || depth > MAX_DEPTH) throw broken('is no object, or too deep')
  for (const [path, child] of Object.entries(value)) {
    const keys = path.split('.')
    const last = keys.pop() ?? ''
    if (keys.length > MAX_DEPTH) throw broken('is too deep')
    let target = into
    for (const key of keys) target = inner(target, key)
    if (typeof child === 'object' && child !== null) collect(inner(target, last), child, depth + 1)
    else if (typeof child === 'string' || typeof child === 'number' || typeof child === 'boolean')
      target.set(last, child)
    else target.set(last, null)
  }
}

function inner(options: Options, key: string): Options {
  const found = options.get(key)
  if (found instanceof Map) return found
  const made: Options = new Map()
  options.set(key, made)
  return made
}

function broken(why: string): Error {
  return fail('VIR_ERR_INTERNAL_ERROR', `JSON backing string ${why}`)
}

function text(options: Options, key: string): string | undefined {
  const value = options.get(key)
  if (value === undefined || value === null || value instanceof Map) return undefined
  const string = String(value)
  if (string.includes('\0')) throw broken(`has a NUL in '${key}'`)
  return string
}

function need(options: Options, key: string): string {
  const value = text(options, key)
  if (value === undefined || value === '') throw broken(`lacks '${key}'`)
  return value
}

function count(options: Options, key: string): number | undefined {
  const value = text(options, key)
  if (value === undefined) return undefined
  const number = Number(value)
  if (!/^\d+$/.test(value) || !Number.isSafeInteger(number)) throw broken(`has a bad number in '${key}'`)
  return number
}

function isOn(options: Options, key: string): boolean | undefined {
  const value = text(options, key)
  return value === undefined ? undefined : value === 'true' || value === 'on'
}

function sourceOf(options: Options, depth: number): StorageSource {
  if (depth > MAX_DEPTH) throw broken('is too deep')
  const driver = text(options, 'driver')
  const file = options.get('file')
  if (typeof file === 'string') throw broken('names a block node, which only a running QEMU has')
  if (file instanceof Map) return layered(sourceOf(file, depth + 1), driver, options)
  switch (driver) {
    case 'file':
      return { type: 'file', path: need(options, 'filename') }
    case 'host_device':
    case 'host_cdrom':
      return { type: 'block', path: need(options, 'filename') }
    case 'nbd':
      return nbd(options)
    case 'http':
    case 'https':
    case 'ftp':
    case 'ftps':
      return curl(driver, options)
    case undefined:
      throw broken("lacks 'driver'")
    default:
      throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `backing protocol '${driver}' is not supported`)
  }
}

/** `source` seen through a format: 'raw' with an offset is a slice, another format is kept as the image's format. */
function layered(source: StorageSource, driver: string | undefined, options: Options): StorageSource {
  if (driver === undefined) return source
  if (!FORMATS.has(driver)) throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `backing driver '${driver}' is not supported`)
  if (source.format !== undefined && source.format !== 'raw') throw broken('has one image format inside another')
  const offset = count(options, 'offset')
  const size = count(options, 'size')
  if (driver !== 'raw' || (offset === undefined && size === undefined)) return { ...source, format: driver }
  if (size === undefined) throw fail('VIR_ERR_CONFIG_UNSUPPORTED', "a backing image with 'offset' needs 'size'")
  if (source.slice !== undefined) throw broken('has one slice inside another')
  return { ...source, format: 'raw', slice: { offset: offset ?? 0, size } }
}

function nbd(options: Options): NetworkSource {
  const filename = text(options, 'filename')
  const server = options.get('server')
  if (text(options, 'tls-creds') !== undefined) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', 'a backing string with TLS credentials is not supported')
  }
  if (filename !== undefined) {
    const source = parseNbdAddress(filename)
    if (source === undefined) throw broken('has an NBD driver and another address')
    return source
  }
  const name = text(options, 'export') ?? ''
  const delay = count(options, 'reconnect-delay')
  return {
    type: 'network',
    protocol: 'nbd',
    ...(name !== '' && { name }),
    hosts: [server instanceof Map ? host(server) : host(options)],
    ...(delay !== undefined && { reconnectDelay: delay }),
  }
}

/** A SocketAddress: {type: 'inet', host, port} or {type: 'unix', path}; the type may be missing in old images. */
function host(server: Options): NetworkHost {
  const type = text(server, 'type') ?? (server.has('path') ? 'unix' : 'inet')
  if (type === 'unix') return { transport: 'unix', socket: need(server, 'path') }
  if (type !== 'inet' && type !== 'tcp') {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `a backing server of type '${type}' is not supported`)
  }
  const port = count(server, 'port')
  if (port !== undefined && (port < 1 || port > 65535)) throw broken("has a bad number in 'port'")
  return { name: need(server, 'host'), ...(port !== undefined && { port }) }
}

function curl(driver: string, options: Options): NetworkSource {
  for (const key of ['username', 'password-secret', 'cookie-secret']) {
    if (options.has(key)) throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `a backing string with '${key}' is not supported`)
  }
  const source = parseCurlUrl(text(options, 'url') ?? need(options, 'filename'))
  if (source.protocol !== driver) throw broken(`has driver '${driver}' and an address of '${source.protocol}'`)
  const verify = isOn(options, 'sslverify')
  const readahead = count(options, 'readahead')
  const timeout = count(options, 'timeout')
  const cookies = parseCookies(text(options, 'cookie'))
  return {
    ...source,
    ...(verify !== undefined && { ssl: { verify: verify ? ('yes' as const) : ('no' as const) } }),
    ...(readahead !== undefined && { readahead }),
    ...(timeout !== undefined && { timeout }),
    ...(cookies.length > 0 && { cookies }),
  }
}

function parseCookies(list: string | undefined): { name: string; value: string }[] {
  if (list === undefined) return []
  return list
    .split(';')
    .map((pair) => pair.trim())
    .filter((pair) => pair !== '')
    .map((pair) => {
      const at = pair.indexOf('=')
      if (at < 1) throw broken("has a bad 'cookie'")
      return { name: pair.slice(0, at), value: pair.slice(at + 1) }
    })
}
