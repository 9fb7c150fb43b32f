/** bytes of every disk here */
export const DISK_SIZE = 64 * 1024 * 1024
/** bytes that are copied in one go at least */
export const GRANULE = 64 * 1024

/** Which parts of a disk are in its own image; they stay there when a stream is stopped. */
export class Copied {
  readonly #granules = new Uint8Array(DISK_SIZE / GRANULE)

  /** The first byte at or behind `offset` that is not copied; the size of the disk when there is none. */
  next(offset: number): number {
    const found = this.#granules.indexOf(0, Math.floor(offset / GRANULE))
    return found === -1 ? DISK_SIZE : Math.max(offset, found * GRANULE)
  }

  /** Copies what begins at `offset`, `length` bytes of it or up to what is copied already; answers where that ends. */
  copy(offset: number, length: number): number {
    const first = Math.floor(offset / GRANULE)
    const most = Math.min(this.#granules.length, Math.ceil((offset + length) / GRANULE))
    const next = this.#granules.indexOf(1, first)
    const end = next === -1 ? most : Math.min(most, next)
    this.#granules.fill(1, first, end)
    return end * GRANULE
  }

  /** bytes */
  get total(): number {
    return this.#granules.reduce((sum, granule) => sum + granule, 0) * GRANULE
  }
}
