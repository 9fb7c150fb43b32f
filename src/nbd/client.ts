import type { Duplex } from 'node:stream'
import {
  abort,
  askForInfo,
  askForList,
  type NbdExportInfo,
  type NbdListed,
  negotiate,
  type Negotiated,
} from './client-handshake.js'
import { commandFlags, commands } from './constants.js'
import { NbdError, protocolError } from './error.js'
import { ExportLimits } from './export-limits.js'
import { type Answer, PendingRequest } from './pending-request.js'
import { encodeRequest, readReply, type StatusDescriptor } from './transmission.js'
import { NbdWire } from './wire.js'

export interface NbdConnectOptions {
  /** name of the export; '' is the server's default one */
  export?: string
  /** metadata contexts to ask for, e.g. 'base:allocation', 'qemu:allocation-depth'; what the server grants is in `metaContexts` */
  metaContexts?: readonly string[]
  /** ends the negotiation; the connection is destroyed */
  signal?: AbortSignal
}

/** A range of the export with the same state. What `flags` means is the context's own (for depths: the depth). */
export interface NbdExtent {
  /** bytes */
  offset: number
  /** bytes */
  length: number
  flags: number
}

type Command = Exclude<keyof typeof commands, 'disconnect'>

/**
 * A client of one NBD export, over any duplex stream. Any number of requests may be in flight; each rejects with a
 * `NbdError`: of the server's (`EIO`, `ENOSPC`, `EPERM`, …), `EINVAL` / `EPERM` / `ENOTSUP` for what the export can't take
 * (found without asking the server), `ECONNRESET` once the connection is lost. Offsets and lengths are bytes.
 */
export class NbdClient {
  readonly #wire: NbdWire
  readonly #agreed: Negotiated
  readonly #limits: ExportLimits
  readonly #pending = new Map<bigint, PendingRequest>()
  #nextCookie = 1n
  #lost: NbdError | undefined
  #disconnecting = false
  readonly #ended: Promise<void>

  /** Negotiates the use of an export. The stream is the client's from now on, and destroyed if the negotiation fails. */
  static async connect(stream: Duplex, options: NbdConnectOptions = {}): Promise<NbdClient> {
    const { export: name = '', metaContexts = [], signal } = options
    return overStream(stream, signal, async (wire) => new NbdClient(wire, await negotiate(wire, name, metaContexts)))
  }

  /** What the server exports. The stream is used up. */
  static async list(stream: Duplex, options: { signal?: AbortSignal } = {}): Promise<NbdListed[]> {
    return overStream(stream, options.signal, async (wire) => {
      const listed = await askForList(wire)
      abort(wire)
      return listed
    })
  }

  /** What the server tells of one export, without using it. The stream is used up. */
  static async info(stream: Duplex, name: string, options: { signal?: AbortSignal } = {}): Promise<NbdExportInfo> {
    return overStream(stream, options.signal, async (wire) => {
      const info = await askForInfo(wire, name)
      abort(wire)
      return info
    })
  }

  private constructor(wire: NbdWire, agreed: Negotiated) {
    this.#wire = wire
    this.#agreed = agreed
    this.#limits = new ExportLimits(agreed.info)
    this.#ended = this.#receive()
  }

  /** size of the export */
  get size(): number {
    return this.#limits.size
  }

  /** NBD's transmission flags, as in `transmissionFlags` */
  get flags(): number {
    return this.#limits.flags
  }

  get readOnly(): boolean {
    return this.#limits.can('readOnly')
  }

  /** the most that one read or write may carry */
  get maxPayload(): number {
    return this.#limits.maxPayload
  }

  /** what offsets and lengths must be multiples of */
  get minBlockSize(): number {
    return this.#limits.minBlockSize
  }

  /** the metadata contexts that the server granted */
  get metaContexts(): string[] {
    return [...this.#agreed.contexts.values()]
  }

  /** whether requests still have a connection to go over */
  get connected(): boolean {
    return this.#lost === undefined && !this.#disconnecting
  }

  /** resolves when the connection has ended, for whatever reason */
  get ended(): Promise<void> {
    return this.#ended
  }

  async read(offset: number, length: number): Promise<Buffer> {
    this.#limits.checkRange(offset, length, this.maxPayload)
    return (await this.#request('read', offset, length)).data
  }

  /** `fua`: on stable storage before this resolves. The bytes must not change before it does. */
  async write(offset: number, data: Uint8Array, options: { fua?: boolean } = {}): Promise<void> {
    this.#limits.checkWritable()
    this.#limits.checkRange(offset, data.length, this.maxPayload)
    await this.#request('write', offset, data.length, this.#fua(options.fua), data)
  }

  /** `noHole`: the range must stay allocated; `fastZero`: ENOTSUP rather than slower than writing nothing. */
  async writeZeroes(
    offset: number,
    length: number,
    options: { fua?: boolean; noHole?: boolean; fastZero?: boolean } = {},
  ): Promise<void> {
    this.#limits.checkWritable()
    this.#limits.demand('sendWriteZeroes', 'write zeroes')
    if (options.fastZero === true) this.#limits.demand('sendFastZero', 'promise fast zeroes')
    this.#limits.checkRange(offset, length)
    const flags =
      (options.noHole === true ? commandFlags.noHole : 0) | (options.fastZero === true ? commandFlags.fastZero : 0)
    await this.#request('writeZeroes', offset, length, flags | this.#fua(options.fua))
  }

  async trim(offset: number, length: number, options: { fua?: boolean } = {}): Promise<void> {
    this.#limits.checkWritable()
    this.#limits.demand('sendTrim', 'trim')
    this.#limits.checkRange(offset, length)
    await this.#request('trim', offset, length, this.#fua(options.fua))
  }

  /** What was written before, by any connection, is on stable storage once this resolves. */
  async flush(): Promise<void> {
    this.#limits.demand('sendFlush', 'flush')
    await this.#request('flush', 0, 0)
  }

  /** The server fetches the range; QEMU's copies it from the backing image into the top one (at most 32 MiB at once). */
  async cache(offset: number, length: number): Promise<void> {
    this.#limits.demand('sendCache', 'cache')
    this.#limits.checkRange(offset, length)
    await this.#request('cache', offset, length)
  }

  /**
   * The extents of each granted context from `offset` on. They may end before the asked length, never behind it; `one`
   * asks for a single extent each.
   */
  async blockStatus(
    offset: number,
    length: number,
    options: { one?: boolean } = {},
  ): Promise<Map<string, NbdExtent[]>> {
    if (this.#agreed.contexts.size === 0) throw new NbdError('ENOTSUP', 'the NBD server granted no metadata context')
    this.#limits.checkRange(offset, length)
    const { extents } = await this.#request(
      'blockStatus',
      offset,
      length,
      options.one === true ? commandFlags.reqOne : 0,
    )
    return new Map(
      [...extents].map(([id, descriptors]) => {
        const name = this.#agreed.contexts.get(id)
        if (name === undefined)
          throw this.#fail(protocolError(`the NBD server granted no context with the number ${id}`))
        return [name, extentsWithin(descriptors, offset, length)]
      }),
    )
  }

  /** Walks the extents of one context over the whole export or a part of it, asking as often as it takes. */
  async *extents(context: string, offset = 0, end = this.size): AsyncGenerator<NbdExtent> {
    if (!this.metaContexts.includes(context)) {
      throw new NbdError('ENOTSUP', `the NBD server did not grant the context '${context}'`)
    }
    const step = 2 ** 30
    for (let at = offset; at < end;) {
      const found = (await this.blockStatus(at, Math.min(step, end - at))).get(context) ?? []
      for (const extent of found) {
        yield extent
        at = extent.offset + extent.length
      }
      if (found.length === 0) throw this.#fail(protocolError(`the NBD server left out the context '${context}'`))
    }
  }

  /** Waits for what is in flight, says goodbye and waits for the end, at most 5 s. Does nothing when the connection is lost. */
  async disconnect(): Promise<void> {
    if (this.connected) {
      this.#disconnecting = true
      while (this.#pending.size > 0) await this.#anySettled()
      this.#wire.send(encodeRequest(commands.disconnect, 0, 0n, 0, 0))
      this.#wire.end()
    }
    const deadline = setTimeout(() => this.#wire.destroy(), 5000)
    await this.#ended
    clearTimeout(deadline)
  }

  /** Ends the connection at once; what is in flight rejects with ECONNRESET. */
  destroy(): void {
    this.#fail(new NbdError('ECONNRESET', 'the NBD connection was closed'))
  }

  #settled: (() => void)[] = []
  async #anySettled(): Promise<void> {
    await new Promise<void>((resolve) => this.#settled.push(resolve))
  }

  #fua(wanted = false): number {
    if (!wanted) return 0
    this.#limits.demand('sendFua', 'write through')
    return commandFlags.fua
  }

  #request(command: Command, offset: number, length: number, flags = 0, payload?: Uint8Array): Promise<Answer> {
    return new Promise((resolve, reject) => {
      if (this.#lost !== undefined || this.#disconnecting) {
        reject(this.#lost ?? new NbdError('ECONNRESET', 'the NBD connection was closed'))
        return
      }
      const settle = (error: Error | undefined, answer: Answer): void => {
        if (error === undefined) resolve(answer)
        else reject(error)
      }
      const cookie = this.#nextCookie++
      this.#pending.set(cookie, new PendingRequest(command, offset, length, settle))
      const header = encodeRequest(commands[command], flags, cookie, offset, length)
      if (payload === undefined) this.#wire.send(header)
      else this.#wire.send(header, payload)
    })
  }

  async #receive(): Promise<void> {
    const limitsOf = (cookie: bigint): PendingRequest['limits'] => this.#pendingOf(cookie).limits
    try {
      for (;;) {
        const reply = await this.#wire.next(readReply(limitsOf))
        if (reply === undefined) throw new NbdError('ECONNRESET', 'the NBD server closed the connection')
        if (!this.#pendingOf(reply.cookie).take(reply)) continue
        this.#pending.delete(reply.cookie)
        for (const resolve of this.#settled.splice(0)) resolve()
      }
    } catch (error) {
      this.#fail(error instanceof NbdError ? error : new NbdError('EPROTO', String(error), { cause: error }))
    }
  }

  #pendingOf(cookie: bigint): PendingRequest {
    const pending = this.#pending.get(cookie)
    if (pending === undefined) throw protocolError('an NBD reply belongs to no request')
    return pending
  }

  #fail(error: NbdError): NbdError {
    this.#lost ??= error
    for (const pending of this.#pending.values()) pending.fail(this.#lost)
    this.#pending.clear()
    for (const resolve of this.#settled.splice(0)) resolve()
    this.#wire.destroy()
    return error
  }
}

function extentsWithin(descriptors: readonly StatusDescriptor[], offset: number, length: number): NbdExtent[] {
  const extents: NbdExtent[] = []
  let at = offset
  for (const descriptor of descriptors) {
    const left = offset + length - at
    if (left <= 0) break
    extents.push({ offset: at, length: Math.min(descriptor.length, left), flags: descriptor.flags })
    at += descriptor.length
  }
  return extents
}

/** Runs a negotiation over a stream; where it fails or is aborted, the stream is destroyed. */
async function overStream<T>(
  stream: Duplex,
  signal: AbortSignal | undefined,
  work: (wire: NbdWire) => Promise<T>,
): Promise<T> {
  const wire = new NbdWire(stream)
  const stop = (): void => wire.destroy()
  try {
    signal?.throwIfAborted()
    signal?.addEventListener('abort', stop, { once: true })
    return await work(wire)
  } catch (error) {
    wire.destroy()
    signal?.throwIfAborted()
    throw error
  } finally {
    signal?.removeEventListener('abort', stop)
  }
}
