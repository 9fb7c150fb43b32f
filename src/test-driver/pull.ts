import type { DiskDef } from '../conf/domain-def.js'
import type { Copied } from './copied.js'
import { DISK_SIZE, GRANULE } from './copied.js'

/** bytes/s of a stream without a limit */
const FULL_SPEED = 256 * 1024 * 1024
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
  readonly #copied: Copied
  readonly #timer: NodeJS.Timeout
  #budget = 0

  /** `onTick` after every step, also after the one that reaches the end. */
  constructor(
    disk: DiskDef,
    copied: Copied,
    { base, bandwidth }: { base: string | undefined; bandwidth: number },
    onTick: (pull: Pull) => void,
  ) {
    this.disk = disk
    this.#copied = copied
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
    // what is copied already is passed at once
    this.offset = this.#copied.next(this.offset)
    for (; this.#budget >= GRANULE && !this.isComplete; this.#budget -= GRANULE)
      this.offset = this.#copied.next(this.#copied.copy(this.offset, GRANULE))
    if (this.isComplete) this.freeze()
  }
}
