/** The PINGs of one end: round trips, and whether the other side still lives. */
import { protocolError, TunnelError } from './error.js'
import { RoundTrips } from './window.js'

/** While bulk comes, its effect on round trips is looked at every so many ms. */
const BUSY_INTERVAL = 50
const BUSY_BYTES = 256 * 1024
/** PINGs that may be without an answer; later ones are not sent */
const MOST = 16

export class Pings {
  readonly trips = new RoundTrips()
  readonly #now: () => number
  readonly #interval: number
  readonly #timeout: number
  /** when each that has no PONG yet was sent, oldest first */
  readonly #waiting: { id: bigint; at: number }[] = []
  #id = 0n
  #lastAt = -Infinity
  #bytes = 0
  #heard = false
  #silent = 0

  constructor(now: () => number, interval: number, timeout: number) {
    this.#now = now
    this.#interval = interval
    this.#timeout = timeout
  }

  /** Something came. */
  heard(): void {
    this.#heard = true
  }

  /** Bytes of channels came; true when a PING is due. */
  isDue(bytes: number): boolean {
    this.#bytes += bytes
    return this.#bytes >= BUSY_BYTES && this.#now() - this.#lastAt >= BUSY_INTERVAL
  }

  /**
   * To be called every `interval` ms. Throws ETIMEDOUT when nothing came for too long; counted in calls, so that a process
   * that slept does not take its own absence for the other side's.
   */
  tick(): void {
    this.#silent = this.#heard ? 0 : this.#silent + 1
    this.#heard = false
    const ms = this.#silent * this.#interval
    if (ms >= this.#timeout) throw new TunnelError('ETIMEDOUT', `nothing was heard from the other side for ${ms} ms`)
  }

  /** The payload of a PING to send; undefined when enough of them wait. */
  next(): Buffer | undefined {
    if (this.#waiting.length >= MOST) return undefined
    const payload = Buffer.alloc(8)
    payload.writeBigUInt64BE(this.#id)
    this.#lastAt = this.#now()
    this.#waiting.push({ id: this.#id, at: this.#lastAt })
    this.#id += 1n
    this.#bytes = 0
    return payload
  }

  /** The payload of a PONG that came; answers the ms that it took. Throws EPROTO when it answers nothing. */
  answered(payload: Buffer): number {
    const ping = this.#waiting.shift()
    if (ping?.id !== payload.readBigUInt64BE()) throw protocolError('a PONG does not answer the oldest PING')
    const ms = this.#now() - ping.at
    this.trips.add(ms)
    return ms
  }
}
