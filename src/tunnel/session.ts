/**
 * One end of a tunnel as a state machine without sockets: bytes in by `receive`, bytes out by `pull`, time by `tick`.
 * docs/tunnel.md has the rules. Client and server are equals after the hello; channels of the client have odd numbers.
 */
import { ChannelTable, type ChannelEvents } from './channel-table.js'
import { protocolError, TunnelError } from './error.js'
import { frame, FrameReader, frameTypes, reasonPayload, type Frame } from './framing.js'
import {
  commonVersion,
  helloPayload,
  OLDEST_VERSION,
  parseHello,
  VERSION,
  type Hello,
  type Params,
} from './payloads.js'
import { Pings } from './pings.js'
import { SendQueue } from './send-queue.js'
import { defaultWindows, type WindowLimits } from './window.js'

/** What a session tells whoever owns it. None of these may throw. */
export interface SessionEvents extends ChannelEvents {
  /** server: answer with `welcome` or `fail`; client: the server's answer, channels may be opened now */
  onHello(hello: Hello): void
  /** a PING was answered */
  onPong(ms: number): void
  /** the other side opens no more channels, and wants none opened */
  onGoaway(reason: string): void
}

export interface SessionLimits {
  /** channels at a time, opened by either side; default 256 */
  maxChannels?: number | undefined
  /** ms between PINGs; default 1000 */
  pingInterval?: number | undefined
  /** ms without any byte from the other side after which the link counts as dead; default 5000 */
  timeout?: number | undefined
  windows?: Partial<WindowLimits> | undefined
}

export interface SessionOptions extends SessionLimits {
  role: 'client' | 'server'
  /** ms, never going back */
  now: () => number
}

/** A peer that makes us answer and never reads must not fill our memory. */
const MAX_ANSWERS = 1024 * 1024

export class Session {
  /** what is there after the hello */
  readonly channels: ChannelTable
  readonly #role: SessionOptions['role']
  readonly #events: SessionEvents
  readonly #reader = new FrameReader()
  readonly #queue = new SendQueue()
  readonly #pings: Pings
  #phase: 'hello' | 'welcome' | 'open' | 'failed' = 'hello'
  #goneAway = false
  #sayingGoodbye = false

  constructor(options: SessionOptions, events: SessionEvents) {
    const { role, now, maxChannels = 256, pingInterval = 1000, timeout = 5000 } = options
    const windows = { ...defaultWindows, ...options.windows }
    this.#role = role
    this.#events = events
    this.#pings = new Pings(now, pingInterval, timeout)
    this.channels = new ChannelTable({ role, now, maxChannels, windows }, this.#queue, this.#pings.trips, events)
  }

  /** Channels may be opened. */
  get isOpen(): boolean {
    return this.#phase === 'open' && !this.isEnding
  }

  /** Either side has said that it is about to close. */
  get isEnding(): boolean {
    return this.#goneAway || this.#sayingGoodbye
  }

  /** ms; the shortest round trip of late */
  get roundTrip(): number | undefined {
    return this.#pings.trips.recent
  }

  /** The client's first word. Throws TunnelError EINVAL when token or params are too long. */
  hello(token: string, params: Params): void {
    this.#say(frame(frameTypes.hello, 0, helloPayload({ version: VERSION, oldest: OLDEST_VERSION, token, params })))
  }

  /** The server lets the client in. */
  welcome(params: Params): void {
    if (this.#phase !== 'welcome') throw new TunnelError('EINVAL', 'nobody waits to be let in')
    this.hello('', params)
    this.#phase = 'open'
  }

  /** The last word: the frame that tells the other side why. Nothing is pulled and nothing is taken any more. */
  fail(reason: string): Buffer {
    this.#phase = 'failed'
    return frame(frameTypes.refuse, 0, reasonPayload(reason))
  }

  /** Bytes from the other side. Throws TunnelError: EPROTO, or EACCES/ECONNRESET when it is the other one that gives up. */
  receive(bytes: Buffer): void {
    this.#pings.heard()
    this.#reader.push(bytes, (received) => this.#take(received))
    if (this.#queue.shortBytes > MAX_ANSWERS)
      throw protocolError('the other side does not read what it makes this one say')
  }

  /** About `budget` bytes that are to be sent now, in order. Empty: nothing to send, or no channel may. */
  pull(budget: number): Buffer[] {
    return this.#phase === 'failed' ? [] : this.#queue.pull(budget)
  }

  /** To be called every `pingInterval` ms: keeps the link alive. Throws TunnelError ETIMEDOUT when it is dead. */
  tick(): void {
    if (this.#phase !== 'open') return
    this.#pings.tick()
    this.ping()
  }

  /** Measures a round trip, unless enough of that is under way. */
  ping(): void {
    const payload = this.#pings.next()
    if (payload !== undefined) this.#say(frame(frameTypes.ping, 0, payload))
  }

  /** Asks for a channel; answers its number. Throws TunnelError: ESHUTDOWN, EINVAL (name or params too long), ECONNREFUSED (too many). */
  open(service: string, params: Params): number {
    if (!this.isOpen) throw new TunnelError('ESHUTDOWN', 'the tunnel opens no more channels')
    return this.channels.open(service, params)
  }

  /** No channels are opened from now on, by either side; those that are open go on. */
  goaway(reason: string): void {
    if (this.#sayingGoodbye || this.#phase !== 'open') return
    this.#sayingGoodbye = true
    this.#say(frame(frameTypes.goaway, 0, reasonPayload(reason)))
  }

  #say(bytes: Buffer): void {
    this.#queue.pushShort(bytes)
    this.#events.onReady()
  }

  #take(received: Frame): void {
    if (this.#phase === 'open') this.#takeOpen(received)
    else if (this.#phase !== 'failed') this.#takeHello(received)
  }

  #takeHello({ type, channel, payload }: Frame): void {
    if (this.#role === 'client' && type === frameTypes.refuse && channel === 0)
      throw new TunnelError('EACCES', payload.toString('utf8'))
    if (type !== frameTypes.hello || this.#phase !== 'hello') throw protocolError('there was no hello')
    const hello = parseHello(payload)
    const { version, oldest } = hello
    if (commonVersion(version, oldest) === undefined)
      throw protocolError(
        `versions ${oldest} to ${version} of the protocol meet versions ${OLDEST_VERSION} to ${VERSION}: there is none that both speak`,
      )
    this.#phase = this.#role === 'client' ? 'open' : 'welcome'
    this.#events.onHello(hello)
  }

  #takeOpen(received: Frame): void {
    const { type, channel, payload } = received
    switch (type) {
      case frameTypes.hello:
        throw protocolError('a second hello')
      case frameTypes.ping:
        this.#say(frame(frameTypes.pong, 0, payload))
        break
      case frameTypes.pong:
        this.#events.onPong(this.#pings.answered(payload))
        break
      case frameTypes.goaway:
        this.#goneAway = true
        this.#events.onGoaway(payload.toString('utf8'))
        break
      case frameTypes.open:
        this.channels.takeOpening(channel, payload, this.#sayingGoodbye ? 'the tunnel is closing' : undefined)
        break
      default:
        if (channel === 0) throw new TunnelError('ECONNRESET', `the other side gave up: ${payload.toString('utf8')}`)
        this.channels.take(received)
        if (type === frameTypes.data && this.#pings.isDue(payload.length)) this.ping()
    }
  }
}
