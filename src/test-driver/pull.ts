import type { DiskDef } from '../conf/domain-def.js'

/** bytes of every disk here */
export const DISK_SIZE = 64 * 1024 * 1024
/** bytes/s of a stream without a limit */
const FULL_SPEED = 256 * 1024 * 1024
/** bytes that are copied in one go at least */
const GRANULE = 64 * 1024
/** ms between two steps */
const INTERVAL = 20

/** The stream of one disk, as a clock would do it: so many bytes with every tick. */
export class Pull {
  readonly disk: DiskDef
  /** path of the image that stays as backing image */
  readonly base: string | undefined
  readonly size = DISK_SIZE
  /** bytes/s, 0: no limit */
  bandwidth: number
  offset = 0
  readonly #timer: NodeJS.Timeout
  #budget = 0

  /** `onTick` after every step, also after the one that reaches the end. */
  constructor(disk: DiskDef, base: string | undefined, bandwidth: number, onTick: (pull: Pull) => void) {
    this.disk = disk
    this.base = base
    this.bandwidth = bandwidth
    this.#timer = setInterval(() => {
      this.#step()
      onTick(this)
    }, INTERVAL)
  }

  get isComplete(): boolean {
    return this.offset === this.size
  }

  freeze(): void {
    clearInterval(this.#timer)
  }

  #step(): void {
    this.#budget += ((this.bandwidth || FULL_SPEED) * INTERVAL) / 1000
    const granules = Math.floor(this.#budget / GRANULE)
    this.#budget -= granules * GRANULE
    this.offset = Math.min(this.size, this.offset + granules * GRANULE)
    if (this.isComplete) this.freeze()
  }
}
