import type { Logger } from 'pino'
import type { CloseEvent, DomainEvent, DomainRef, OverflowEvent } from '../driver.js'
import { failFrom } from '../error.js'
import { BoundedQueue } from '../util/queue.js'
import type { Domain } from './domain.js'

const fail = failFrom('VIR_FROM_NONE')

type WithDomain<E> = E extends { readonly domain: DomainRef }
  ? Omit<E, 'domain'> & {
      /** the domain that it is about, as a handle */
      readonly domain: Domain
    }
  : never

/** What a listener hears, told apart by `kind`. */
export type ConnectEvent = WithDomain<DomainEvent> | OverflowEvent | CloseEvent
export type EventKind = ConnectEvent['kind']
export type EventOfKind<Kind extends EventKind> = Extract<ConnectEvent, { kind: Kind }>

export interface EventFilter<Kind extends EventKind = EventKind> {
  /** only what is about this domain */
  domain?: DomainRef | undefined
  /** only events of these kinds (and `overflow` and `close`, which everyone gets) */
  kinds?: readonly Kind[] | undefined
  /** how many events wait for a slow listener before some are dropped; default 1000 */
  bound?: number | undefined
}

/** Async iteration of events; over when the connection closes, given up by `break`, `return()` or `await using`. */
export type DomainEvents<Kind extends EventKind = EventKind> = BoundedQueue<EventOfKind<Kind | 'overflow' | 'close'>>

const DEFAULT_BOUND = 1000

/** Past the bound the lowest go first. */
function rankOf({ kind }: ConnectEvent): number {
  if (kind === 'close') return 3
  if (kind === 'lifecycle' || kind === 'block-job') return 2
  return kind === 'stream-progress' || kind === 'stream-unit' ? 0 : 1
}

/** Of the positions of one stream only the newest matters. */
function keyOf(event: ConnectEvent): string | undefined {
  return event.kind === 'stream-progress' ? `${event.domain.uuid} ${event.disk}` : undefined
}

interface Listener {
  wants: (event: DomainEvent) => boolean
  queue: BoundedQueue<ConnectEvent>
}

/** Brings the driver's events to every listener of a connection; each has a bounded queue of its own. */
export class EventHub {
  readonly #logger: Logger
  readonly #toDomain: (ref: DomainRef) => Domain
  readonly #listeners = new Set<Listener>()
  readonly #pumps = new Map<EventKind, Map<unknown, BoundedQueue<ConnectEvent>>>()
  #closed = false

  constructor(logger: Logger, toDomain: (ref: DomainRef) => Domain) {
    this.#logger = logger
    this.#toDomain = toDomain
  }

  /** Takes an event of the driver in: never waits, never throws. */
  emit(event: DomainEvent | OverflowEvent | CloseEvent): void {
    if (event.kind === 'overflow' || event.kind === 'close') {
      for (const { queue } of this.#listeners) queue.push(event)
      if (event.kind === 'close') this.close()
      return
    }
    let shown: ConnectEvent | undefined
    for (const { wants, queue } of this.#listeners) {
      if (!wants(event)) continue
      shown ??= Object.freeze({ ...event, domain: this.#toDomain(event.domain) })
      queue.push(shown)
    }
  }

  /** The listener is live when this returns. */
  listen<Kind extends EventKind = EventKind>(filter: EventFilter<Kind> = {}): DomainEvents<Kind> {
    const { domain, kinds, bound = DEFAULT_BOUND } = filter
    if (!Number.isSafeInteger(bound) || bound < 1)
      throw fail('VIR_ERR_INVALID_ARG', `bound of an event listener must be 1 or more, not ${bound}`)
    const uuid = domain?.uuid
    const wanted: ReadonlySet<string> | undefined = kinds && new Set(kinds)
    const rules = { bound, keyOf, rankOf, gap: (dropped: number) => ({ kind: 'overflow', dropped }) as const }
    const listener: Listener = {
      wants: (event) =>
        (uuid === undefined || event.domain.uuid === uuid) && (wanted === undefined || wanted.has(event.kind)),
      queue: new BoundedQueue<ConnectEvent>(rules, () => this.#listeners.delete(listener)),
    }
    if (this.#closed) listener.queue.close()
    else this.#listeners.add(listener)
    return listener.queue as DomainEvents<Kind>
  }

  /** Calls `listener` with each event of one kind; what it throws goes to the log. What it missed is said to 'overflow'. */
  on<Kind extends EventKind>(kind: Kind, listener: (event: EventOfKind<Kind>) => unknown): void {
    const pumps = this.#pumps.get(kind) ?? new Map<unknown, BoundedQueue<ConnectEvent>>()
    this.#pumps.set(kind, pumps)
    if (pumps.has(listener)) return
    const queue = this.listen({ kinds: [kind] }) as BoundedQueue<ConnectEvent>
    pumps.set(listener, queue)
    void this.#pump(kind, queue, listener as (event: ConnectEvent) => unknown)
  }

  off<Kind extends EventKind>(kind: Kind, listener: (event: EventOfKind<Kind>) => unknown): void {
    void this.#pumps.get(kind)?.get(listener)?.return()
    this.#pumps.get(kind)?.delete(listener)
  }

  close(): void {
    this.#closed = true
    for (const { queue } of this.#listeners) queue.close()
    this.#listeners.clear()
    this.#pumps.clear()
  }

  async #pump(kind: EventKind, queue: BoundedQueue<ConnectEvent>, listener: (event: ConnectEvent) => unknown) {
    for await (const event of queue) {
      if (event.kind === 'close' && kind !== 'close') continue
      if (event.kind === 'overflow' && kind !== 'overflow') {
        for (const overflow of this.#pumps.get('overflow')?.values() ?? []) overflow.push(event)
        continue
      }
      try {
        await listener(event)
      } catch (error) {
        this.#logger.error({ err: error, kind }, 'an event listener threw')
      }
    }
  }
}
