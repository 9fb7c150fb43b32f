/** Streams that turn bytes into blocks and back, one block at a time, no faster than who reads them takes them. */
import { Duplex } from 'node:stream'
import { BlockReader, blockHeader, MAX_BLOCK } from './blocks.js'
import { asTunnelError, TunnelError } from './error.js'
import { CompressorSpeed } from './speed.js'
import type { Compressor, Decompressor } from './zstd.js'

type Done = (error?: Error | null) => void

/** Bytes that wait before and behind it. */
const HIGH_WATER = 64 * 1024

abstract class BlockStream extends Duplex {
  #wake: (() => void) | undefined

  constructor() {
    super({ allowHalfOpen: true, writableHighWaterMark: MAX_BLOCK, readableHighWaterMark: HIGH_WATER })
    // whoever joins it to others hears of its end
    this.on('error', () => undefined)
  }

  protected abstract turn(parts: readonly Buffer[]): Promise<void>
  /** The last bytes were taken. */
  protected abstract finish(): void
  /** No call of `turn` begins any more. */
  protected abstract release(): void

  /** Hands parts on; waits until there is demand for more. */
  protected async hand(...parts: readonly Buffer[]): Promise<void> {
    let wanted = true
    for (const part of parts) wanted = this.push(part)
    if (!wanted && !this.destroyed) await new Promise<void>((resolve) => (this.#wake = resolve))
    if (this.destroyed) throw new TunnelError('ESHUTDOWN', 'the stream was closed')
  }

  override _read(): void {
    const wake = this.#wake
    this.#wake = undefined
    wake?.()
  }

  // of a single chunk as well
  override _writev(chunks: { chunk: Buffer }[], done: Done): void {
    this.#take(
      chunks.map(({ chunk }) => chunk),
      done,
    )
  }

  override _final(done: Done): void {
    try {
      this.finish()
      this.push(null)
      done()
    } catch (error) {
      done(error as Error)
    }
  }

  override _destroy(error: Error | null, done: Done): void {
    this.release()
    this._read()
    done(error)
  }

  #take(parts: readonly Buffer[], done: Done): void {
    this.turn(parts).then(
      () => done(),
      (error: unknown) => done(asTunnelError(error, 'ECONNRESET', 'a stream of blocks broke')),
    )
  }
}

export interface BlockWriterOptions {
  compressor: Compressor
  /** absent: every block is compressed; else while the link is slower than that (bytes a second) */
  link?: { readonly speed: number }
}

/** Bytes in, blocks out. What was written goes out without waiting for more. */
export class BlockWriter extends BlockStream {
  readonly #compressor: Compressor
  readonly #link: BlockWriterOptions['link']
  readonly #speed = new CompressorSpeed()

  constructor({ compressor, link }: BlockWriterOptions) {
    super()
    this.#compressor = compressor
    this.#link = link
  }

  protected override async turn(parts: readonly Buffer[]): Promise<void> {
    const [first] = parts
    const all = parts.length === 1 && first !== undefined ? first : Buffer.concat(parts)
    for (let at = 0; at < all.length; at += MAX_BLOCK) await this.#send(all.subarray(at, at + MAX_BLOCK))
  }

  async #send(block: Buffer): Promise<void> {
    const isWorth = this.#link === undefined || this.#speed.isWorth(this.#link.speed)
    const frame = isWorth ? await this.#compress(block) : undefined
    const body = frame ?? block
    const header = blockHeader(frame === undefined ? 'plain' : 'zstd', body.length, block.length)
    await this.hand(header, body)
  }

  async #compress(block: Buffer): Promise<Buffer | undefined> {
    const began = performance.now()
    const frame = await this.#compressor.compress(block)
    this.#speed.add(block.length, performance.now() - began)
    return frame
  }

  protected override finish(): void {
    // every block has gone out already
  }

  protected override release(): void {
    this.#compressor.close()
  }
}

/** Blocks in, the bytes that they stand for out. Breaks (TunnelError EPROTO) at the first that is not right. */
export class BlockStreamReader extends BlockStream {
  readonly #decompressor: Decompressor
  readonly #reader = new BlockReader()

  constructor(decompressor: Decompressor) {
    super()
    this.#decompressor = decompressor
  }

  protected override async turn(parts: readonly Buffer[]): Promise<void> {
    for (const part of parts) {
      this.#reader.push(part)
      for (let block = this.#reader.next(); block !== undefined; block = this.#reader.next()) {
        const { form, body, length } = block
        await this.hand(form === 'plain' ? body : await this.#decompressor.decompress(body, length))
      }
    }
  }

  protected override finish(): void {
    this.#reader.end()
  }

  protected override release(): void {
    this.#decompressor.close()
  }
}
