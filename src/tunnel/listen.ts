import { once } from 'node:events'
import { rm } from 'node:fs/promises'
import { createServer, type Server, type Socket } from 'node:net'
import { createServer as createTlsServer, type TLSSocket } from 'node:tls'
import { native } from '../native.js'
import { defaultTunnelPort, formatTunnelUri, isLoopback } from './address.js'
import { descriptorOf, tuneTcp } from './carrier.js'
import { asTunnelError, TunnelError } from './error.js'
import { removeDeadSocket } from './join.js'
import type { Peer } from './peer.js'
import { distinguishedName, isAllowedDn, tlsOptions, type Credentials } from './pki.js'
import type { ServerOptions } from './options.js'
import { Tunnel } from './tunnel.js'

export type ListenAddress =
  | { readonly unix: string }
  /** `port`: default 16520, 0 for any; without `tls` only on a loopback address */
  | { readonly host: string; readonly port?: number; readonly tls?: Credentials }

export interface ListenOptions extends ServerOptions {
  /** A client has been let in. Requests for channels wait until `tunnel.onOpen` is set. */
  onTunnel: (tunnel: Tunnel) => void
  /** a connection that did not become a tunnel */
  onRefused?: (error: TunnelError, peer: Peer | undefined) => void
  /** connections that may be before the end of their hello; when there are more the oldest is closed. Default 32 */
  maxPending?: number
  /** libvirt's tls_allowed_dn_list: names in certificates that may connect, with * and ?; default: all of the authority */
  allowedDns?: readonly string[]
}

/** Waits for tunnels at one address. */
export class TunnelListener {
  readonly #address: ListenAddress
  readonly #options: ListenOptions
  readonly #server: Server
  readonly #tunnels = new Set<Tunnel>()
  /** connections before the end of their hello, oldest first */
  readonly #pending = new Set<Socket>()

  /** Made by listenTunnel. */
  constructor(address: ListenAddress, options: ListenOptions, server: Server) {
    this.#address = address
    this.#options = options
    this.#server = server
    server.on('connection', (socket: Socket) => this.#connected(socket))
    server.on('secureConnection', (socket: TLSSocket) => void this.#secured(socket))
    server.on('error', (error) => {
      options.onRefused?.(asTunnelError(error, 'ECONNRESET', 'no connection can be taken'), undefined)
    })
    server.on('tlsClientError', (error: Error, socket: TLSSocket) => {
      socket.destroy()
      this.#options.onRefused?.(asTunnelError(error, 'EACCES', 'TLS failed'), undefined)
    })
  }

  /** What clients dial, with the port that it has become. */
  get uri(): string {
    const address = this.#address
    if ('unix' in address) return formatTunnelUri({ kind: 'unix', path: address.unix })
    const { host, tls } = address
    const port = this.port ?? 0
    if (tls === undefined) return formatTunnelUri({ kind: 'tcp', host, port })
    return formatTunnelUri({ kind: 'tls', host, port, pkipath: undefined })
  }

  get port(): number | undefined {
    const address = this.#server.address()
    return typeof address === 'object' ? address?.port : undefined
  }

  /** Those that are open. */
  get tunnels(): ReadonlySet<Tunnel> {
    return this.#tunnels
  }

  /** No new connections; those that are not let in yet are closed, tunnels go on. */
  async close(): Promise<void> {
    const address = this.#address
    this.#server.close()
    for (const socket of this.#pending) socket.destroy()
    if ('unix' in address) await rm(address.unix, { force: true })
  }

  #connected(socket: Socket): void {
    const { maxPending = 32 } = this.#options
    const [oldest] = this.#pending
    // an honest hello takes a round trip or two: the oldest is the one that means no good
    if (this.#pending.size >= maxPending) oldest?.destroy()
    this.#pending.add(socket)
    socket.once('close', () => this.#pending.delete(socket))
    const address = this.#address
    if ('unix' in address) {
      const fd = descriptorOf(socket)
      const credentials = fd === undefined ? undefined : native.peerCredentials(fd)
      void this.#greet(socket, { kind: 'unix', credentials }, socket)
      return
    }
    tuneTcp(socket)
    if (address.tls === undefined)
      void this.#greet(socket, { kind: 'tcp', address: socket.remoteAddress ?? '' }, socket)
  }

  async #secured(secure: TLSSocket): Promise<void> {
    const peer: Peer = { kind: 'tls', address: secure.remoteAddress ?? '', dn: distinguishedName(secure) }
    const options: ServerOptions = {
      ...this.#options,
      authorize: (hello) => {
        if (isAllowedDn(peer.dn, this.#options.allowedDns)) return this.#options.authorize(hello, peer)
        throw new TunnelError('EACCES', `'${peer.dn}' may not connect`)
      },
    }
    await this.#greet(secure, peer, this.#rawOf(secure), options)
  }

  /** The connection under a TLS socket. */
  #rawOf({ remoteAddress, remotePort }: TLSSocket): Socket | undefined {
    return [...this.#pending].find((raw) => raw.remotePort === remotePort && raw.remoteAddress === remoteAddress)
  }

  async #greet(
    socket: Socket,
    peer: Peer,
    raw: Socket | undefined,
    options: ServerOptions = this.#options,
  ): Promise<void> {
    try {
      const tunnel = await Tunnel.server(socket, options, peer)
      if (raw !== undefined) this.#pending.delete(raw)
      this.#tunnels.add(tunnel)
      void tunnel.closed.then(() => this.#tunnels.delete(tunnel))
      this.#options.onTunnel(tunnel)
    } catch (error) {
      this.#options.onRefused?.(asTunnelError(error, 'ECONNRESET', 'the connection broke'), peer)
    }
  }
}

/** Rejects with TunnelError EINVAL when the address can't be listened on, or may not without TLS. */
export async function listenTunnel(address: ListenAddress, options: ListenOptions): Promise<TunnelListener> {
  if ('host' in address && address.tls === undefined && !isLoopback(address.host))
    throw new TunnelError('EINVAL', `a tunnel on '${address.host}' needs TLS`)
  const { helloTimeout = 5000 } = options
  try {
    const server =
      'host' in address && address.tls !== undefined
        ? createTlsServer({ ...tlsOptions(address.tls), requestCert: true, handshakeTimeout: helloTimeout })
        : createServer()
    const listener = new TunnelListener(address, options, server)
    await startListening(server, address)
    return listener
  } catch (error) {
    throw asTunnelError(error, 'EINVAL', 'cannot listen for tunnels')
  }
}

async function startListening(server: Server, address: ListenAddress): Promise<void> {
  if ('unix' in address) {
    await removeDeadSocket(address.unix)
    server.listen({ fd: native.listenUnix(address.unix, 0o600, 64) })
  } else server.listen({ host: address.host, port: address.port ?? defaultTunnelPort })
  await once(server, 'listening')
}
