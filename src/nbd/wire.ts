import type { Duplex } from 'node:stream'
import { ByteQueue, type Grammar } from './codec.js'
import { NbdError } from './error.js'

/** A stream as a source of messages: reads only when asked, so that a flood stays with the peer. */
export class NbdWire {
  readonly #stream: Duplex
  readonly #chunks: AsyncIterator<Buffer>
  readonly #queue = new ByteQueue()

  constructor(stream: Duplex) {
    this.#stream = stream
    this.#chunks = stream[Symbol.asyncIterator]() as AsyncIterator<Buffer>
    // whoever reads learns of it; an error without any listener would end the process
    stream.on('error', () => undefined)
  }

  /** The next message; undefined when the peer ended the stream between two. */
  async next<T>(grammar: Grammar<T>): Promise<T | undefined> {
    let step = grammar.next()
    let begun = this.#queue.length > 0
    while (step.done !== true) {
      while (this.#queue.length < step.value) {
        if (!(await this.#more())) {
          if (!begun) return undefined
          throw new NbdError('ECONNRESET', 'the NBD connection ended in the middle of a message')
        }
        begun = true
      }
      step = grammar.next(this.#queue.take(step.value))
      begun = true
    }
    return step.value
  }

  /** The next message, where the peer owes us one. */
  async expect<T>(grammar: Grammar<T>): Promise<T> {
    const message = await this.next(grammar)
    if (message === undefined) throw new NbdError('ECONNRESET', 'the NBD peer closed the connection')
    return message
  }

  async #more(): Promise<boolean> {
    try {
      const chunk = await this.#chunks.next()
      if (chunk.done === true) return false
      this.#queue.push(chunk.value)
      return true
    } catch (cause) {
      throw new NbdError('ECONNRESET', 'the NBD connection was lost', { cause })
    }
  }

  /** Sends the parts in one go. What can't be sent any more is dropped: the reader learns that the connection is lost. */
  send(...parts: readonly Uint8Array[]): void {
    if (!this.#stream.writable) return
    this.#stream.cork()
    for (const part of parts) if (part.length > 0) this.#stream.write(part)
    this.#stream.uncork()
  }

  /** Resolves when what was sent has left our buffers, or never will. */
  async drained(): Promise<void> {
    if (!this.#stream.writableNeedDrain) return
    await new Promise<void>((resolve) => {
      const done = (): void => {
        this.#stream.off('drain', done).off('close', done)
        resolve()
      }
      this.#stream.on('drain', done).on('close', done)
    })
  }

  /** Nothing more will be sent. */
  end(): void {
    this.#stream.end()
  }

  destroy(): void {
    this.#stream.destroy()
  }
}
