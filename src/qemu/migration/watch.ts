/** What a QEMU says about the migration that it is in, as it says it. */
import { setTimeout as delay } from 'node:timers/promises'
import type { MigrationStatus } from '../monitor/migration-commands.js'
import type { Live } from '../core/vm.js'

/** 'gone': the QEMU is; 'closed': nobody watches any more */
export type Seen = MigrationStatus | 'gone' | 'closed'

const ENDS: readonly Seen[] = ['completed', 'failed', 'cancelled', 'gone', 'closed']

/** From its making on it keeps every status in order, until somebody asks. */
export class MigrationWatch {
  readonly #seen: Seen[] = []
  readonly #live: Live
  #wake: () => void = () => undefined

  constructor(live: Live) {
    this.#live = live
    live.onMigration = this.#heard
    void live.ended.then(() => this.#take('gone'))
  }

  readonly #heard = (status: string): void => this.#take(status as Seen)

  /** What it is in now counts as said, for who comes later than the events did. */
  now(status: MigrationStatus): void {
    this.#take(status)
  }

  #take(status: Seen): void {
    this.#seen.push(status)
    this.#wake()
  }

  /** The next status that is wanted, or that is the end of it all. Undefined when `timeout` ms went by without one. */
  async until(wanted: readonly Seen[], timeout = Infinity): Promise<Seen | undefined> {
    const end = performance.now() + timeout
    for (;;) {
      for (let seen = this.#seen.shift(); seen !== undefined; seen = this.#seen.shift())
        if (wanted.includes(seen) || ENDS.includes(seen)) return seen
      const left = end - performance.now()
      if (left <= 0) return undefined
      const stop = new AbortController()
      const late =
        timeout === Infinity ? undefined : delay(left, undefined, { signal: stop.signal }).catch(() => undefined)
      const woken = new Promise<void>((resolve) => (this.#wake = resolve))
      await (late === undefined ? woken : Promise.race([woken, late]))
      stop.abort()
    }
  }

  isClosed = false

  close(): void {
    this.isClosed = true
    if (this.#live.onMigration === this.#heard) delete this.#live.onMigration
    this.#take('closed')
  }
}
