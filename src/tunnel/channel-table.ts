/** The channels of one end of a tunnel: who may open, send, end and close what. No sockets; docs/tunnel.md has the rules. */
import { protocolError, TunnelError } from './error.js'
import { frame, frameTypes, reasonPayload, type Frame } from './framing.js'
import { acceptPayload, MAX_WINDOW, openPayload, parseAccept, parseOpen, type Params } from './payloads.js'
import { Outgoing, type SendQueue } from './send-queue.js'
import { ReceiveWindow, type RoundTrips, type WindowLimits } from './window.js'

/** What happens to channels. None of these may throw. */
export interface ChannelEvents {
  /** answer with `accept` or `refuse` */
  onOpen(channel: number, service: string, params: Params): void
  onAccepted(channel: number, params: Params): void
  onRefused(channel: number, reason: string): void
  /** at most as many bytes as the window lets in; tell `taken` when the consumer has them */
  onData(channel: number, bytes: Buffer): void
  /** half close: no more bytes come */
  onEnd(channel: number): void
  onReset(channel: number, reason: string): void
  /** there is something to pull */
  onReady(): void
}

export interface ChannelFigures {
  bytesIn: number
  bytesOut: number
  /** bytes that the other side may have under way */
  window: number
}

interface ChannelState {
  phase: 'opening' | 'offered' | 'open'
  window: ReceiveWindow
  readonly out: Outgoing
  /** the other side sent FIN */
  ended: boolean
  received: number
}

interface TableOptions {
  role: 'client' | 'server'
  now: () => number
  maxChannels: number
  windows: WindowLimits
}

const LAST_CHANNEL = 0xfffffffe

export class ChannelTable {
  readonly #options: TableOptions
  readonly #queue: SendQueue
  readonly #trips: RoundTrips
  readonly #events: ChannelEvents
  readonly #channels = new Map<number, ChannelState>()
  #nextOwn: number
  #lastRemote = 0
  #closedIn = 0
  #closedOut = 0

  constructor(options: TableOptions, queue: SendQueue, trips: RoundTrips, events: ChannelEvents) {
    this.#options = options
    this.#queue = queue
    this.#trips = trips
    this.#events = events
    this.#nextOwn = options.role === 'client' ? 1 : 2
  }

  get size(): number {
    return this.#channels.size
  }

  /** Payload bytes of all channels, also of those that are closed. */
  get bytes(): { in: number; out: number } {
    const states = [...this.#channels.values()]
    return {
      in: states.reduce((sum, { received }) => sum + received, this.#closedIn),
      out: states.reduce((sum, { out }) => sum + out.sent, this.#closedOut),
    }
  }

  figures(channel: number): ChannelFigures | undefined {
    const state = this.#channels.get(channel)
    return state && { bytesIn: state.received, bytesOut: state.out.sent, window: state.window.size }
  }

  /** Asks for a channel; answers its number. Throws TunnelError: EINVAL (name or params too long), ECONNREFUSED (too many). */
  open(service: string, params: Params): number {
    const { maxChannels } = this.#options
    if (this.size >= maxChannels) throw new TunnelError('ECONNREFUSED', `there are ${maxChannels} channels already`)
    const channel = this.#nextOwn
    if (channel > LAST_CHANNEL) throw new TunnelError('ECONNREFUSED', 'the tunnel has used up its channel numbers')
    const state = this.#newChannel(channel, 'opening', 0)
    const bytes = frame(frameTypes.open, channel, openPayload({ window: state.window.size, service, params }))
    this.#nextOwn += 2
    this.#channels.set(channel, state)
    this.#say(bytes)
    return channel
  }

  /** `windows`: of this channel; default: as of all. */
  accept(channel: number, params: Params, windows?: Partial<WindowLimits>): void {
    const state = this.#state(channel, 'offered')
    if (windows !== undefined) state.window = this.#newWindow(windows)
    const bytes = frame(frameTypes.accept, channel, acceptPayload({ window: state.window.size, params }))
    state.phase = 'open'
    this.#say(bytes)
  }

  refuse(channel: number, reason: string): void {
    this.#drop(channel, this.#state(channel, 'offered'))
    this.#say(frame(frameTypes.refuse, channel, reasonPayload(reason)))
  }

  /** Bytes to send; `done` when they have been pulled. One call at a time for a channel. */
  send(channel: number, parts: readonly Buffer[], done: () => void): void {
    const { out } = this.#state(channel, 'open')
    out.push(parts)
    if (out.length === 0) done()
    else this.#whenEmpty(out, done)
  }

  /** Half close, after all that was sent. */
  finish(channel: number, done: () => void): void {
    const { out } = this.#state(channel, 'open')
    out.finishing = true
    this.#whenEmpty(out, () => {
      done()
      this.#closeWhenOver(channel)
    })
  }

  /** Ends a channel at once, both ways; what waits is dropped. Without effect on one that is closed. */
  reset(channel: number, reason: string): void {
    const state = this.#channels.get(channel)
    if (state === undefined) return
    this.#drop(channel, state)
    this.#say(frame(frameTypes.reset, channel, reasonPayload(reason)))
  }

  /** The consumer took so many bytes of those that onData brought. */
  taken(channel: number, bytes: number): void {
    const state = this.#channels.get(channel)
    if (state === undefined || state.ended) return
    const credit = state.window.taken(bytes, this.#options.now(), this.#trips)
    if (credit === 0) return
    this.#queue.pushCredit(channel, credit)
    this.#events.onReady()
  }

  /** OPEN of the other side; `refusal`: why there are to be no more. */
  takeOpening(channel: number, payload: Buffer, refusal: string | undefined): void {
    const parity = this.#options.role === 'server' ? 1 : 0
    if (channel % 2 !== parity || channel <= this.#lastRemote || channel > LAST_CHANNEL)
      throw protocolError(`channel ${channel} is not to be opened`)
    this.#lastRemote = channel
    const { window, service, params } = parseOpen(payload)
    const { maxChannels } = this.#options
    const reason = refusal ?? (this.size >= maxChannels ? `there are ${maxChannels} channels already` : undefined)
    if (reason !== undefined) {
      this.#say(frame(frameTypes.refuse, channel, reasonPayload(reason)))
      return
    }
    this.#channels.set(channel, this.#newChannel(channel, 'offered', window))
    this.#events.onOpen(channel, service, params)
  }

  /** Any other frame of a channel. */
  take({ type, channel, payload }: Frame): void {
    const state = this.#channels.get(channel)
    if (state === undefined) {
      const known = channel % 2 === this.#nextOwn % 2 ? channel < this.#nextOwn : channel <= this.#lastRemote
      // closed here, which the other side did not know yet
      if (known) return
      throw protocolError(`channel ${channel} was never opened`)
    }
    if (type === frameTypes.reset) {
      this.#drop(channel, state)
      this.#events.onReset(channel, payload.toString('utf8'))
    } else if (state.phase === 'opening') this.#takeAnswer(type, channel, state, payload)
    else if (state.phase === 'open') this.#takeTransfer(type, channel, state, payload)
    else throw protocolError(`channel ${channel} is used before it was accepted`)
  }

  #takeAnswer(type: Frame['type'], channel: number, state: ChannelState, payload: Buffer): void {
    if (type === frameTypes.accept) {
      const { window, params } = parseAccept(payload)
      state.phase = 'open'
      state.out.credit = window
      this.#events.onAccepted(channel, params)
    } else if (type === frameTypes.refuse) {
      this.#drop(channel, state)
      this.#events.onRefused(channel, payload.toString('utf8'))
    } else throw protocolError(`channel ${channel} is used before it was accepted`)
  }

  #takeTransfer(type: Frame['type'], channel: number, state: ChannelState, payload: Buffer): void {
    if (type === frameTypes.credit) {
      state.out.credit += payload.readUInt32BE()
      if (state.out.credit > MAX_WINDOW) throw protocolError(`channel ${channel} gets too much credit`)
      this.#queue.activate(state.out, true)
      this.#events.onReady()
    } else if (state.ended) throw protocolError(`channel ${channel} goes on after its end`)
    else if (type === frameTypes.data) {
      if (!state.window.received(payload.length)) throw protocolError(`channel ${channel} sends more than it may`)
      state.received += payload.length
      this.#events.onData(channel, payload)
    } else if (type === frameTypes.fin) {
      state.ended = true
      this.#events.onEnd(channel)
      this.#closeWhenOver(channel)
    } else throw protocolError(`channel ${channel} was answered already`)
  }

  #say(bytes: Buffer): void {
    this.#queue.pushShort(bytes)
    this.#events.onReady()
  }

  #whenEmpty(out: Outgoing, done: () => void): void {
    out.onEmpty = done
    this.#queue.activate(out, false)
    this.#events.onReady()
  }

  #newChannel(channel: number, phase: ChannelState['phase'], credit: number): ChannelState {
    return {
      phase,
      window: this.#newWindow(),
      out: new Outgoing(channel, credit),
      ended: false,
      received: 0,
    }
  }

  #newWindow(limits: Partial<WindowLimits> = {}): ReceiveWindow {
    const { windows, now } = this.#options
    return new ReceiveWindow({ ...windows, ...limits }, now())
  }

  #state(channel: number, phase: ChannelState['phase']): ChannelState {
    const state = this.#channels.get(channel)
    if (state?.phase !== phase) throw new TunnelError('ECONNRESET', `channel ${channel} is not ${phase}`)
    return state
  }

  #drop(channel: number, state: ChannelState): void {
    this.#channels.delete(channel)
    this.#queue.remove(state.out)
    state.out.onEmpty = undefined
    this.#closedIn += state.received
    this.#closedOut += state.out.sent
  }

  #closeWhenOver(channel: number): void {
    const state = this.#channels.get(channel)
    if (state?.ended === true && state.out.finished) this.#drop(channel, state)
  }
}
