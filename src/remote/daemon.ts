/** The daemon: one hypervisor, opened once, for clients on unix sockets, on TLS, or on this host's loopback. */
import { existsSync } from 'node:fs'
import { isAbsolute } from 'node:path'
import type { Logger } from 'pino'
import type { HypervisorDriver } from '../driver.js'
import { failFrom, messageOf } from '../error.js'
import { TunnelError } from '../tunnel/error.js'
import { unixSocket } from '../tunnel/join.js'
import { listenTunnel, type ListenAddress, type TunnelListener } from '../tunnel/listen.js'
import type { Peer } from '../tunnel/peer.js'
import { loadCredentials } from '../tunnel/pki.js'
import type { Tunnel } from '../tunnel/tunnel.js'
import { packageVersion } from '../util/package.js'
import { Dispatch } from './dispatch.js'
import { wireError } from './errors.js'
import { SharedDriver } from './shared-driver.js'
import { whyNeeded } from './until-idle.js'

const fail = failFrom('VIR_FROM_REMOTE')

/** ms for clients to go by themselves when the daemon ends */
const LAST_WORDS = 1000

export interface DaemonOptions {
  driver: HypervisorDriver
  /** of the hypervisor, for `driver` */
  uri: string
  /** paths of unix sockets, for processes of our own user and of root */
  unix: readonly string[]
  /** 'tls://[ADDRESS][:PORT]', or 'tcp://127.0.0.1[:PORT]' */
  listen: readonly string[]
  /** folder with certificates; undefined: where libvirt keeps them */
  pki: string | undefined
  /** names in certificates that may connect; undefined: all that the authority has signed */
  allowedDns: readonly string[] | undefined
  logger: Logger
}

export class Daemon {
  readonly #shared: SharedDriver
  readonly #dispatch: Dispatch
  readonly #logger: Logger
  readonly #listeners: TunnelListener[] = []
  #used = false
  #closing: Promise<void> | undefined

  private constructor(shared: SharedDriver, { pki, logger }: DaemonOptions) {
    this.#shared = shared
    this.#dispatch = new Dispatch(shared, pki, logger)
    this.#logger = logger
  }

  /** Opens the hypervisor and listens. Rejects with a VirError, with nothing left open then. */
  static async start(options: DaemonOptions): Promise<Daemon> {
    const { driver, uri, logger } = options
    const shared = await SharedDriver.open(driver, new URL(uri), { logger, readOnly: false, tunnels: true })
    const daemon = new Daemon(shared, options)
    try {
      for (const path of options.unix) await daemon.#listen(await freePath(path), options)
      for (const where of options.listen) await daemon.#listen(await listenAddress(where, options.pki), options)
      return daemon
    } catch (error) {
      await daemon.close()
      throw error
    }
  }

  /** What clients may dial. */
  get uris(): string[] {
    return this.#listeners.map(({ uri }) => uri)
  }

  /** Has there been a client? */
  get used(): boolean {
    return this.#used
  }

  /** Why the daemon is of use: a client, a stream, a migration. Undefined: nobody would miss it. */
  async busy(): Promise<string | undefined> {
    // one may come while the domains are looked at
    return this.#clients() ?? (await whyNeeded(this.#shared.operations)) ?? this.#clients()
  }

  #clients(): string | undefined {
    return this.#listeners.some(({ tunnels }) => tunnels.size > 0) ? 'there are clients' : undefined
  }

  /** No new clients; those that are here are told; domains run on. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    const tunnels = this.#listeners.flatMap((listener) => [...listener.tunnels])
    for (const listener of this.#listeners) await listener.close()
    this.#dispatch.close()
    try {
      await this.#shared.close()
    } finally {
      await Promise.all(tunnels.map(farewell))
    }
  }

  async #listen(address: ListenAddress, options: DaemonOptions): Promise<void> {
    try {
      const listener = await listenTunnel(address, {
        authorize: (_hello, peer) => authorize(peer),
        onTunnel: (tunnel) => this.#serve(tunnel),
        onRefused: (error, peer) => this.#logger.warn({ peer, reason: error.message }, 'a client was not let in'),
        ...(options.allowedDns && { allowedDns: options.allowedDns }),
      })
      this.#listeners.push(listener)
    } catch (error) {
      throw wireError(error, 'cannot listen')
    }
  }

  #serve(tunnel: Tunnel): void {
    this.#used = true
    this.#logger.info({ peer: tunnel.peer }, 'a client is here')
    this.#dispatch.serve(tunnel)
    void tunnel.closed.then((error) =>
      this.#logger.info({ peer: tunnel.peer, ...(error && { reason: error.message }) }, 'a client has gone'),
    )
  }
}

/** Lets the last words go out; whoever still holds on to the tunnel then is cut off. */
async function farewell(tunnel: Tunnel): Promise<void> {
  const why = 'the daemon ends'
  const timer = setTimeout(() => tunnel.destroy(new TunnelError('ESHUTDOWN', why)), LAST_WORDS)
  await tunnel.close(why)
  clearTimeout(timer)
}

/** Processes of other users may not use a unix socket, whatever the file's mode; TLS has asked for a certificate. */
function authorize(peer: Peer): { program: string } {
  const uid = peer.kind === 'unix' ? peer.credentials?.uid : undefined
  if (uid !== undefined && uid !== 0 && uid !== process.getuid?.())
    throw new TunnelError('EACCES', `user ${uid} may not use this daemon`)
  return { program: packageVersion }
}

/** A path that nobody listens at; what a daemon left there that was killed is in nobody's way. */
async function freePath(path: string): Promise<{ unix: string }> {
  if (!isAbsolute(path)) throw fail('VIR_ERR_INVALID_ARG', `a unix socket needs an absolute path, not '${path}'`)
  const socket = existsSync(path) ? await unixSocket(path).catch(() => undefined) : undefined
  if (socket === undefined) return { unix: path }
  socket.destroy()
  throw fail('VIR_ERR_OPERATION_INVALID', `another process listens at '${path}'`)
}

/** All addresses of the host, where it has IPv6 those too. */
const anyAddress = (): string => (existsSync('/proc/net/if_inet6') ? '::' : '0.0.0.0')

/** VIR_ERR_INVALID_ARG for what is no address, VIR_ERR_SYSTEM_ERROR for certificates that can't be read. */
async function listenAddress(where: string, pki: string | undefined): Promise<ListenAddress> {
  const [, scheme, bracketed, plain, digits] =
    /^(tls|tcp):\/\/(?:\[([^\]]*)\]|([^:/[\]]*))(?::(\d+))?\/?$/.exec(where) ?? []
  const port = digits === undefined ? undefined : Number(digits)
  if (scheme === undefined || (port !== undefined && port > 65_535))
    throw fail('VIR_ERR_INVALID_ARG', `'${where}' is not an address to listen at, e.g. tls://0.0.0.0:16520`)
  const host = bracketed ?? (plain === undefined || plain === '' ? anyAddress() : plain)
  const at = { host, ...(port !== undefined && { port }) }
  if (scheme === 'tcp') return at
  const tls = await loadCredentials('server', pki).catch((error: unknown) => {
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot listen at '${where}': ${messageOf(error)}`, error)
  })
  return { ...at, tls }
}
