/** The source's end of a migration's connection: a tunnel to the destination, made anew as often as it breaks. */
import { setTimeout as delay } from 'node:timers/promises'
import { failFrom, messageOf } from '../error.js'
import { dial } from '../tunnel/dial.js'
import type { Channel } from '../tunnel/channel.js'
import { TunnelError, type TunnelErrorCode } from '../tunnel/error.js'
import { Messages } from '../tunnel/messages.js'
import type { Params } from '../tunnel/payloads.js'
import type { OpenHandler } from '../tunnel/requests.js'
import type { Tunnel } from '../tunnel/tunnel.js'
import { type MemoryWay, openMemory } from './memory-way.js'
import type { Transports } from './transports.js'

const fail = failFrom('VIR_FROM_QEMU')

/** services of the channels: messages of the two drivers, the guest's memory, the blocks of its disks */
export const SERVICE = { messages: 'migration', memory: 'migration-memory', disks: 'migration-disks' } as const

/** ms between two tries to reach the destination, at first and at most */
const RETRY = { first: 100, most: 2_000 }

export interface LinkOptions {
  id: string
  key: string
  /** of the destination */
  uri: string
  /** one that is there already, used as long as it lasts */
  tunnel?: Tunnel
  /** channels that the destination opens */
  onOpen: OpenHandler
  onRequest: (method: string, params: unknown) => unknown
  /** it is there again, but knows of no such migration */
  onUnknown?: () => void
  /** it is there again, after it was lost */
  onRestored: () => void
  warn: (text: string) => void
}

/** What whoever is asked for a migration says that it does not know. */
export const UNKNOWN_HERE = 'there is no such migration here'

/** The destination answered that it knows of no such migration. */
export class UnknownThereError extends Error {
  override readonly name = 'UnknownThereError'
}

/** Whoever refuses for another reason, since it is about to end or has too much to do, may have the guest. */
function saysUnknown(error: unknown, code: TunnelErrorCode): error is TunnelError {
  return error instanceof TunnelError && error.code === code && error.message.includes(UNKNOWN_HERE)
}

/** Who takes the channels of a migration, by its id: several go over one tunnel that was lent to them. */
const lent = new WeakMap<Tunnel, Map<string, OpenHandler>>()

function takersOn(tunnel: Tunnel): Map<string, OpenHandler> {
  const known = lent.get(tunnel)
  if (known !== undefined) return known
  const takers = new Map<string, OpenHandler>()
  lent.set(tunnel, takers)
  tunnel.onOpen = async (request) => {
    const { id } = request.params
    const take = typeof id === 'string' ? takers.get(id) : undefined
    if (take === undefined) request.refuse(UNKNOWN_HERE)
    else await take(request)
  }
  return takers
}

export class MigrationLink {
  readonly #options: LinkOptions
  #tunnel: Tunnel | undefined
  #messages: Messages | undefined
  readonly #end = new AbortController()
  #connecting: Promise<void> | undefined
  #lasting = false
  /** why it is down; undefined while it is up */
  problem: string | undefined = 'not connected yet'

  constructor(options: LinkOptions) {
    this.#options = options
  }

  get #closed(): boolean {
    return this.#end.signal.aborted
  }

  get isUp(): boolean {
    return this.problem === undefined
  }

  get tunnel(): Tunnel | undefined {
    return this.#tunnel
  }

  /** Tries to reach the destination, unless that is being done. UnknownThereError, or why it could not be reached. */
  connect(): Promise<void> {
    return (this.#connecting ??= this.#connect().finally(() => (this.#connecting = undefined)))
  }

  async #connect(): Promise<void> {
    const { id, key, onOpen, onRequest } = this.#options
    const tunnel = await this.#reach()
    try {
      if (tunnel === this.#options.tunnel) takersOn(tunnel).set(id, onOpen)
      const messages = new Messages(await tunnel.open(SERVICE.messages, { id, key }), { onRequest })
      // who closed it meanwhile had nothing yet to close: see below
      if (this.#closed) {
        messages.close()
        this.#end.signal.throwIfAborted()
      }
      this.#tunnel = tunnel
      this.#messages = messages
      this.problem = undefined
      void messages.closed.then((error) => this.#lost(tunnel, error))
    } catch (error) {
      if (tunnel !== this.#options.tunnel) tunnel.destroy()
      if (this.#closed) this.close()
      throw saysUnknown(error, 'ECONNREFUSED') ? new UnknownThereError(error.message) : error
    }
  }

  async #reach(): Promise<Tunnel> {
    const { tunnel, uri, id, key, onOpen } = this.#options
    if (tunnel?.isClosed === false) return tunnel
    try {
      return await dial(uri, { token: key, params: { migration: id }, onOpen, signal: this.#end.signal })
    } catch (error) {
      // a listener that is there for migrations alone says it before any channel
      throw saysUnknown(error, 'EACCES') ? new UnknownThereError(error.message) : error
    }
  }

  /** From now on it is made anew whenever it breaks. */
  last(): void {
    if (this.#lasting) return
    this.#lasting = true
    if (!this.isUp) void this.#restore()
  }

  #lost(tunnel: Tunnel, error: Error | undefined): void {
    if (this.#tunnel !== tunnel || this.#closed) return
    this.problem = error?.message ?? 'the other side closed it'
    this.#messages = undefined
    // what QEMU is still told over it would come to nobody
    if (tunnel !== this.#options.tunnel) tunnel.destroy()
    if (this.#lasting) void this.#restore()
  }

  async #restore(): Promise<void> {
    for (let pause = RETRY.first; !this.#closed; pause = Math.min(2 * pause, RETRY.most)) {
      try {
        // somebody who needed it may have been quicker
        if (!this.isUp) await this.connect()
        this.#options.onRestored()
        return
      } catch (error) {
        if (this.#end.signal.aborted) return
        if (error instanceof UnknownThereError) this.#options.onUnknown?.()
        if (this.problem !== messageOf(error))
          this.#options.warn(`the destination cannot be reached: ${messageOf(error)}`)
        this.problem = messageOf(error)
        await delay(pause, undefined, { ref: false })
      }
    }
  }

  /** A question to the destination's driver. VIR_ERR_OPERATION_FAILED while it cannot be reached. */
  async request(method: string, params: object = {}, timeout = 30_000): Promise<unknown> {
    if (this.#messages === undefined)
      throw fail('VIR_ERR_OPERATION_FAILED', `the destination cannot be reached: ${this.problem ?? 'not connected'}`)
    return this.#messages.request(method, params, { timeout })
  }

  async open(service: string, params: Params = {}): Promise<Channel> {
    const { id, key } = this.#options
    if (this.#tunnel === undefined || !this.isUp)
      throw fail('VIR_ERR_OPERATION_FAILED', `the destination cannot be reached: ${this.problem ?? 'not connected'}`)
    return this.#tunnel.open(service, { ...params, id, key })
  }

  /** The channel that the guest's memory is to go over; see `openMemory`. */
  openMemory(transports: Transports, wanted: string | undefined): Promise<MemoryWay> {
    return openMemory(transports, wanted, (says) => this.open(SERVICE.memory, says))
  }

  /** At once, whatever is under way: our process lets go of the root. */
  destroy(): void {
    this.close()
    if (this.#tunnel !== this.#options.tunnel) this.#tunnel?.destroy()
  }

  close(): void {
    this.#end.abort(fail('VIR_ERR_OPERATION_FAILED', 'the link to the destination was closed'))
    this.problem = 'it was closed'
    this.#messages?.close()
    const { tunnel, id } = this.#options
    if (tunnel !== undefined) lent.get(tunnel)?.delete(id)
    if (this.#tunnel !== this.#options.tunnel) void this.#tunnel?.close()
  }
}
