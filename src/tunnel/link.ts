/** Binds a session's bytes to a stream: what comes goes in, what waits goes out while the stream's own queue is short. */
import type { Duplex } from 'node:stream'

/** Bytes that may wait in the stream's own queue: what comes later but matters more waits behind them. */
const STREAM_QUEUE = 128 * 1024
/** ms that the other side has to read the last word */
const LINGER = 1000

export interface LinkEvents {
  onBytes(bytes: Buffer): void
  /** about so many bytes that are to go out now */
  pull(budget: number): Buffer[]
  /** after each time that something may have gone out */
  onPumped(): void
  /** undefined: it ended */
  onLost(error: Error | undefined): void
}

export class Link {
  readonly #stream: Duplex
  readonly #events: LinkEvents
  #isScheduled = false
  #isOver = false

  constructor(stream: Duplex, events: LinkEvents) {
    this.#stream = stream
    this.#events = events
    stream.on('data', (bytes: Buffer) => {
      if (!this.#isOver) events.onBytes(bytes)
    })
    stream.on('drain', () => this.#pump())
    stream.on('error', (error) => events.onLost(error))
    stream.on('end', () => events.onLost(undefined))
    stream.on('close', () => events.onLost(undefined))
  }

  /** There is something to pull: it goes out together with all that this turn of the event loop still brings. */
  ready(): void {
    if (this.#isScheduled || this.#isOver) return
    this.#isScheduled = true
    queueMicrotask(() => {
      this.#isScheduled = false
      this.#pump()
      if (!this.#isOver) this.#events.onPumped()
    })
  }

  /** Nothing more goes in or out; what was said, and `lastWord`, goes out if it can, but nobody waits long for that. */
  finish(lastWord?: Buffer): void {
    const stream = this.#stream
    if (!this.#isOver) for (const part of this.#events.pull(0)) stream.write(part)
    this.#isOver = true
    stream.end(lastWord)
    // not destroyed at once: with bytes unread that would take the last word along
    const timer = setTimeout(() => stream.destroy(), LINGER)
    stream.once('close', () => clearTimeout(timer))
  }

  /** At once. */
  destroy(): void {
    this.#isOver = true
    this.#stream.destroy()
  }

  get isDestroyed(): boolean {
    return this.#stream.destroyed
  }

  #pump(): void {
    const stream = this.#stream
    while (!this.#isOver && stream.writableLength < STREAM_QUEUE) {
      const parts = this.#events.pull(STREAM_QUEUE - stream.writableLength)
      if (parts.length === 0) break
      stream.cork()
      for (const part of parts) stream.write(part)
      stream.uncork()
      if (stream.writableNeedDrain) break
    }
  }
}
