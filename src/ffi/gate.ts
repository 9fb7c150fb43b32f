/** calls of one connection under way at once: more make no server answer sooner, and threads in each other's way */
const AT_ONCE = 8
/** ms without any answer, after which one more may go: calls that take their time must not hold up all others */
const PATIENCE = 20

/** Lets calls through a few at a time, in their order. */
export class Gate {
  readonly #waiting: (() => void)[] = []
  #allowed = AT_ONCE
  #inside = 0
  #timer: NodeJS.Timeout | undefined

  async run<T>(call: () => Promise<T>): Promise<T> {
    if (this.#inside >= this.#allowed) await this.#turn()
    else this.#inside += 1
    try {
      return await call()
    } finally {
      this.#leave()
    }
  }

  #turn(): Promise<void> {
    this.#timer ??= setTimeout(() => this.#stretch(), PATIENCE)
    return new Promise((resolve) => this.#waiting.push(resolve))
  }

  #leave(): void {
    this.#allowed = Math.max(AT_ONCE, this.#allowed - 1)
    this.#restart()
    const next = this.#inside <= this.#allowed ? this.#waiting.shift() : undefined
    if (next === undefined) this.#inside -= 1
    else next()
  }

  /** Nothing has been answered for a while. */
  #stretch(): void {
    this.#timer = undefined
    const next = this.#waiting.shift()
    if (next === undefined) return
    this.#allowed += 1
    this.#inside += 1
    next()
    this.#restart()
  }

  #restart(): void {
    if (this.#waiting.length === 0) {
      clearTimeout(this.#timer)
      this.#timer = undefined
    } else if (this.#timer === undefined) this.#timer = setTimeout(() => this.#stretch(), PATIENCE)
    else this.#timer.refresh()
  }
}
