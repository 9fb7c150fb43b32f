/** A stream of bytes cut into blocks, each as it is or compressed: the format (docs/tunnel.md), without streams. */
import { protocolError } from './error.js'

/** Bytes of a block at most, whatever form it goes in. */
export const MAX_BLOCK = 128 * 1024
/** form (8 bits), length of what follows (24), bytes that it stands for (32) */
export const BLOCK_HEADER = 8

export const blockForms = { plain: 0, zstd: 1 } as const

export type BlockForm = keyof typeof blockForms

export interface Block {
  form: BlockForm
  body: Buffer
  /** bytes that it stands for */
  length: number
}

export function blockHeader(form: BlockForm, size: number, length: number): Buffer {
  const header = Buffer.allocUnsafe(BLOCK_HEADER)
  header.writeUInt32BE(blockForms[form] * 2 ** 24 + size)
  header.writeUInt32BE(length, 4)
  return header
}

/** Bytes in, blocks out; holds one block at most. */
export class BlockReader {
  #parts: Buffer[] = []
  #length = 0
  #header: (Omit<Block, 'body'> & { size: number }) | undefined

  push(bytes: Buffer): void {
    this.#parts.push(bytes)
    this.#length += bytes.length
  }

  /** The next block, if it is there. Throws TunnelError EPROTO for what is none. */
  next(): Block | undefined {
    this.#header ??= this.#length < BLOCK_HEADER ? undefined : parse(this.#take(BLOCK_HEADER))
    if (this.#header === undefined || this.#length < this.#header.size) return undefined
    const { form, size, length } = this.#header
    this.#header = undefined
    return { form, body: this.#take(size), length }
  }

  /** Throws TunnelError EPROTO in the middle of a block. */
  end(): void {
    if (this.#header !== undefined || this.#length > 0) throw protocolError('a stream of blocks ends within one')
  }

  #take(count: number): Buffer {
    const [first] = this.#parts
    const all = this.#parts.length === 1 && first !== undefined ? first : Buffer.concat(this.#parts)
    this.#parts = all.length > count ? [all.subarray(count)] : []
    this.#length -= count
    return all.subarray(0, count)
  }
}

function parse(header: Buffer): Omit<Block, 'body'> & { size: number } {
  const [code, size, length] = [header.readUInt8(), header.readUIntBE(1, 3), header.readUInt32BE(4)]
  const form = (Object.keys(blockForms) as BlockForm[]).find((each) => blockForms[each] === code)
  if (form === undefined) throw protocolError(`a block has the unknown form ${code}`)
  if (length === 0 || length > MAX_BLOCK) throw protocolError(`a block of ${length} bytes is not allowed`)
  if (form === 'plain' ? size !== length : size === 0 || size >= length)
    throw protocolError(`a block of ${length} bytes cannot be ${size} bytes of form '${form}'`)
  return { form, size, length }
}
