/** How much a channel may send before its receiver has taken it: large enough for the link, too small to stand in the way. */

export interface WindowLimits {
  /** bytes; the window of a new channel */
  floor: number
  /** bytes */
  cap: number
  /** ms that bulk may add to the round trip of what is small */
  target: number
}

export const defaultWindows: WindowLimits = { floor: 256 * 1024, cap: 16 * 1024 * 1024, target: 5 }

/** The least round trip counts for so many ms, then a new one is looked for: ways through a network change. */
const LEAST_LIVES = 10_000
/** ms between two looks at a window */
const LOOK_EVERY = 10
/** ms for which a window is not made smaller again after that has only cost speed */
const HANDS_OFF = 5_000

/** Round trips of PINGs in ms: the least one is the link itself, what recent ones take longer is queues. */
export class RoundTrips {
  #recent: number[] = []
  #least = Infinity
  #leastAt = 0
  #nextLeast = Infinity

  add(ms: number, now: number): void {
    this.#recent = [...this.#recent.slice(-3), ms]
    this.#nextLeast = Math.min(this.#nextLeast, ms)
    if (ms <= this.#least || now - this.#leastAt > LEAST_LIVES) {
      this.#least = Math.min(ms, this.#nextLeast)
      this.#leastAt = now
      this.#nextLeast = Infinity
    }
  }

  /** The shortest of late; undefined before the first PONG. */
  get least(): number | undefined {
    return this.#least === Infinity ? undefined : this.#least
  }

  /** What a small frame takes now; single late answers (a busy process) are left out. */
  get recent(): number | undefined {
    return this.#recent.length === 0 ? undefined : Math.min(...this.#recent)
  }
}

/** The receiver's side of one channel: what it has granted, what came, what was taken. */
export class ReceiveWindow {
  readonly #limits: WindowLimits
  #size: number
  /** bytes that the sender may still send */
  #allowed: number
  /** bytes that came and were not taken yet */
  #waiting = 0
  #lookedAt: number
  #takenSince = 0
  #before: { size: number; rate: number } | undefined
  #handsOffUntil = 0

  constructor(limits: WindowLimits, now: number) {
    this.#limits = limits
    this.#size = limits.floor
    this.#allowed = limits.floor
    this.#lookedAt = now
  }

  get size(): number {
    return this.#size
  }

  /** False when the sender sent more than it may. */
  received(bytes: number): boolean {
    this.#allowed -= bytes
    this.#waiting += bytes
    return this.#allowed >= 0
  }

  /** The consumer took so many bytes. Answers the credit to give now, 0 while that is not worth a frame. */
  taken(bytes: number, now: number, trips: RoundTrips): number {
    this.#waiting -= bytes
    this.#takenSince += bytes
    this.#look(now, trips)
    const room = this.#size - this.#allowed - this.#waiting
    if (room < this.#size / 4) return 0
    this.#allowed += room
    return room
  }

  #look(now: number, { least, recent }: RoundTrips): void {
    if (least === undefined || recent === undefined) return
    const elapsed = now - this.#lookedAt
    if (elapsed < Math.max(LOOK_EVERY, recent)) return
    const rate = this.#takenSince / elapsed
    this.#lookedAt = now
    this.#takenSince = 0
    this.#size = this.#bounded(this.#wanted(rate, least, recent, now))
  }

  #wanted(rate: number, least: number, recent: number, now: number): number {
    const { target } = this.#limits
    const before = this.#before
    this.#before = undefined
    if (before !== undefined && rate < before.rate * 0.7) {
      // it was not this window that made the others wait
      this.#handsOffUntil = now + HANDS_OFF
      return before.size
    }
    const queue = recent - least
    if (queue <= target) return Math.max(this.#size, Math.min(this.#size * 2, rate * (2 * recent + target)))
    if (queue <= 2 * target || now < this.#handsOffUntil) return this.#size
    const less = Math.max(this.#size / 2, rate * (least + target))
    if (less >= this.#size || this.#size <= this.#limits.floor) return this.#size
    this.#before = { size: this.#size, rate }
    return less
  }

  #bounded(size: number): number {
    return Math.round(Math.min(Math.max(size, this.#limits.floor), this.#limits.cap))
  }
}
