import { join } from 'node:path'
import { formatTunnelUri, parseTunnelUri } from '../tunnel/address.js'

/** `uri` with other certificates: those of one host are not where those of another one are. Throws TunnelError EINVAL. */
export function withPki(uri: string, choose: (pkipath: string | undefined) => string | undefined): string {
  const address = parseTunnelUri(uri)
  return formatTunnelUri(address.kind === 'tls' ? { ...address, pkipath: choose(address.pkipath) } : address)
}

/** Where the daemon of a root listens for the users of this host. */
export function socketOf(root: string): string {
  return join(root, 'run/virstreamd.sock')
}

/** The URI of the daemon of a root. */
export function daemonUri(root: string): string {
  return formatTunnelUri({ kind: 'unix', path: socketOf(root) })
}

/** `root` of a `qemu:///embed?root=…`; undefined for anything else. */
export function embeddedRoot(uri: string): string | undefined {
  if (!URL.canParse(uri)) return undefined
  const { protocol, host, pathname, searchParams } = new URL(uri)
  if (protocol !== 'qemu:' || host !== '' || pathname !== '/embed') return undefined
  return searchParams.get('root') || undefined
}
