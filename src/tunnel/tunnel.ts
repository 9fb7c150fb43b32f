import type { Duplex } from 'node:stream'
import { Channel } from './channel.js'
import type { ChannelFigures } from './channel-table.js'
import { asTunnelError, TunnelError } from './error.js'
import { Link } from './link.js'
import type { Authorization, ClientOptions, ServerOptions, TunnelOptions } from './options.js'
import type { Hello, Params } from './payloads.js'
import { streamPeer, type Peer } from './peer.js'
import { ChannelRequests, type OpenHandler } from './requests.js'
import { Session, type SessionEvents } from './session.js'

export interface TunnelStats {
  /** payload bytes of all channels so far */
  bytesIn: number
  bytesOut: number
  /** ms; the shortest round trip of late */
  roundTrip: number | undefined
  channels: (ChannelFigures & { id: number; service: string })[]
}

interface Opening {
  service: string
  params: Params
  resolve: (channel: Channel) => void
  reject: (error: TunnelError) => void
  timer: NodeJS.Timeout
}

interface PingWaiter {
  resolve: (ms: number) => void
  reject: (error: TunnelError) => void
}

/** One connection between two hosts, with many channels. Either side opens them. */
export class Tunnel {
  readonly peer: Peer
  /** Resolves when the link is gone: undefined when either side closed it on purpose. Never rejects. */
  readonly closed: Promise<TunnelError | undefined>
  readonly #link: Link
  readonly #session: Session
  readonly #channels = new Map<number, Channel>()
  readonly #openings = new Map<number, Opening>()
  readonly #requests: ChannelRequests
  readonly #pingWaiters: PingWaiter[] = []
  readonly #options: TunnelOptions
  #params: Params = {}
  #over: { error: TunnelError | undefined } | undefined
  #timer: NodeJS.Timeout | undefined
  #resolveClosed!: (error: TunnelError | undefined) => void
  #greeted!: (hello: Hello) => void
  #failGreeting!: (error: TunnelError) => void
  readonly #greeting = new Promise<Hello>((resolve, reject) => {
    this.#greeted = resolve
    this.#failGreeting = reject
  })

  private constructor(stream: Duplex, role: 'client' | 'server', options: TunnelOptions, peer: Peer) {
    this.#options = options
    this.peer = peer
    this.closed = new Promise((resolve) => (this.#resolveClosed = resolve))
    this.#greeting.catch(() => undefined) // who awaits it is told
    this.#session = new Session({ ...options, role, now: () => performance.now() }, this.#events())
    this.#requests = new ChannelRequests(
      {
        accept: (id, about, windows) => {
          this.#session.channels.accept(id, about.reply, windows)
          return this.#newChannel(id, about)
        },
        refuse: (id, reason) => this.#session.channels.refuse(id, reason),
      },
      options.onOpen,
    )
    this.#link = new Link(stream, {
      onBytes: (bytes) => this.#attempt(() => this.#session.receive(bytes)),
      pull: (budget) => this.#session.pull(budget),
      onPumped: () => this.#closeWhenIdle(),
      onLost: (error) => this.#lost(error),
    })
  }

  /** Says hello on a connected stream. Rejects with TunnelError (EACCES: refused), the stream destroyed then. */
  static async client(stream: Duplex, options: ClientOptions = {}, peer: Peer = streamPeer): Promise<Tunnel> {
    const tunnel = new Tunnel(stream, 'client', options, peer)
    await tunnel.#greet(async () => {
      tunnel.#session.hello(options.token ?? '', options.params ?? {})
      const { params } = await tunnel.#greeting
      return params
    })
    return tunnel
  }

  /** Waits for a client's hello and lets it in or not. Rejects with TunnelError, the client told and the stream destroyed then. */
  static async server(stream: Duplex, options: ServerOptions, peer: Peer = streamPeer): Promise<Tunnel> {
    const tunnel = new Tunnel(stream, 'server', options, peer)
    await tunnel.#greet(async () => {
      const { token, params } = await tunnel.#greeting
      const answer = await tunnel.#authorize(options, { token, params })
      if (tunnel.#over === undefined) tunnel.#session.welcome(answer ?? {})
      return params
    })
    return tunnel
  }

  /** What the other side said of itself in its hello. */
  get params(): Params {
    return this.#params
  }

  get isClosed(): boolean {
    return this.#over !== undefined
  }

  /** Takes requests for channels; those that come before it is set wait. */
  get onOpen(): OpenHandler | undefined {
    return this.#requests.handler
  }

  set onOpen(handler: OpenHandler | undefined) {
    this.#requests.handler = handler
  }

  get stats(): TunnelStats {
    const { in: bytesIn, out: bytesOut } = this.#session.channels.bytes
    const channels = [...this.#channels].flatMap(([id, { service }]) => {
      const figures = this.#session.channels.figures(id)
      return figures === undefined ? [] : [{ id, service, ...figures }]
    })
    return { bytesIn, bytesOut, roundTrip: this.#session.roundTrip, channels }
  }

  /**
   * Asks the other side for a channel. Rejects with TunnelError: ECONNREFUSED with the other side's reason, ETIMEDOUT after
   * `timeout` ms (default 10 000), ESHUTDOWN, or what ended the tunnel.
   */
  open(service: string, params: Params = {}, options: { timeout?: number } = {}): Promise<Channel> {
    const { timeout = 10_000 } = options
    return new Promise((resolve, reject) => {
      if (this.#over !== undefined) throw this.#gone()
      const id = this.#session.open(service, params)
      const timer = setTimeout(() => this.#expire(id, timeout), timeout)
      this.#openings.set(id, { service, params, resolve, reject, timer })
    })
  }

  /** ms of one round trip. Rejects with what ended the tunnel. */
  ping(): Promise<number> {
    if (this.#over !== undefined) return Promise.reject(this.#gone())
    return new Promise((resolve, reject) => {
      this.#pingWaiters.push({ resolve, reject })
      this.#session.ping()
    })
  }

  /** No new channels, by either side; resolves when those that are open have ended and the link is closed. */
  async close(reason = 'the tunnel is closing'): Promise<void> {
    this.#session.goaway(reason)
    this.#link.ready()
    await this.closed
  }

  /** Ends the link at once; every channel gets the error, and the other side its message. */
  destroy(error = new TunnelError('ESHUTDOWN', 'the tunnel was closed')): void {
    this.#end(error, true)
  }

  #events(): SessionEvents {
    return {
      onHello: (hello) => this.#greeted(hello),
      onOpen: (id, service, params) => this.#requests.add(id, service, params),
      onAccepted: (id, reply) => {
        const opening = this.#takeOpening(id)
        if (opening !== undefined) opening.resolve(this.#newChannel(id, { ...opening, reply }))
      },
      onRefused: (id, reason) => {
        this.#takeOpening(id)?.reject(new TunnelError('ECONNREFUSED', reason))
        this.#link.ready()
      },
      onData: (id, bytes) => this.#channels.get(id)?.arrive(bytes),
      onEnd: (id) => this.#channels.get(id)?.arriveEnd(),
      onReset: (id, reason) => this.#wasReset(id, new TunnelError('ECONNRESET', reason)),
      onPong: (ms) => this.#pingWaiters.splice(0).forEach(({ resolve }) => resolve(ms)),
      onGoaway: () => this.#link.ready(),
      onReady: () => this.#link.ready(),
    }
  }

  /** The hello, within its deadline; then the tunnel is open. */
  async #greet(hello: () => Promise<Params>): Promise<void> {
    const { helloTimeout = 5000, pingInterval = 1000 } = this.#options
    const late = new TunnelError('ETIMEDOUT', `there was no hello within ${helloTimeout} ms`)
    const timer = setTimeout(() => this.#end(late, true), helloTimeout)
    try {
      this.#params = await hello()
    } catch (error) {
      this.#end(asTunnelError(error, 'ECONNRESET', 'the hello failed'), true)
    } finally {
      clearTimeout(timer)
    }
    if (this.#over !== undefined) throw this.#gone()
    this.#timer = setInterval(() => this.#attempt(() => this.#session.tick()), pingInterval)
    this.#timer.unref()
    this.#session.ping()
  }

  async #authorize(options: ServerOptions, hello: Authorization): Promise<Params | undefined> {
    try {
      return await options.authorize(hello, this.peer)
    } catch (error) {
      throw new TunnelError('EACCES', error instanceof Error ? error.message : String(error), error)
    }
  }

  /** The session's objections end the tunnel, and the other side learns of them. */
  #attempt(action: () => void): void {
    try {
      action()
    } catch (thrown) {
      const error = asTunnelError(thrown, 'EPROTO', 'the tunnel failed')
      this.#end(error, error.code === 'EPROTO')
    }
  }

  #newChannel(id: number, about: ConstructorParameters<typeof Channel>[2]): Channel {
    const channel = new Channel(this.#session.channels, id, about)
    this.#channels.set(id, channel)
    channel.once('close', () => {
      this.#channels.delete(id)
      this.#link.ready()
    })
    return channel
  }

  #takeOpening(id: number): Opening | undefined {
    const opening = this.#openings.get(id)
    this.#openings.delete(id)
    clearTimeout(opening?.timer)
    return opening
  }

  #expire(id: number, timeout: number): void {
    const opening = this.#takeOpening(id)
    this.#session.channels.reset(id, 'nobody waits for it any more')
    opening?.reject(new TunnelError('ETIMEDOUT', `no answer to channel '${opening.service}' within ${timeout} ms`))
  }

  #wasReset(id: number, error: TunnelError): void {
    this.#requests.forget(id)
    this.#takeOpening(id)?.reject(error)
    this.#channels.get(id)?.destroy(error)
    this.#link.ready()
  }

  /** Both sides have ended all channels; requests without an answer count, as the other side still waits for them. */
  get #isIdle(): boolean {
    return this.#session.isEnding && this.#session.channels.size === 0
  }

  #closeWhenIdle(): void {
    if (this.#isIdle) this.#end(undefined)
  }

  #lost(error: Error | undefined): void {
    if (error !== undefined) this.#end(asTunnelError(error, 'ECONNRESET', 'the link broke'))
    else if (this.#isIdle) this.#end(undefined)
    else this.#end(new TunnelError('ECONNRESET', 'the other side closed the link'))
  }

  #gone(): TunnelError {
    return this.#over?.error ?? new TunnelError('ESHUTDOWN', 'the tunnel is closed')
  }

  /** Once; `tell`: the other side gets the reason as the last word. */
  #end(error: TunnelError | undefined, tell = false): void {
    if (this.#over !== undefined) return
    this.#over = { error }
    clearInterval(this.#timer)
    if (this.#link.isDestroyed || (error !== undefined && !tell)) this.#link.destroy()
    else this.#link.finish(error && this.#session.fail(error.message))
    const gone = this.#gone()
    this.#failGreeting(gone)
    for (const { reject } of this.#pingWaiters.splice(0)) reject(gone)
    for (const id of [...this.#openings.keys()]) this.#takeOpening(id)?.reject(gone)
    this.#requests.clear()
    // after an orderly end what is left are channels of which we have all, but not yet read
    if (error !== undefined) for (const channel of [...this.#channels.values()]) channel.destroy(gone)
    this.#resolveClosed(error)
  }
}
