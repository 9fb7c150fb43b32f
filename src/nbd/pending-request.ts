import { MAX_ERROR_CHUNK, MAX_STATUS_CHUNK } from './constants.js'
import { errorOfReply, type NbdError, protocolError } from './error.js'
import type { Chunk, Reply, ReplyLimits, StatusDescriptor } from './transmission.js'

/** What the replies to a request added up to. */
export interface Answer {
  /** what a read read; empty for the other requests */
  data: Buffer
  /** extents by the number of their context, from the start of the request on */
  extents: Map<number, StatusDescriptor[]>
}

/** A request on its way: puts its replies together and holds each against what was asked. */
export class PendingRequest {
  readonly #command: string
  readonly #offset: number
  /** bytes that a read wants; 0 for the other requests */
  readonly #length: number
  readonly #takesStatus: boolean
  #data: Buffer | undefined
  /** which part of the data is there, as [start, end) */
  readonly #parts: [start: number, end: number][] = []
  readonly #extents = new Map<number, StatusDescriptor[]>()
  #error: NbdError | undefined
  readonly settle: (error: Error | undefined, answer: Answer) => void

  constructor(
    command: 'read' | 'write' | 'flush' | 'trim' | 'cache' | 'writeZeroes' | 'blockStatus',
    offset: number,
    length: number,
    settle: (error: Error | undefined, answer: Answer) => void,
  ) {
    this.#command = command
    this.#offset = offset
    this.#length = command === 'read' ? length : 0
    this.#takesStatus = command === 'blockStatus'
    this.settle = settle
  }

  get limits(): ReplyLimits {
    if (this.#takesStatus) return { simplePayload: 0, chunk: MAX_STATUS_CHUNK }
    return { simplePayload: this.#length, chunk: Math.max(this.#length + 8, MAX_ERROR_CHUNK) }
  }

  fail(error: Error): void {
    this.settle(error, { data: Buffer.alloc(0), extents: this.#extents })
  }

  /** Takes a reply; true when it was the last one. A reply that the request does not allow is thrown. */
  take(reply: Reply): boolean {
    if (reply.kind === 'simple') {
      if (reply.errno !== 0) this.#noteError(reply.errno, '')
      else if (this.#takesStatus) throw protocolError('a simple NBD reply can not answer a block status request')
      else this.#addData(this.#offset, reply.data)
    } else {
      this.#takeChunk(reply.chunk)
      if (!reply.done) return false
    }
    if (this.#error === undefined) this.#checkWhole()
    this.settle(this.#error, { data: this.#data ?? Buffer.alloc(0), extents: this.#extents })
    return true
  }

  #takeChunk(chunk: Chunk): void {
    switch (chunk.type) {
      case 'none':
        return
      case 'data':
        if (chunk.data.length === 0) throw protocolError('an NBD data chunk is empty')
        this.#addData(chunk.offset, chunk.data)
        return
      case 'hole':
        this.#addHole(chunk.offset, chunk.length)
        return
      case 'status':
        this.#addExtents(chunk.contextId, chunk.extents)
        return
      case 'error':
        this.#noteError(chunk.errno, chunk.message)
    }
  }

  #noteError(errno: number, message: string): void {
    if (errno === 0) throw protocolError('an NBD error reply has no error')
    this.#error ??= errorOfReply(errno, this.#command, message)
  }

  #addData(offset: number, data: Buffer): void {
    if (data.length === 0) return
    const start = this.#claim(offset, data.length)
    if (data.length === this.#length) this.#data = data
    else this.#buffer().set(data, start)
  }

  #addHole(offset: number, length: number): void {
    const start = this.#claim(offset, length)
    this.#buffer().fill(0, start, start + length)
  }

  #buffer(): Buffer {
    return (this.#data ??= Buffer.allocUnsafe(this.#length))
  }

  #claim(offset: number, length: number): number {
    const start = offset - this.#offset
    if (length === 0 || start < 0 || start + length > this.#length) {
      throw protocolError(`an NBD reply has bytes that the ${this.#command} did not ask for`)
    }
    if (this.#parts.some(([from, to]) => start < to && from < start + length)) {
      throw protocolError('an NBD reply has the same bytes twice')
    }
    this.#parts.push([start, start + length])
    return start
  }

  #addExtents(contextId: number, extents: StatusDescriptor[]): void {
    if (!this.#takesStatus) throw protocolError(`an NBD block status came for a ${this.#command}`)
    if (this.#extents.has(contextId)) throw protocolError('an NBD reply has the same context twice')
    this.#extents.set(contextId, extents)
  }

  #checkWhole(): void {
    // no two parts overlap, and none lies outside: they cover all if they add up to it
    const there = this.#parts.reduce((sum, [start, end]) => sum + end - start, 0)
    if (there !== this.#length) throw protocolError(`an NBD reply lacks ${this.#length - there} bytes of the read`)
    if (this.#takesStatus && this.#extents.size === 0) throw protocolError('an NBD block status has no context')
  }
}
