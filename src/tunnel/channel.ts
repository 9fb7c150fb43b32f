import { Duplex } from 'node:stream'
import type { ChannelTable } from './channel-table.js'
import { TunnelError } from './error.js'
import type { Params } from './payloads.js'
import { Speed } from './speed.js'

/** Bytes that a channel holds in each direction besides its window. */
const HIGH_WATER = 128 * 1024

type Done = (error?: Error | null) => void

/**
 * One stream of bytes each way on a tunnel. Half-open as sockets with `allowHalfOpen`; `destroy(error)` resets it, and the
 * other side gets the error's message. A channel that breaks emits 'error' (TunnelError) and 'close'; nobody needs to listen.
 * Neither is emitted in the turn of the event loop in which it was opened: who awaited the opening can still listen to it.
 */
export class Channel extends Duplex {
  readonly id: number
  readonly service: string
  /** that came with its opening */
  readonly params: Params
  /** that came with the answer to its opening */
  readonly reply: Params
  readonly #table: ChannelTable
  #arrived: Buffer[] = []
  #hungry = false
  #bytesWritten = 0
  readonly #speed = new Speed()
  #ended = false

  /** Made by Tunnel. */
  constructor(table: ChannelTable, id: number, about: { service: string; params: Params; reply: Params }) {
    super({ allowHalfOpen: true, highWaterMark: HIGH_WATER })
    this.#table = table
    this.id = id
    this.service = about.service
    this.params = about.params
    this.reply = about.reply
    // a link that breaks is nothing unusual: it must not end a process that looks at 'close' only
    this.on('error', () => undefined)
  }

  /** all that it was given to send so far */
  get bytesWritten(): number {
    return this.#bytesWritten
  }

  /** bytes a second that the link takes of it while some wait; Infinity before there were any */
  get speed(): number {
    return this.#speed.value
  }

  /** For Tunnel: bytes came. */
  arrive(bytes: Buffer): void {
    this.#arrived.push(bytes)
    this.#deliver()
  }

  /** For Tunnel: no more bytes come. */
  arriveEnd(): void {
    this.#ended = true
    this.#deliver()
  }

  override _read(): void {
    this.#hungry = true
    this.#deliver()
  }

  // of a single chunk as well
  override _writev(chunks: { chunk: Buffer }[], done: Done): void {
    this.#send(
      chunks.map(({ chunk }) => chunk),
      done,
    )
  }

  override _final(done: Done): void {
    try {
      this.#table.finish(this.id, () => done())
    } catch (error) {
      done(error as Error)
    }
  }

  override _destroy(error: Error | null, done: Done): void {
    this.#arrived = []
    this.#table.reset(this.id, error?.message ?? 'the channel was closed')
    // it may have come in one piece with the acceptance, of which whoever opened it hears last
    setImmediate(() => done(error))
  }

  #send(parts: Buffer[], done: Done): void {
    const bytes = parts.reduce((sum, { length }) => sum + length, 0)
    const began = performance.now()
    this.#bytesWritten += bytes
    try {
      this.#table.send(this.id, parts, () => {
        this.#speed.add(bytes, performance.now() - began)
        done()
      })
    } catch (error) {
      done(error instanceof Error ? error : new TunnelError('ECONNRESET', String(error)))
    }
  }

  /** Hands over as long as there is demand; what was handed over gives the sender credit again. */
  #deliver(): void {
    while (this.#hungry) {
      const bytes = this.#arrived.shift()
      if (bytes === undefined) break
      this.#hungry = false
      // a reader that reads while it gets these may have asked again by now
      if (this.push(bytes)) this.#hungry = true
      this.#table.taken(this.id, bytes.length)
    }
    if (this.#ended && this.#arrived.length === 0) {
      this.#ended = false
      this.push(null)
    }
  }
}
