/** How fast something takes bytes while it has any. */

/** ms that count: what is longer ago weighs half as much, or less */
const MEMORY = 100

export class Speed {
  #bytes = 0
  #ms = 0

  /** It was busy for so many ms with so many bytes. */
  add(bytes: number, ms: number): void {
    if (this.#ms > MEMORY) {
      this.#bytes /= 2
      this.#ms /= 2
    }
    this.#bytes += bytes
    this.#ms += ms
  }

  /** bytes a second; Infinity while that is not known */
  get value(): number {
    return this.#ms === 0 ? Infinity : (this.#bytes / this.#ms) * 1000
  }
}

/** bytes a second that one thread compresses, until it is known */
const USUAL = 300e6
/** the part of it below which a link gains by what is compressed, and by what has still to be */
const GAIN = 0.6
/** how much a block counts that was faster than those before, and one that was slower: a host that is busy has slow ones */
const FASTER = 0.5
const SLOWER = 0.02
/** how quickly what is long past is forgotten, with every block that goes as it is */
const FORGET = 0.001

/** Is it worth while to compress what goes over a link? */
export class CompressorSpeed {
  #value = USUAL

  /** `link`: bytes a second that it takes */
  isWorth(link: number): boolean {
    if (link < GAIN * this.#value) return true
    this.#value += (USUAL - this.#value) * FORGET
    return false
  }

  /** A block of so many bytes took so many ms. */
  add(bytes: number, ms: number): void {
    const value = (bytes / Math.max(ms, 0.01)) * 1000
    this.#value += (value - this.#value) * (value > this.#value ? FASTER : SLOWER)
  }
}
