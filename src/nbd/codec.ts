/** What both phases of the protocol share: how bytes that come in any pieces become messages. No I/O happens here. */
import { protocolError } from './error.js'

/** Reads one message: yields how many bytes it wants next, is resumed with exactly those, returns the message. */
export type Grammar<T> = Generator<number, T, Buffer>

/** Bytes that came in and were not taken yet. */
export class ByteQueue {
  #chunks: Buffer[] = []
  #length = 0

  get length(): number {
    return this.#length
  }

  push(chunk: Buffer): void {
    if (chunk.length === 0) return
    this.#chunks.push(chunk)
    this.#length += chunk.length
  }

  /** Takes exactly `count` of the bytes, which must be there; copies only where they span chunks. */
  take(count: number): Buffer {
    if (count > this.#length) throw new RangeError(`${count} bytes asked for, ${this.#length} are there`)
    this.#length -= count
    const parts: Buffer[] = []
    let wanted = count
    while (wanted > 0) {
      const first = this.#chunks[0]
      if (first === undefined) break
      parts.push(first.subarray(0, wanted))
      if (first.length > wanted) this.#chunks[0] = first.subarray(wanted)
      else this.#chunks.shift()
      wanted -= Math.min(wanted, first.length)
    }
    const [only] = parts
    return parts.length === 1 && only !== undefined ? only : Buffer.concat(parts, count)
  }
}

/** Walks over the fields of one message; running over its end is the peer's fault. */
export class FieldReader {
  readonly #bytes: Buffer
  #at = 0

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  get left(): number {
    return this.#bytes.length - this.#at
  }

  bytes(count: number): Buffer {
    if (count > this.left) throw protocolError('an NBD message ends before its last field')
    const bytes = this.#bytes.subarray(this.#at, this.#at + count)
    this.#at += count
    return bytes
  }

  u16(): number {
    return this.bytes(2).readUInt16BE()
  }

  u32(): number {
    return this.bytes(4).readUInt32BE()
  }

  /** A size or an offset: beyond 2^53 it is of no use here. */
  u64(): number {
    const value = this.bytes(8).readBigUInt64BE()
    if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw protocolError(`an NBD offset of ${String(value)} is too large`)
    return Number(value)
  }

  /** A string with its length (32 bits) before it. */
  string(): string {
    return this.bytes(this.u32()).toString('utf8')
  }

  rest(): Buffer {
    return this.bytes(this.left)
  }

  end(): void {
    if (this.left > 0) throw protocolError('an NBD message goes on after its last field')
  }
}

export function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2)
  bytes.writeUInt16BE(value)
  return bytes
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}

export function u64(value: number | bigint): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt(value))
  return bytes
}

/** A string with its length (32 bits) before it. */
export function sized(text: string): Buffer {
  const bytes = Buffer.from(text, 'utf8')
  return Buffer.concat([u32(bytes.length), bytes])
}
