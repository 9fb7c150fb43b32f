import { NBD_STATE_HOLE, NBD_STATE_ZERO } from '../../src/nbd/constants.js'
import type { NbdServed } from '../../src/nbd/served.js'
import type { StatusDescriptor } from '../../src/nbd/transmission.js'

const block = 4096

/** A disk in memory that knows which of its 4 KiB blocks were written. */
export class MemoryDisk implements Required<Omit<NbdServed, 'blockSizes'>> {
  readonly description = 'a disk in memory'
  readonly bytes: Buffer
  /** what was called, in order, e.g. 'write 0+512' */
  readonly calls: string[] = []
  readonly #allocated: boolean[]

  constructor(size: number) {
    this.bytes = Buffer.alloc(size)
    this.#allocated = Array.from({ length: Math.ceil(size / block) }, () => false)
  }

  get size(): number {
    return this.bytes.length
  }

  read(offset: number, length: number): Promise<Uint8Array> {
    return Promise.resolve(Buffer.from(this.bytes.subarray(offset, offset + length)))
  }

  write(offset: number, data: Uint8Array): Promise<void> {
    this.#note('write', offset, data.length)
    this.bytes.set(data, offset)
    this.#mark(offset, data.length, true)
    return Promise.resolve()
  }

  flush(): Promise<void> {
    this.calls.push('flush')
    return Promise.resolve()
  }

  trim(offset: number, length: number): Promise<void> {
    this.#note('trim', offset, length)
    this.bytes.fill(0, offset, offset + length)
    this.#mark(offset, length, false)
    return Promise.resolve()
  }

  writeZeroes(offset: number, length: number, noHole: boolean): Promise<void> {
    this.#note(noHole ? 'writeZeroes noHole' : 'writeZeroes', offset, length)
    this.bytes.fill(0, offset, offset + length)
    this.#mark(offset, length, noHole)
    return Promise.resolve()
  }

  cache(offset: number, length: number): Promise<void> {
    this.#note('cache', offset, length)
    return Promise.resolve()
  }

  readonly contexts = {
    'base:allocation': (offset: number, length: number): Promise<StatusDescriptor[]> =>
      Promise.resolve(this.#extents(offset, length, (is) => (is ? 0 : NBD_STATE_HOLE | NBD_STATE_ZERO))),
    'test:written': (offset: number, length: number): Promise<StatusDescriptor[]> =>
      Promise.resolve(this.#extents(offset, length, (is) => (is ? 1 : 0))),
  }

  #note(call: string, offset: number, length: number): void {
    this.calls.push(`${call} ${offset}+${length}`)
  }

  #mark(offset: number, length: number, is: boolean): void {
    for (let at = Math.floor(offset / block); at * block < offset + length; at++) this.#allocated[at] = is
  }

  #extents(offset: number, length: number, flagsOf: (is: boolean) => number): StatusDescriptor[] {
    const extents: StatusDescriptor[] = []
    for (let at = offset; at < offset + length;) {
      const end = Math.min((Math.floor(at / block) + 1) * block, this.size)
      const flags = flagsOf(this.#allocated[Math.floor(at / block)] === true)
      const last = extents.at(-1)
      if (last?.flags === flags) last.length += end - at
      else extents.push({ length: end - at, flags })
      at = end
    }
    return extents
  }
}
