/**
 * What the streams of a root may have together: a bandwidth, shared by weight, and a number of streams at once. Whoever
 * moves the data of a stream is a member, whatever kind of stream it is, and is told by `apply` what it has got.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { messageOf } from '../../error.js'

/** `streams` of `etc/qemu.json`; what is absent or 0 has no limit. */
export interface StreamLimits {
  /** bytes/s of all streams together */
  totalBandwidth?: number
  /** streams under way at once */
  maxStreams?: number
}

/** What a member has got. */
export interface Allotment {
  /** it may move; without one it rests, or has not begun */
  slot: boolean
  /** bytes/s, 0: no limit */
  share: number
}

export interface BudgetMember {
  /** its place in the order of all streams; who came first is first */
  readonly arrival: number
  /** its part of the bandwidth, against the weights of the others */
  readonly weight: number
  /** bytes/s that it wants at most, 0: no limit */
  readonly bandwidth: number
  /** something else than the budget keeps it from moving, so it needs neither slot nor bandwidth now */
  readonly still: boolean
  /** it shares the bandwidth only, and its allotment has a slot from the beginning */
  readonly slotless?: boolean
  /** always the same object for the same stream */
  readonly allotment: Allotment
  /** the allotment is another one: whoever moves the data is to heed it. A rejection is logged */
  apply(): Promise<void>
}

/** ms that members whose shares grow wait for those whose shares shrink */
const MAKING_ROOM = 1_000

/**
 * Bytes/s for each of `members`, at least 1: `total` in proportion to the weights, but none gets more than its own
 * bandwidth; what it leaves goes to the others.
 */
export function shareOut(total: number, members: readonly { weight: number; bandwidth: number }[]): number[] {
  const shares = members.map(() => 0)
  let open = members.map(({ weight, bandwidth }, at) => ({ weight, bandwidth, at }))
  let rest = total
  for (;;) {
    const perWeight = rest / open.reduce((sum, { weight }) => sum + weight, 0)
    const content = open.filter(({ weight, bandwidth }) => bandwidth > 0 && bandwidth <= perWeight * weight)
    if (content.length === 0) {
      for (const { at, weight } of open) shares[at] = Math.max(1, Math.floor(perWeight * weight))
      return shares
    }
    for (const { at, bandwidth } of content) {
      shares[at] = bandwidth
      rest -= bandwidth
    }
    open = open.filter((member) => !content.includes(member))
  }
}

const inOrder = (a: BudgetMember, b: BudgetMember): number => a.arrival - b.arrival
const waits = ({ allotment, still }: BudgetMember): boolean => !allotment.slot && !still

/**
 * Gives slots to those that move or want to, first come first served, `taken` of `most` are somebody else's. Nobody who
 * moves loses his; who stands still does, and comes back into the order by his arrival.
 */
export function giveSlots(members: readonly BudgetMember[], most: number, taken = 0): void {
  const takers = members.filter(({ slotless }) => slotless !== true)
  for (const { allotment, still } of takers) if (still) allotment.slot = false
  let free = most - taken - takers.filter(({ allotment }) => allotment.slot).length
  for (const { allotment } of takers.filter(waits).toSorted(inOrder)) if (free-- > 0) allotment.slot = true
}

export class StreamBudget {
  readonly #limits: StreamLimits
  readonly #inBackground: (what: string, work: () => Promise<void>) => void
  readonly #warn: (text: string) => void
  #sources: (() => BudgetMember[])[] = []
  readonly #others = new Set<BudgetMember>()
  /** arrivals of streams that are on their way from one process to another */
  readonly #held = new Set<number>()
  #lastArrival = 0
  #open = false
  /** members whose allotment they have not been told yet, with the one that they know */
  readonly #changed = new Map<Allotment, { member: BudgetMember; before: Allotment }>()
  #telling = false

  constructor(
    limits: StreamLimits,
    log: { inBackground: (what: string, work: () => Promise<void>) => void; warn: (text: string) => void },
  ) {
    this.#limits = limits
    this.#inBackground = (what, work) => log.inBackground(what, work)
    this.#warn = (text) => log.warn(text)
  }

  /** bytes/s of all streams together; undefined: no limit */
  get totalBandwidth(): number | undefined {
    return this.#limits.totalBandwidth === 0 ? undefined : this.#limits.totalBandwidth
  }
  /** undefined: no limit */
  get maxStreams(): number | undefined {
    return this.#limits.maxStreams === 0 ? undefined : this.#limits.maxStreams
  }
  /** Between opening and closing of the root: slots are given out only then. */
  get isOpen(): boolean {
    return this.#open
  }

  /** All streams that an earlier process left are known to `source`; from now on their order counts. */
  open(source: () => BudgetMember[]): void {
    this.#sources = [source, () => [...this.#others]]
    this.#open = true
    for (const { allotment } of this.#members()) allotment.slot = false
    this.update()
  }
  close(): void {
    this.#open = false
  }

  /** The place of a stream that comes now. */
  arrive(): number {
    this.#lastArrival = Math.max(this.#lastArrival, ...this.#members().map(({ arrival }) => arrival)) + 1
    return this.#lastArrival
  }

  /** Takes part until the function that it answers is called. */
  join(member: BudgetMember): () => void {
    this.#others.add(member)
    this.update()
    return () => {
      this.#others.delete(member)
      this.update()
    }
  }

  /** Keeps the slot of a stream that goes on elsewhere, until `letGo`. */
  hold(arrival: number): void {
    this.#held.add(arrival)
  }
  letGo(arrival: number): void {
    if (this.#held.delete(arrival)) this.update()
  }

  /** How many streams have a slot before this one: 1 is the next; undefined: it does not wait for one. */
  placeOf(allotment: Allotment): number | undefined {
    const at = this.#members()
      .filter(waits)
      .toSorted(inOrder)
      .findIndex((member) => member.allotment === allotment)
    return at === -1 ? undefined : at + 1
  }

  /** After anything that could change who gets what. The allotments are right when it returns, and are told soon. */
  update(): void {
    if (!this.#open) return
    const members = this.#members()
    const before = members.map(({ allotment }) => ({ ...allotment }))
    this.#allot(members)
    members.forEach((member, i) => {
      const was = before[i]
      const { allotment } = member
      if (was === undefined || (was.slot === allotment.slot && was.share === allotment.share)) return
      this.#changed.set(allotment, { member, before: this.#changed.get(allotment)?.before ?? was })
    })
    if (this.#changed.size === 0 || this.#telling) return
    this.#telling = true
    this.#inBackground('sharing among the streams', () => this.#tell())
  }

  #members(): BudgetMember[] {
    return this.#sources.flatMap((source) => source())
  }

  #allot(members: readonly BudgetMember[]): void {
    const { totalBandwidth, maxStreams } = this
    if (totalBandwidth === undefined && maxStreams === undefined) {
      for (const { allotment, bandwidth } of members) Object.assign(allotment, { slot: true, share: bandwidth })
      return
    }
    giveSlots(members, maxStreams ?? Infinity, this.#held.size)
    const sharing = members.filter(({ allotment, still }) => allotment.slot && !still)
    const shares = totalBandwidth === undefined ? undefined : shareOut(totalBandwidth, sharing)
    sharing.forEach(({ allotment, bandwidth }, i) => (allotment.share = shares?.[i] ?? bandwidth))
  }

  /** Those that get less are told first, so that there is room for those that get more. */
  async #tell(): Promise<void> {
    // whoever has caused a change may tell about it himself
    await Promise.resolve()
    while (this.#changed.size > 0) {
      const changes = [...this.#changed.values()]
      this.#changed.clear()
      const shrinks = changes.filter(({ member, before }) => speed(member.allotment) < speed(before))
      const grows = changes.filter((change) => !shrinks.includes(change))
      const shrunk = Promise.all(shrinks.map(({ member }) => this.#apply(member)))
      await Promise.race([shrunk, delay(MAKING_ROOM, undefined, { ref: false })])
      await Promise.race([
        Promise.all(grows.map(({ member }) => this.#apply(member))),
        delay(MAKING_ROOM, undefined, { ref: false }),
      ])
    }
    this.#telling = false
  }

  async #apply(member: BudgetMember): Promise<void> {
    try {
      await member.apply()
    } catch (error) {
      this.#warn(`a stream was not told its share of the bandwidth: ${messageOf(error)}`)
    }
  }
}

const speed = ({ slot, share }: Allotment): number => (!slot ? 0 : share === 0 ? Infinity : share)
