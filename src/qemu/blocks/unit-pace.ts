/**
 * Single units share the bandwidth of all streams: who asks for one unit after the other waits before the next one for as
 * long as its share needs for the last one.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { failFrom } from '../../error.js'
import type { Allotment, BudgetMember, StreamBudget } from './budget.js'

/** ms; timers take no more than 31 bits of them */
const LONGEST_DELAY = 1_000_000

const fail = failFrom('VIR_FROM_QEMU')

export class UnitPaces {
  readonly #budget: StreamBudget
  readonly #byDisk = new Map<string, UnitPace>()
  constructor(budget: StreamBudget) {
    this.#budget = budget
  }

  /** Resolves when the last unit of the disk is paid for. `disk`: any name that is the same each time. */
  async wait(disk: string, signal?: AbortSignal): Promise<void> {
    await this.#byDisk.get(disk)?.wait(signal)
  }

  /** A unit of `bytes` was streamed. */
  charge(disk: string, bytes: number, weight: number): void {
    if (this.#budget.totalBandwidth === undefined) return
    const pace = this.#byDisk.get(disk) ?? new UnitPace(weight, this.#budget.arrive())
    pace.weight = weight
    pace.charge(bytes)
    if (this.#byDisk.has(disk)) return
    this.#byDisk.set(disk, pace)
    const leave = this.#budget.join(pace)
    void pace.paid().then(() => {
      this.#byDisk.delete(disk)
      leave()
    })
  }
}

/** The debt of one disk, paid at the speed of its share. */
class UnitPace implements BudgetMember {
  readonly arrival: number
  readonly bandwidth = 0
  readonly still = false
  readonly slotless = true
  readonly allotment: Allotment = { slot: true, share: 1 }
  weight: number
  #debt = 0
  #since = performance.now()
  #speed = 1
  #changed = new AbortController()

  constructor(weight: number, arrival: number) {
    this.weight = weight
    this.arrival = arrival
  }

  apply(): Promise<void> {
    this.#settle()
    this.#speed = this.allotment.share
    this.#changed.abort()
    this.#changed = new AbortController()
    return Promise.resolve()
  }

  charge(bytes: number): void {
    this.#settle()
    this.#debt += bytes
  }

  async paid(): Promise<void> {
    for (;;) {
      this.#settle()
      if (this.#debt <= 0) return
      const { signal } = this.#changed
      const ms = Math.min((this.#debt / this.#speed) * 1000, LONGEST_DELAY)
      await delay(ms, undefined, { signal, ref: false }).catch(() => undefined)
    }
  }

  async wait(signal?: AbortSignal): Promise<void> {
    let abort = (): void => undefined
    const aborted = new Promise<void>((resolve) => (abort = resolve))
    signal?.addEventListener('abort', abort, { once: true })
    await Promise.race([this.paid(), aborted])
    signal?.removeEventListener('abort', abort)
    if (signal?.aborted === true)
      throw fail('VIR_ERR_OPERATION_ABORTED', 'the stream was aborted while it waited for its turn', signal.reason)
  }

  #settle(): void {
    const now = performance.now()
    this.#debt = Math.max(0, this.#debt - ((now - this.#since) / 1000) * this.#speed)
    this.#since = now
  }
}
