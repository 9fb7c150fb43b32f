/** ms between two looks */
const INTERVAL = 5_000
/** looks in a row without any answer before the server is asked whether it lives, and before it counts as gone */
const ASK = 2
const GIVE_UP = 8

/**
 * Notices that a server has fallen silent while calls wait for its answers, and hangs up, so that all of them fail. libvirt's
 * own keep-alive comes later, on purpose: in libvirt 9.0 it makes but one of several calls fail, the others wait for ever, and
 * the process crashes when the server moves again, since sources of its loop point to where that one call was.
 */
export class Silence {
  readonly #isWaiting: () => boolean
  readonly #ask: () => void
  readonly #hangUp: () => void
  /** looks since an answer came */
  #looks = 0
  #timer: NodeJS.Timeout | undefined

  /** `isWaiting`: is a call under way? `ask` makes one that every server answers soon. */
  constructor(isWaiting: () => boolean, ask: () => void, hangUp: () => void) {
    this.#isWaiting = isWaiting
    this.#ask = ask
    this.#hangUp = hangUp
  }

  /** A call has begun. */
  watch(): void {
    this.#timer ??= setInterval(() => this.#look(), INTERVAL).unref()
  }

  /** A call has ended. */
  heard(): void {
    this.#looks = 0
  }

  /** No call will begin any more, or none is under way. */
  rest(): void {
    clearInterval(this.#timer)
    this.#timer = undefined
    this.#looks = 0
  }

  #look(): void {
    if (!this.#isWaiting()) {
      this.rest()
      return
    }
    this.#looks += 1
    if (this.#looks === ASK) this.#ask()
    if (this.#looks >= GIVE_UP) this.#hangUp()
  }
}
