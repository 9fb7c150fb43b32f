/** XDR (RFC 4506): big-endian, everything padded to four bytes. Strict on reading: what is not canonical is an error. */

/** The bytes are not what the type says, or the value does not fit the type. */
export class XdrError extends Error {
  override readonly name = 'XdrError'
}

const UNIT = 4
const padding = (length: number): number => (UNIT - (length % UNIT)) % UNIT
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

export class XdrWriter {
  readonly #parts: Buffer[] = []

  uint(value: number): this {
    return this.#whole(value, 0, 0xffff_ffff)
  }
  int(value: number): this {
    return this.#whole(value, -0x8000_0000, 0x7fff_ffff)
  }
  #whole(value: number, least: number, most: number): this {
    if (!Number.isInteger(value) || value < least || value > most)
      throw new XdrError(`${value} is not a whole number from ${least} to ${most}`)
    const part = Buffer.allocUnsafe(UNIT)
    part.writeUInt32BE(value >>> 0)
    return this.#add(part)
  }
  uhyper(value: bigint): this {
    if (BigInt.asUintN(64, value) !== value) throw new XdrError(`${value} does not fit an unsigned hyper`)
    const part = Buffer.allocUnsafe(8)
    part.writeBigUInt64BE(value)
    return this.#add(part)
  }
  hyper(value: bigint): this {
    if (BigInt.asIntN(64, value) !== value) throw new XdrError(`${value} does not fit a hyper`)
    const part = Buffer.allocUnsafe(8)
    part.writeBigInt64BE(value)
    return this.#add(part)
  }
  bool(value: boolean): this {
    return this.uint(value ? 1 : 0)
  }
  /** Fixed length: the reader knows it. */
  opaque(bytes: Uint8Array): this {
    return this.#add(Buffer.from(bytes)).#add(Buffer.alloc(padding(bytes.length)))
  }
  /** Variable length, at most `max` bytes. */
  bytes(bytes: Uint8Array, max = 0xffff_ffff): this {
    if (bytes.length > max) throw new XdrError(`${bytes.length} bytes are more than ${max}`)
    return this.uint(bytes.length).opaque(bytes)
  }
  /** UTF-8, at most `max` bytes. */
  string(text: string, max = 0xffff_ffff): this {
    if (text.includes('\0')) throw new XdrError('a string holds a NUL')
    return this.bytes(Buffer.from(text, 'utf8'), max)
  }
  optional<T>(value: T | undefined, write: (value: T) => unknown): this {
    this.bool(value !== undefined)
    if (value !== undefined) write(value)
    return this
  }
  array<T>(values: readonly T[], write: (value: T) => unknown, max = 0xffff_ffff): this {
    if (values.length > max) throw new XdrError(`${values.length} elements are more than ${max}`)
    this.uint(values.length)
    for (const value of values) write(value)
    return this
  }

  #add(part: Buffer): this {
    this.#parts.push(part)
    return this
  }
  finish(): Buffer {
    return Buffer.concat(this.#parts)
  }
}

export class XdrReader {
  readonly #bytes: Buffer
  #at = 0

  constructor(bytes: Uint8Array) {
    this.#bytes = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  }

  uint(): number {
    return this.#take(UNIT).readUInt32BE()
  }
  int(): number {
    return this.#take(UNIT).readInt32BE()
  }
  uhyper(): bigint {
    return this.#take(8).readBigUInt64BE()
  }
  hyper(): bigint {
    return this.#take(8).readBigInt64BE()
  }
  bool(): boolean {
    const value = this.uint()
    if (value > 1) throw new XdrError(`${value} is no boolean`)
    return value === 1
  }
  /** A copy. */
  opaque(length: number): Buffer {
    const bytes = Buffer.from(this.#take(length))
    if (this.#take(padding(length)).some((byte) => byte !== 0)) throw new XdrError('padding is not zero')
    return bytes
  }
  bytes(max = 0xffff_ffff): Buffer {
    const length = this.uint()
    if (length > max) throw new XdrError(`${length} bytes are more than ${max}`)
    return this.opaque(length)
  }
  string(max = 0xffff_ffff): string {
    const bytes = this.bytes(max)
    if (bytes.includes(0)) throw new XdrError('a string holds a NUL')
    try {
      return utf8.decode(bytes)
    } catch {
      throw new XdrError('a string is not UTF-8')
    }
  }
  optional<T>(read: () => T): T | undefined {
    return this.bool() ? read() : undefined
  }
  /** Every element takes at least `least` bytes, so that a count alone cannot make us allocate. */
  array<T>(read: () => T, max = 0xffff_ffff, least = UNIT): T[] {
    const count = this.uint()
    if (count > max || count * least > this.#bytes.length - this.#at)
      throw new XdrError(`${count} elements are more than there can be`)
    return Array.from({ length: count }, read)
  }
  /** Everything was read. */
  end(): void {
    const left = this.#bytes.length - this.#at
    if (left > 0) throw new XdrError(`${left} bytes are left over`)
  }

  #take(length: number): Buffer {
    if (length > this.#bytes.length - this.#at) throw new XdrError('the bytes end too early')
    this.#at += length
    return this.#bytes.subarray(this.#at - length, this.#at)
  }
}
