import { once } from 'node:events'
import { rm } from 'node:fs/promises'
import { createServer, type Server, type Socket } from 'node:net'
import { native } from '../native.js'
import { asTunnelError, TunnelError } from './error.js'
import { joinDuplex, removeDeadSocket } from './join.js'
import type { Params } from './payloads.js'
import type { Tunnel } from './tunnel.js'

export interface UnixRelayOptions {
  /** of the socket; its folder must be nobody else's */
  path: string
  /** that channels are opened for */
  service: string
  params?: Params
  /** makes the listening socket; default: mode 0600, no labels */
  listen?: (path: string, backlog: number) => number
  /** connections that wait for a channel at most; when there are more the oldest is closed. Default 64 */
  heldAtMost?: number
  /** told of what broke a connection */
  onBroken?: (error: TunnelError) => void
}

/** A socket for nobody else. */
export function listenPrivately(path: string, backlog: number): number {
  return native.listenUnix(path, 0o600, backlog)
}

/** ms until a channel that was refused is asked for again */
const FIRST_RETRY = 100
const LAST_RETRY = 1000

/**
 * A unix path whose connections become channels of a tunnel. The path stays while tunnels come and go: without one, new
 * connections are accepted and wait. A program that connects again for ever (QEMU's NBD client, whose pauses grow to 16 s) is
 * served in the moment in which the link is back.
 */
export class UnixRelay {
  readonly path: string
  readonly #options: UnixRelayOptions
  readonly #server: Server
  readonly #held = new Set<Socket>()
  readonly #joined = new Set<Socket>()
  readonly #wakers = new Set<() => void>()
  #tunnel: Tunnel | undefined

  private constructor(options: UnixRelayOptions, server: Server) {
    this.path = options.path
    this.#options = options
    this.#server = server
    server.on('connection', (socket) => void this.#serve(socket))
    server.on('error', (error) => options.onBroken?.(asTunnelError(error, 'ECONNRESET', 'no connection can be taken')))
  }

  /** Rejects with TunnelError EINVAL when the path can't be listened on. A socket there that nobody listens on is replaced. */
  static async listen(options: UnixRelayOptions): Promise<UnixRelay> {
    const { path, listen = listenPrivately } = options
    const server = createServer({ allowHalfOpen: true })
    const relay = new UnixRelay(options, server)
    try {
      await removeDeadSocket(path)
      server.listen({ fd: listen(path, 64) })
      await once(server, 'listening')
      return relay
    } catch (error) {
      throw asTunnelError(error, 'EINVAL', `cannot listen on '${path}'`)
    }
  }

  /** Connections that are joined to a channel. */
  get connections(): number {
    return this.#joined.size
  }

  /** Connections that wait for a channel. */
  get held(): number {
    return this.#held.size
  }

  get tunnel(): Tunnel | undefined {
    return this.#tunnel
  }

  /** New and waiting connections go through this one from now on; those that go through another one stay there until it ends. */
  setTunnel(tunnel: Tunnel | undefined): void {
    this.#tunnel = tunnel
    this.retry()
    void tunnel?.closed.then(() => {
      if (this.#tunnel === tunnel) this.#tunnel = undefined
    })
  }

  /** Asks again at once for the channels that were refused: the other side has them by now. */
  retry(): void {
    for (const wake of [...this.#wakers]) wake()
  }

  /** Ends every connection and takes the path away. */
  async close(): Promise<void> {
    if (!this.#server.listening) return
    const closed = once(this.#server, 'close')
    this.#server.close()
    for (const socket of [...this.#held, ...this.#joined]) socket.destroy()
    await closed
    await rm(this.path, { force: true })
  }

  async #serve(socket: Socket): Promise<void> {
    const { heldAtMost = 64 } = this.#options
    socket.on('error', () => undefined)
    // one that waits and hangs up; one that is joined passes its end on
    socket.once('end', () => {
      if (this.#held.has(socket)) socket.destroy()
    })
    const [oldest] = this.#held
    if (this.#held.size >= heldAtMost) oldest?.destroy()
    this.#held.add(socket)
    socket.once('close', () => this.#held.delete(socket))
    try {
      const channel = await this.#openFor(socket)
      this.#held.delete(socket)
      if (channel === undefined) return
      this.#joined.add(socket)
      await joinDuplex(socket, channel)
    } catch (error) {
      socket.destroy()
      this.#options.onBroken?.(asTunnelError(error, 'ECONNRESET', 'a connection broke'))
    } finally {
      this.#held.delete(socket)
      this.#joined.delete(socket)
    }
  }

  /** A channel for the connection, as long as that takes; undefined when the connection is gone. */
  async #openFor(socket: Socket): Promise<Awaited<ReturnType<Tunnel['open']>> | undefined> {
    const { service, params } = this.#options
    for (let pause = FIRST_RETRY; !socket.destroyed; pause = Math.min(pause * 2, LAST_RETRY)) {
      const tunnel = this.#tunnel
      if (tunnel === undefined) {
        await this.#woken(socket)
        continue
      }
      try {
        const channel = await tunnel.open(service, params)
        if (this.#held.has(socket)) return channel
        channel.destroy()
        return undefined
      } catch (error) {
        if (!(error instanceof TunnelError) || error.code === 'EINVAL') throw error
        await this.#woken(socket, pause)
      }
    }
    return undefined
  }

  /** Until there is another tunnel, the connection is gone, or `pause` ms are over. */
  #woken(socket: Socket, pause?: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = pause === undefined ? undefined : setTimeout(() => wake(), pause)
      const wake = (): void => {
        clearTimeout(timer)
        this.#wakers.delete(wake)
        socket.off('close', wake)
        resolve()
      }
      this.#wakers.add(wake)
      socket.once('close', wake)
    })
  }
}
