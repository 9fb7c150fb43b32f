import { Silence } from './silence.js'

/** calls that the addon lets run at once: up to here none waits */
const AT_ONCE = 8
/** ms without any answer, after which more may go: calls that take their time must not hold up all others */
export const PATIENCE = 20

/** Looks after the calls of one connection, of which the addon lets a few run at a time. */
export class Lane {
  readonly #stretch: () => void
  readonly #silence: Silence
  #under = 0
  #timer: NodeJS.Timeout | undefined

  /** `stretch` lets one more run, if one waits. `ask` makes a call that is soon answered, `hangUp` has all of them fail. */
  constructor(stretch: () => void, ask: () => void, hangUp: () => void) {
    this.#stretch = stretch
    this.#silence = new Silence(() => this.#under > 0, ask, hangUp)
  }

  async watch<T>(call: Promise<T>): Promise<T> {
    this.#under += 1
    this.#silence.watch()
    if (this.#under > AT_ONCE) this.#timer ??= setInterval(this.#stretch, PATIENCE).unref()
    try {
      return await call
    } finally {
      this.#under -= 1
      this.#silence.heard()
      if (this.#under > AT_ONCE) this.#timer?.refresh()
      else this.#rest()
    }
  }

  /** The connection is closed: nothing is looked after, and nothing keeps it in memory. */
  end(): void {
    this.#silence.rest()
    this.#rest()
  }

  #rest(): void {
    if (this.#timer === undefined) return
    clearInterval(this.#timer)
    this.#timer = undefined
  }
}
