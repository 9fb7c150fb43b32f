/** How much a channel may send before its receiver has taken it: large enough for the link, too small to stand in the way. */

export interface WindowLimits {
  /** bytes; the window of a new channel, and the smallest */
  floor: number
  /** bytes */
  cap: number
}

export const defaultWindows: WindowLimits = { floor: 256 * 1024, cap: 16 * 1024 * 1024 }

/** ms that a rate is measured for at least */
const MEASURE = 20
/** ms until another size is tried after one that was no better; doubled each time */
const FIRST_REST = 500
const LAST_REST = 16_000

/** Round trips of PINGs in ms. */
export class RoundTrips {
  #recent: readonly number[] = []

  add(ms: number): void {
    this.#recent = [...this.#recent.slice(-3), ms]
  }

  /** The shortest of the last four (a busy process answers late now and then); undefined before the first. */
  get recent(): number | undefined {
    return this.#recent.length === 0 ? undefined : Math.min(...this.#recent)
  }
}

/**
 * The receiver's side of one channel: what it has granted, what came, what was taken. Its size is found by trying: twice as
 * much stays if the channel becomes clearly faster by that, half as much stays if it does not become slower. So it ends at
 * about what is under way on the link; more would only wait in queues, where it delays everybody. Delay itself is no good
 * measure, as it also comes from busy processes.
 */
export class ReceiveWindow {
  readonly #limits: WindowLimits
  #size: number
  /** bytes that the sender may still send */
  #allowed: number
  /** bytes that came and were not taken yet */
  #waiting = 0
  #taken = 0
  #measuredFrom: number
  /** the size and rate to go back to */
  #before: { size: number; rate: number } | undefined
  #direction: 'up' | 'down' = 'up'
  #rest = 0
  #restUntil = 0

  constructor(limits: WindowLimits, now: number) {
    this.#limits = limits
    this.#size = limits.floor
    this.#allowed = limits.floor
    this.#measuredFrom = now
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
  taken(bytes: number, now: number, { recent }: RoundTrips): number {
    this.#waiting -= bytes
    this.#taken += bytes
    if (recent !== undefined) this.#measure(now, recent)
    const room = this.#size - this.#allowed - this.#waiting
    if (room < this.#size / 4) return 0
    this.#allowed += room
    return room
  }

  #measure(now: number, roundTrip: number): void {
    const elapsed = now - this.#measuredFrom
    if (elapsed < 0) this.#taken = 0
    if (elapsed < Math.max(MEASURE, 2 * roundTrip)) return
    // less than a window in two round trips, or a consumer that is behind: the window is not what limits
    const limits = this.#taken >= this.#size && this.#waiting <= this.#size / 2
    const rate = this.#taken / elapsed
    this.#taken = 0
    this.#measuredFrom = now
    if (this.#before !== undefined) this.#judge(limits ? rate : 0, this.#before, now, roundTrip)
    else if (limits && now >= this.#restUntil) this.#try(rate, roundTrip)
  }

  #try(rate: number, roundTrip: number): void {
    const size = this.#direction === 'up' ? this.#size * 2 : this.#size / 2
    if (size > this.#limits.cap || size < this.#limits.floor) {
      this.#turn()
      return
    }
    this.#before = { size: this.#size, rate }
    this.#size = size
    // what is on its way was allowed by the window before
    this.#measuredFrom += roundTrip
  }

  #judge(rate: number, before: { size: number; rate: number }, now: number, roundTrip: number): void {
    this.#before = undefined
    if (rate >= before.rate * (this.#direction === 'up' ? 1.15 : 0.9)) {
      this.#rest = 0
      this.#try(this.#direction === 'up' ? rate : before.rate, roundTrip)
      return
    }
    this.#size = before.size
    this.#turn()
    this.#rest = Math.min(Math.max(FIRST_REST, this.#rest * 2), LAST_REST)
    this.#restUntil = now + this.#rest
  }

  #turn(): void {
    this.#direction = this.#direction === 'up' ? 'down' : 'up'
  }
}
