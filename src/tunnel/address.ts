import { isIP } from 'node:net'
import { TunnelError } from './error.js'

/** Where a tunnel is listened for when the URI names no port. */
export const defaultTunnelPort = 16520

export type TunnelAddress =
  | { readonly kind: 'unix'; readonly path: string }
  /** not encrypted: only on the same machine */
  | { readonly kind: 'tcp'; readonly host: string; readonly port: number }
  | { readonly kind: 'tls'; readonly host: string; readonly port: number; readonly pkipath: string | undefined }

/**
 * `virstream+unix:///path`, `virstream+tls://host[:port]/[?pkipath=DIRECTORY]`, `virstream+tcp://127.0.0.1[:port]/`.
 * Throws TunnelError EINVAL.
 */
export function parseTunnelUri(uri: string): TunnelAddress {
  const fail = (why: string): TunnelError => new TunnelError('EINVAL', `'${uri}' is no address of a tunnel: ${why}`)
  const url = URL.canParse(uri) ? new URL(uri) : undefined
  if (url === undefined) throw fail('it is no URI')
  const { protocol, username, password, hash, pathname, searchParams } = url
  if (username !== '' || password !== '' || hash !== '') throw fail('it may have a host, a port and parameters only')
  const unknown = [...searchParams.keys()].find((name) => protocol !== 'virstream+tls:' || name !== 'pkipath')
  if (unknown !== undefined) throw fail(`there is no parameter '${unknown}'`)
  if (protocol === 'virstream+unix:') {
    if (url.host !== '' || pathname.length < 2) throw fail('it needs an absolute path and no host')
    return { kind: 'unix', path: decodeURIComponent(pathname) }
  }
  const host = url.hostname.replace(/^\[|\]$/g, '')
  const port = url.port === '' ? defaultTunnelPort : Number(url.port)
  if (host === '' || port === 0) throw fail('it needs a host')
  if (pathname !== '' && pathname !== '/') throw fail('it takes no path')
  if (protocol === 'virstream+tls:')
    return { kind: 'tls', host, port, pkipath: searchParams.get('pkipath') ?? undefined }
  if (protocol !== 'virstream+tcp:') throw fail(`there is no scheme '${protocol.slice(0, -1)}'`)
  if (!isLoopback(host)) throw fail('without TLS a tunnel stays on its machine (127.0.0.1, ::1)')
  return { kind: 'tcp', host, port }
}

export function formatTunnelUri(address: TunnelAddress): string {
  if (address.kind === 'unix') return `virstream+unix://${encodeURI(address.path).replace(/[?#]/g, encodeURIComponent)}`
  const host = isIP(address.host) === 6 ? `[${address.host}]` : address.host
  const query =
    address.kind === 'tls' && address.pkipath !== undefined ? `?pkipath=${encodeURIComponent(address.pkipath)}` : ''
  return `virstream+${address.kind}://${host}:${address.port}/${query}`
}

/** An address that never leaves the machine; names are not looked up, they could lead elsewhere. */
export function isLoopback(address: string): boolean {
  const plain = address.replace(/^::ffff:/, '')
  return plain === '::1' || (isIP(plain) === 4 && plain.startsWith('127.'))
}
