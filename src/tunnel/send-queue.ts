/** What waits to be sent: short frames of the link first, then the channels in turn, those with little to say before others. */
import { creditPayload } from './payloads.js'
import { DATA_SIZE, frame, frameHeader, frameTypes, HEADER_SIZE } from './framing.js'

/** Bytes that a channel may send in its turn. */
const QUANTUM = 64 * 1024
/** Shorter pieces than this are not made of what waits. */
const LEAST = 4096
/** One channel's bytes on their way out. */
export class Outgoing {
  readonly id: number
  /** bytes that the other side takes */
  credit: number
  readonly #parts: Buffer[] = []
  #length = 0
  /** what the channel may still send in this turn */
  deficit = 0
  isListed = false
  /** FIN goes out after the bytes */
  finishing = false
  finished = false
  sent = 0
  /** called once all bytes have gone out, and FIN, if that was asked for */
  onEmpty: (() => void) | undefined

  constructor(id: number, credit: number) {
    this.id = id
    this.credit = credit
  }

  get length(): number {
    return this.#length
  }

  /** It has something to send and may. */
  get isReady(): boolean {
    return this.#length > 0 ? this.credit > 0 : this.finishing && !this.finished
  }

  push(parts: readonly Buffer[]): void {
    for (const part of parts) {
      if (part.length === 0) continue
      this.#parts.push(part)
      this.#length += part.length
    }
  }

  take(count: number): Buffer[] {
    const taken: Buffer[] = []
    let wanted = count
    while (wanted > 0) {
      const first = this.#parts[0]
      if (first === undefined) break
      taken.push(first.subarray(0, wanted))
      if (first.length > wanted) this.#parts[0] = first.subarray(wanted)
      else this.#parts.shift()
      wanted -= Math.min(wanted, first.length)
    }
    this.#length -= count - wanted
    return taken
  }
}

/** Who is next. After fq_codel: a channel that begins to send goes before those that have been sending. */
export class SendQueue {
  #short: Buffer[] = []
  #shortBytes = 0
  readonly #credits = new Map<number, number>()
  readonly #fresh: Outgoing[] = []
  readonly #rotation: Outgoing[] = []

  /** Bytes of frames that are not DATA. */
  get shortBytes(): number {
    return this.#shortBytes
  }

  /** A frame that is not DATA. */
  pushShort(bytes: Buffer): void {
    this.#short.push(bytes)
    this.#shortBytes += bytes.length
  }

  /** Credit of one channel adds up until it can go. */
  pushCredit(channel: number, bytes: number): void {
    this.#credits.set(channel, (this.#credits.get(channel) ?? 0) + bytes)
  }

  /** The channel may have something to send now; `waited`: for credit, as those who send much do. */
  activate(channel: Outgoing, waited: boolean): void {
    if (channel.isListed || !channel.isReady) return
    channel.isListed = true
    channel.deficit = QUANTUM
    if (waited) this.#rotation.push(channel)
    else this.#fresh.push(channel)
  }

  remove(channel: Outgoing): void {
    this.#credits.delete(channel.id)
    for (const list of [this.#fresh, this.#rotation]) {
      const at = list.indexOf(channel)
      if (at >= 0) list.splice(at, 1)
    }
    channel.isListed = false
  }

  /** Bytes to send now, about `budget` of them; short frames go in any case. */
  pull(budget: number): Buffer[] {
    const out = this.#short
    let left = budget - this.#shortBytes
    this.#short = []
    this.#shortBytes = 0
    for (const [channel, bytes] of this.#credits) {
      out.push(frame(frameTypes.credit, channel, creditPayload(bytes)))
      left -= HEADER_SIZE + 4
    }
    this.#credits.clear()
    while (left > 0) {
      const list = this.#fresh.length > 0 ? this.#fresh : this.#rotation
      const channel = list.shift()
      if (channel === undefined) break
      left -= this.#serve(channel, list === this.#fresh, left, out)
    }
    return out
  }

  #serve(channel: Outgoing, fresh: boolean, budget: number, out: Buffer[]): number {
    if (channel.deficit <= 0) {
      channel.deficit += QUANTUM
      this.#rotation.push(channel)
      return 0
    }
    const count = Math.min(channel.length, channel.credit, channel.deficit, DATA_SIZE, Math.max(budget, LEAST))
    if (count > 0) {
      out.push(frameHeader(frameTypes.data, channel.id, count), ...channel.take(count))
      channel.credit -= count
      channel.deficit -= count
      channel.sent += count
    }
    if (channel.length === 0) this.#emptied(channel, out)
    if (channel.isReady && channel.deficit > 0) (fresh ? this.#fresh : this.#rotation).unshift(channel)
    // one that was quick stays on the list once, so that it can't be quick for ever
    else if (channel.isReady || fresh) this.#rotation.push(channel)
    else channel.isListed = false
    return count + HEADER_SIZE
  }

  #emptied(channel: Outgoing, out: Buffer[]): void {
    if (channel.finishing && !channel.finished) {
      channel.finished = true
      out.push(frame(frameTypes.fin, channel.id))
    }
    const { onEmpty } = channel
    channel.onEmpty = undefined
    onEmpty?.()
  }
}
