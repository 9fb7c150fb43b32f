/**
 * zstd for blocks that are whole in memory, by the system's libzstd: on a thread of koffi's, never on the event loop. Each
 * block is a frame of its own with a checksum, so that nothing is handed on before all of it is known to be right.
 */
import type { LibraryHandle } from 'koffi'
import { messageOf } from '../error.js'
import { protocolError, TunnelError } from './error.js'

const LIBRARY = 'libzstd.so.1'
/** ZSTD_cParameter (zstd.h) */
const COMPRESSION_LEVEL = 100
const CHECKSUM = 201
/** ZSTD_error_dstSize_tooSmall (zstd_errors.h): as many bytes as there may be are not enough */
const TOO_SMALL = 70

const signatures = {
  ZSTD_createCCtx: ['void *', []],
  ZSTD_createDCtx: ['void *', []],
  ZSTD_freeCCtx: ['size_t', ['void *']],
  ZSTD_freeDCtx: ['size_t', ['void *']],
  ZSTD_CCtx_setParameter: ['size_t', ['void *', 'int', 'int']],
  ZSTD_compress2: ['size_t', ['void *', 'void *', 'size_t', 'const void *', 'size_t']],
  ZSTD_decompressDCtx: ['size_t', ['void *', 'void *', 'size_t', 'const void *', 'size_t']],
  ZSTD_isError: ['uint', ['size_t']],
  ZSTD_getErrorCode: ['int', ['size_t']],
  ZSTD_getErrorName: ['const char *', ['size_t']],
} as const

type CFunction = ReturnType<LibraryHandle['func']>
type Functions = Record<keyof typeof signatures, CFunction>

export class Zstd {
  static #loaded: Promise<Zstd> | undefined
  readonly functions: Functions

  private constructor(library: LibraryHandle) {
    this.functions = Object.fromEntries(
      Object.entries(signatures).map(([name, [answer, args]]) => [name, library.func(name, answer, [...args])]),
    ) as Functions
  }

  /** The system's library, once for the process. Rejects with TunnelError EINVAL where there is none that fits. */
  static load(file = LIBRARY): Promise<Zstd> {
    if (file !== LIBRARY) return open(file).then((library) => new Zstd(library))
    return (Zstd.#loaded ??= open(file).then((library) => new Zstd(library)))
  }

  compressor(level = 1): Compressor {
    return new Compressor(this.functions, level)
  }

  decompressor(): Decompressor {
    return new Decompressor(this.functions)
  }
}

/** koffi takes its time to load, and few processes move a guest. */
async function open(file: string): Promise<LibraryHandle> {
  try {
    const { default: koffi } = await import('koffi')
    return koffi.load(file)
  } catch (error) {
    throw new TunnelError('EINVAL', `zstd needs '${file}', which cannot be loaded: ${messageOf(error)}`, error)
  }
}

/** A context of libzstd: one call at a time, and given back once none is out. */
class Context {
  protected readonly functions: Functions
  readonly #make: () => unknown
  readonly #free: CFunction
  /** made when it is needed first: who is never used has nothing to give back */
  #at: unknown
  /** what the call that is out reads and writes, and may not lose */
  #held: readonly Buffer[] | undefined
  #isClosed = false

  constructor(functions: Functions, make: () => unknown, free: CFunction) {
    this.functions = functions
    this.#make = make
    this.#free = free
  }

  #context(): unknown {
    this.#at ??= this.#make()
    if (this.#at === null) throw new TunnelError('EINVAL', 'there is no memory for zstd')
    return this.#at
  }

  /** Has it work on `from`, into `to`. Answers a number of bytes, or what ZSTD_isError takes for an error. */
  protected run(work: CFunction, to: Buffer, from: Buffer): Promise<number | bigint> {
    return new Promise((resolve, reject) => {
      if (this.#isClosed) throw new TunnelError('ESHUTDOWN', 'this context of zstd was closed')
      const at = this.#context()
      this.#held = [to, from]
      const done = (error: Error | null, answer: number | bigint): void => {
        this.#held = undefined
        if (this.#isClosed) this.#giveBack()
        if (error) reject(error)
        else resolve(answer)
      }
      work.async(at, to, to.length, from, from.length, done)
    })
  }

  close(): void {
    if (this.#isClosed) return
    this.#isClosed = true
    if (this.#held === undefined) this.#giveBack()
  }

  #giveBack(): void {
    // libzstd takes null, too
    this.#free(this.#at ?? null)
    this.#at = undefined
  }
}

export class Compressor extends Context {
  #room = Buffer.alloc(0)

  constructor(functions: Functions, level: number) {
    const make = (): unknown => {
      const at: unknown = functions.ZSTD_createCCtx()
      if (at === null) return at
      functions.ZSTD_CCtx_setParameter(at, COMPRESSION_LEVEL, level)
      functions.ZSTD_CCtx_setParameter(at, CHECKSUM, 1)
      return at
    }
    super(functions, make, functions.ZSTD_freeCCtx)
  }

  /** One frame of all of `block`; undefined where that would not be shorter. */
  async compress(block: Buffer): Promise<Buffer | undefined> {
    if (this.#room.length < block.length) this.#room = Buffer.allocUnsafe(block.length)
    const answer = await this.run(this.functions.ZSTD_compress2, this.#room.subarray(0, block.length - 1), block)
    if (this.functions.ZSTD_isError(answer) === 0) return Buffer.from(this.#room.subarray(0, Number(answer)))
    if (this.functions.ZSTD_getErrorCode(answer) === TOO_SMALL) return undefined
    throw new TunnelError('EINVAL', `zstd cannot compress: ${this.functions.ZSTD_getErrorName(answer) as string}`)
  }
}

export class Decompressor extends Context {
  constructor(functions: Functions) {
    super(functions, () => functions.ZSTD_createDCtx() as unknown, functions.ZSTD_freeDCtx)
  }

  /** What `frame` holds, `length` bytes; TunnelError EPROTO for anything else. */
  async decompress(frame: Buffer, length: number): Promise<Buffer> {
    const block = Buffer.allocUnsafeSlow(length)
    const answer = await this.run(this.functions.ZSTD_decompressDCtx, block, frame)
    if (this.functions.ZSTD_isError(answer) !== 0)
      throw protocolError(`a compressed block is damaged: ${this.functions.ZSTD_getErrorName(answer) as string}`)
    if (Number(answer) !== length) throw protocolError(`a compressed block has ${answer} bytes in place of ${length}`)
    return block
  }
}
