/** How the bytes of an image are reached: the protocol part of a storage node (file, host device, NBD, HTTP). */
import type { DiskDriverDef, NetworkHost, StorageSource } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import type { Json } from './blockdev.js'

const fail = failFrom('VIR_FROM_QEMU')

export interface StorageProtocolOptions {
  io?: DiskDriverDef['io']
  hostCdrom?: boolean
  tlsCreds?: string
  /** seconds; what the source says itself comes first */
  reconnectDelay?: number
  /** id of the secret object that holds the cookies */
  cookieSecret?: string
}

type Protocol = Record<string, Json> & { driver: string }
type NetworkSource = Extract<StorageSource, { type: 'network' }>

/**
 * Seconds that an NBD node goes on trying to reconnect: for ever. A node that gives up fails the guest's reads and stays
 * dead also when the server comes back; one that waits carries on where it was.
 */
export const FOREVER = 4_000_000_000
/** Seconds that an NBD node may wait for its server when it is added. */
const nbdOpenTimeout = 10
const nbdPort = 10809

/** The driver of `source` and the options that only this driver has. VIR_ERR_CONFIG_UNSUPPORTED where QEMU has no way. */
export function storageProtocol(source: StorageSource, options: StorageProtocolOptions): Protocol {
  const aio = options.io && { aio: options.io }
  if (source.type === 'file') return { driver: 'file', filename: source.path, ...aio }
  if (source.type === 'block') {
    return { driver: options.hostCdrom ? 'host_cdrom' : 'host_device', filename: source.path, ...aio }
  }
  return source.protocol === 'nbd' ? nbd(source, options) : curl(source, options)
}

function onlyHost(source: NetworkSource): NetworkHost {
  const [host, second] = source.hosts
  if (host === undefined || second !== undefined) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `protocol '${source.protocol}' accepts only one host`)
  }
  return host
}

function nbd(source: NetworkSource, options: StorageProtocolOptions): Protocol {
  return {
    driver: 'nbd',
    server: nbdServer(onlyHost(source)),
    ...(source.name !== undefined && source.name !== '' && { export: source.name }),
    'reconnect-delay': source.reconnectDelay ?? options.reconnectDelay ?? FOREVER,
    'open-timeout': nbdOpenTimeout,
    ...(source.tls === 'yes' && nbdTls(source, options.tlsCreds)),
  }
}

function nbdServer(host: NetworkHost): Record<string, Json> {
  if (host.transport === 'unix') {
    if (host.socket === undefined)
      throw fail('VIR_ERR_XML_ERROR', "missing socket for unix transport of protocol 'nbd'")
    return { type: 'unix', path: host.socket }
  }
  if (host.name === undefined) throw fail('VIR_ERR_XML_ERROR', "missing host name of protocol 'nbd'")
  return { type: 'inet', host: host.name, port: String(host.port ?? nbdPort) }
}

function nbdTls(source: NetworkSource, tlsCreds: string | undefined): Record<string, Json> {
  if (tlsCreds === undefined) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `no TLS certificates are configured for NBD export '${source.name ?? ''}'`)
  }
  return { 'tls-creds': tlsCreds, ...(source.tlsHostname !== undefined && { 'tls-hostname': source.tlsHostname }) }
}

/** HTTP, HTTPS, FTP and FTPS, all by QEMU's curl driver. */
function curl(source: NetworkSource, options: StorageProtocolOptions): Protocol {
  const secure = source.protocol === 'https' || source.protocol === 'ftps'
  return {
    driver: source.protocol,
    url: curlUrl(source),
    ...(options.cookieSecret !== undefined && { 'cookie-secret': options.cookieSecret }),
    ...(secure && source.ssl && { sslverify: source.ssl.verify === 'yes' }),
    ...(source.readahead !== undefined && { readahead: source.readahead }),
    ...(source.timeout !== undefined && { timeout: source.timeout }),
  }
}

function curlUrl(source: NetworkSource): string {
  const host = onlyHost(source)
  if (host.transport === 'unix' || host.name === undefined) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `protocol '${source.protocol}' needs a TCP host`)
  }
  const name = host.name.includes(':') ? `[${host.name}]` : host.name
  const port = host.port === undefined ? '' : `:${host.port}`
  const path = (source.name ?? '').replace(/^\/*/, '/')
  return `${source.protocol}://${name}${port}${path}${source.query === undefined ? '' : `?${source.query}`}`
}
