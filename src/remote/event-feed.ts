import type { DomainEvents } from '../api/event-hub.js'

/** lists of events that are on their way to a client at once */
const ON_THEIR_WAY = 16
/** events in one list */
const LIST_LENGTH = 100

/** Sends events to one client, as fast as it takes them; those that wait are bounded by the queue that they come from. */
export class EventFeed {
  readonly #events: DomainEvents
  readonly #send: (events: unknown[]) => Promise<unknown>
  readonly #pending = new Set<Promise<unknown>>()

  /** `send` resolves when the client has taken them, and rejects when it never will. */
  constructor(events: DomainEvents, send: (events: unknown[]) => Promise<unknown>) {
    this.#events = events
    this.#send = send
    void this.#run()
  }

  async close(): Promise<void> {
    await this.#events.return()
  }

  async #run(): Promise<void> {
    for (;;) {
      const first = await this.#events.next()
      if (first.done === true) return
      const list: unknown[] = [first.value]
      while (this.#events.length > 0 && list.length < LIST_LENGTH) list.push((await this.#events.next()).value)
      const sent: Promise<unknown> = this.#send(list).catch(() => undefined)
      this.#pending.add(sent)
      void sent.then(() => this.#pending.delete(sent))
      while (this.#pending.size >= ON_THEIR_WAY) await Promise.race(this.#pending)
    }
  }
}
