/**
 * Pulls what only backing images hold into a disk's own image, by NBD_CMD_CACHE on a read-only export of it from the QEMU
 * that runs it: several requests at once, where QEMU's own job has one, which hides the latency of a remote base.
 */
import { setMaxListeners } from 'node:events'
import { setTimeout as delay } from 'node:timers/promises'
import type { NbdClient } from '../../nbd/client.js'
import { DEFAULT_UNIT, type Range, unitsAhead, unitsOf } from '../../nbd/allocation-depth.js'
import { NbdError } from '../../nbd/error.js'

/** ms between tries when the disk is full */
const RETRY = 2_000
/** ms of bandwidth that may be used at once after a pause */
const BURST = 100

export interface PullOptions {
  /** requests in flight */
  window: number
  /** bytes of one request; default DEFAULT_UNIT */
  unit?: number
  /** bytes/s, 0: no limit */
  bandwidth: number
  /** images deeper than this stay where they are; absent: all are pulled */
  maxDepth?: number
  /** all of one raw image behind a link is pulled: see `unitsAhead` */
  overLink?: boolean
  /** nothing below this offset is left to pull */
  start?: number
  /** a request failed: is it worth another try? Absent: never */
  isOutage?: () => Promise<boolean>
}

/** One pass over a disk. `position` only grows: everything below it is in the disk's own image. */
export class Puller {
  readonly #client: NbdClient
  readonly #options: PullOptions
  readonly #abort = new AbortController()
  readonly #flying = new Set<number>()
  #cursor = 0
  #paidUntil = performance.now()
  #failure: unknown
  #wait: AbortController | undefined
  #resting: { promise: Promise<void>; end: () => void } | undefined
  #walking = false
  /** requests that QEMU has answered */
  answered = 0
  /** the disk is full: requests are tried again until there is room */
  full = false
  /** the base is away: requests fail, and are tried again until it is back */
  stuck = false
  /** its server is shutting down */
  leaving = false

  constructor(client: NbdClient, options: PullOptions) {
    this.#client = client
    this.#options = options
    this.#cursor = options.start ?? 0
    // each request that waits for its next try listens
    setMaxListeners(0, this.#abort.signal)
  }

  get size(): number {
    return this.#client.size
  }
  get position(): number {
    return Math.min(this.#cursor, ...this.#flying)
  }
  /** requests that QEMU has not answered yet */
  get inFlight(): number {
    return this.#flying.size
  }
  /** something that QEMU was asked is not answered yet, or is about to be asked */
  get isBusy(): boolean {
    return this.#walking || this.#flying.size > 0
  }
  get aborted(): boolean {
    return this.#abort.signal.aborted
  }
  setBandwidth(bandwidth: number): void {
    this.#options.bandwidth = bandwidth
    this.#paidUntil = performance.now()
    this.#wait?.abort()
  }
  /** The base is away: QEMU has requests wait now, instead of failing them. */
  noticeOutage(): void {
    this.stuck = false
    this.leaving = false
  }
  /** While it rests no further requests are made. */
  rest(resting: boolean): void {
    if (resting === (this.#resting !== undefined)) return
    this.#resting?.end()
    this.#resting = undefined
    if (!resting) return
    let end = (): void => undefined
    const promise = new Promise<void>((resolve) => (end = resolve))
    this.#resting = { promise, end }
  }
  /** No further requests; those in flight are answered or not, nobody waits for them. */
  abort(): void {
    this.#abort.abort()
  }

  /** Resolves when all is pulled, or to nothing done after `abort`. Rejects with the NbdError of a base that cannot be read. */
  async run(): Promise<void> {
    this.#walking = true
    try {
      await this.#walk()
    } finally {
      this.#walking = false
    }
  }

  async #walk(): Promise<void> {
    const workers = new Set<Promise<void>>()
    for await (const unit of this.#units()) {
      this.#cursor = unit.offset
      if (!(await this.#mayAsk(unit.length))) break
      this.#flying.add(unit.offset)
      this.#cursor = unit.offset + unit.length
      const worker = this.#pull(unit).finally(() => workers.delete(worker))
      workers.add(worker)
      if (workers.size >= this.#options.window) await this.#orAborted(Promise.race(workers))
    }
    if (!this.aborted) await this.#orAborted(Promise.all(workers))
    if (this.#failure !== undefined) throw this.#failure instanceof Error ? this.#failure : new Error('the pull failed')
    if (!this.aborted) this.#cursor = this.#client.size
  }

  #units(): AsyncGenerator<Range> {
    const { overLink, maxDepth, unit = DEFAULT_UNIT } = this.#options
    const from = { offset: this.#cursor, unit }
    return overLink === true ? unitsAhead(this.#client, from) : unitsOf(this.#client, { ...from, maxDepth })
  }

  /** Waits until a request of `bytes` may be made; false: no further ones. */
  async #mayAsk(bytes: number): Promise<boolean> {
    if (this.#failure === undefined && this.#resting !== undefined) await this.#orAborted(this.#resting.promise)
    if (this.#failure === undefined) await this.#pay(bytes)
    return !this.aborted && this.#failure === undefined
  }

  async #pull(unit: Range): Promise<void> {
    while (!this.aborted) {
      try {
        await this.#client.cache(unit.offset, unit.length)
        this.answered++
        this.full = false
        this.stuck = false
        this.leaving = false
        this.#flying.delete(unit.offset)
        return
      } catch (error) {
        const code = error instanceof NbdError ? error.code : undefined
        if (!(await this.#isPassing(code))) {
          if (!this.#abort.signal.aborted) this.#failure ??= error
          return
        }
        this.full = code === 'ENOSPC'
        this.leaving = code === 'ESHUTDOWN'
        this.stuck = code === 'EIO' || this.leaving
        await delay(RETRY, undefined, { signal: this.#abort.signal }).catch(() => undefined)
      }
    }
  }

  async #isPassing(code: string | undefined): Promise<boolean> {
    if (code === 'ENOSPC' || code === 'ESHUTDOWN') return true
    return code === 'EIO' && (await this.#options.isOutage?.()) === true
  }

  /** Waits until `bytes` are within the bandwidth. */
  async #pay(bytes: number): Promise<void> {
    const { bandwidth } = this.#options
    if (bandwidth === 0) return
    const now = performance.now()
    this.#paidUntil = Math.max(this.#paidUntil, now - BURST) + (bytes / bandwidth) * 1000
    const wait = this.#paidUntil - now
    if (wait <= 0) return
    this.#wait = new AbortController()
    const signal = AbortSignal.any([this.#abort.signal, this.#wait.signal])
    await delay(wait, undefined, { signal }).catch(() => undefined)
  }

  async #orAborted(promise: Promise<unknown>): Promise<void> {
    if (this.aborted) return
    let stop = (): void => undefined
    const aborted = new Promise<void>((resolve) => (stop = resolve))
    this.#abort.signal.addEventListener('abort', stop, { once: true })
    await Promise.race([promise, aborted])
    this.#abort.signal.removeEventListener('abort', stop)
  }
}
