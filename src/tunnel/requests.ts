import type { Channel } from './channel.js'
import { TunnelError } from './error.js'
import type { Params } from './payloads.js'
import type { WindowLimits } from './window.js'

/** The other side wants a channel: answer once, by `accept` or `refuse`. */
export interface ChannelRequest {
  readonly service: string
  readonly params: Params
  /**
   * `windows`: of what comes on this channel, where they are to be others than those of the tunnel. Throws TunnelError
   * ECONNRESET when the other side has given up by now.
   */
  accept(reply?: Params, windows?: Partial<WindowLimits>): Channel
  /** The other side's `open` rejects with this reason. Without effect when it has given up by now. */
  refuse(reason: string): void
}

/** May answer later; what it throws refuses the channel. */
export type OpenHandler = (request: ChannelRequest) => void | Promise<void>

interface Desk {
  accept(
    id: number,
    about: { service: string; params: Params; reply: Params },
    windows?: Partial<WindowLimits>,
  ): Channel
  refuse(id: number, reason: string): void
}

/** Requests of the other side that have no answer yet; those that come before there is a handler wait for it. */
export class ChannelRequests {
  readonly #desk: Desk
  readonly #waiting = new Map<number, { request: ChannelRequest; handled: boolean }>()
  #handler: OpenHandler | undefined

  constructor(desk: Desk, handler: OpenHandler | undefined) {
    this.#desk = desk
    this.#handler = handler
  }

  get handler(): OpenHandler | undefined {
    return this.#handler
  }

  set handler(handler: OpenHandler | undefined) {
    this.#handler = handler
    for (const id of this.#waiting.keys()) this.#offer(id)
  }

  add(id: number, service: string, params: Params): void {
    const request: ChannelRequest = {
      service,
      params,
      accept: (reply = {}, windows) => {
        if (!this.#waiting.delete(id))
          throw new TunnelError('ECONNRESET', `channel '${service}' is not asked for any more`)
        return this.#desk.accept(id, { service, params, reply }, windows)
      },
      refuse: (reason) => {
        if (this.#waiting.delete(id)) this.#desk.refuse(id, reason)
      },
    }
    this.#waiting.set(id, { request, handled: false })
    this.#offer(id)
  }

  /** The other side has given up. */
  forget(id: number): void {
    this.#waiting.delete(id)
  }

  clear(): void {
    this.#waiting.clear()
  }

  #offer(id: number): void {
    const waiting = this.#waiting.get(id)
    const handler = this.#handler
    if (waiting === undefined || waiting.handled || handler === undefined) return
    waiting.handled = true
    const { request } = waiting
    const refuse = (error: unknown): void => request.refuse(error instanceof Error ? error.message : String(error))
    try {
      handler(request)?.catch(refuse)
    } catch (error) {
      refuse(error)
    }
  }
}
