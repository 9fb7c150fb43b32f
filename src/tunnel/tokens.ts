import { createHash, randomBytes } from 'node:crypto'

interface Entry<T> {
  context: T
  expires: number
  timer: NodeJS.Timeout
}

/** One-time tokens: whoever shows one is let in once, in the context that it was given out for. */
export class Tokens<T> {
  /** by hash, so that looking one up takes no time that would tell how much of it was right */
  readonly #entries = new Map<string, Entry<T>>()

  get size(): number {
    return this.#entries.size
  }

  /** A new token, good for `lifetime` ms (default: one minute). */
  issue(context: T, lifetime = 60_000): string {
    const token = randomBytes(32).toString('base64url')
    const key = keyOf(token)
    const timer = setTimeout(() => this.#entries.delete(key), lifetime)
    timer.unref()
    this.#entries.set(key, { context, expires: performance.now() + lifetime, timer })
    return token
  }

  /** What it was given out for; undefined when it is unknown, used or too old. It is used up then. */
  redeem(token: string): T | undefined {
    const entry = this.#take(token)
    return entry === undefined || performance.now() > entry.expires ? undefined : entry.context
  }

  revoke(token: string): void {
    this.#take(token)
  }

  #take(token: string): Entry<T> | undefined {
    const key = keyOf(token)
    const entry = this.#entries.get(key)
    this.#entries.delete(key)
    clearTimeout(entry?.timer)
    return entry
  }
}

function keyOf(token: string): string {
  return createHash('sha256').update(token).digest('base64')
}
