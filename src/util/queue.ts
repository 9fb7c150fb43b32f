/** How a queue makes room when its reader is slow. */
export interface QueueRules<T> {
  /** how many items wait at most; at least 1 */
  bound: number
  /** past the bound, of the items with one key only the newest stays; undefined: an item of its own */
  keyOf(item: T): string | undefined
  /** past the bound, the oldest item of the lowest rank is dropped first */
  rankOf(item: T): number
  /** what the reader gets in place of items that were dropped */
  gap(dropped: number): T
}

/**
 * Items on their way to one reader. Writing never waits and never throws; a slow reader costs at most `bound` items of
 * memory, and reads a gap where something was dropped. Reading is async iteration; `return()` gives the queue up.
 */
export class BoundedQueue<T> implements AsyncIterableIterator<T, undefined> {
  readonly #rules: QueueRules<T>
  readonly #onReturn: () => void
  readonly #waiting: ((result: IteratorResult<T, undefined>) => void)[] = []
  #items: T[] = []
  /** the gap stands before the item of this index; only while #dropped > 0 */
  #gapAt = 0
  #dropped = 0
  #closed = false

  /** `onReturn`: the reader has given up. */
  constructor(rules: QueueRules<T>, onReturn: () => void = () => undefined) {
    this.#rules = rules
    this.#onReturn = onReturn
  }

  get length(): number {
    return this.#items.length + (this.#dropped > 0 ? 1 : 0)
  }

  push(item: T): void {
    if (this.#closed) return
    const waiting = this.#waiting.shift()
    if (waiting !== undefined) waiting({ done: false, value: item })
    else if (this.#items.length < this.#rules.bound || this.#makeRoom(item)) this.#items.push(item)
  }

  /** No more items come; what waits can still be read. */
  close(): void {
    this.#closed = true
    for (const waiting of this.#waiting.splice(0)) waiting({ done: true, value: undefined })
  }

  next(): Promise<IteratorResult<T, undefined>> {
    if (this.#dropped > 0 && this.#gapAt === 0) {
      const dropped = this.#dropped
      this.#dropped = 0
      return Promise.resolve({ done: false, value: this.#rules.gap(dropped) })
    }
    if (this.#items.length > 0) {
      const [value] = this.#items.splice(0, 1) as [T]
      this.#gapAt -= 1
      return Promise.resolve({ done: false, value })
    }
    if (this.#closed) return Promise.resolve({ done: true, value: undefined })
    return new Promise((resolve) => this.#waiting.push(resolve))
  }

  return(): Promise<IteratorResult<T, undefined>> {
    this.close()
    this.#items = []
    this.#dropped = 0
    this.#onReturn()
    return Promise.resolve({ done: true, value: undefined })
  }

  [Symbol.asyncIterator](): this {
    return this
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.return()
  }

  /** False when it is `item` itself that has to go. */
  #makeRoom(item: T): boolean {
    this.#compact(this.#rules.keyOf(item))
    if (this.#items.length < this.#rules.bound) return true
    const ranks = this.#items.map((candidate) => this.#rules.rankOf(candidate))
    const lowest = Math.min(...ranks)
    const itself = this.#rules.rankOf(item) < lowest
    this.#leaveGap(itself ? this.#items.length : ranks.indexOf(lowest))
    return !itself
  }

  /** Keeps the newest item of each key; none of `newerKey`, of which a newer one is about to come. */
  #compact(newerKey: string | undefined): void {
    const seen = new Set(newerKey === undefined ? [] : [newerKey])
    for (let index = this.#items.length - 1; index >= 0; index -= 1) {
      const key = this.#rules.keyOf(this.#items[index] as T)
      if (key === undefined) continue
      if (seen.has(key)) {
        this.#items.splice(index, 1)
        if (index < this.#gapAt) this.#gapAt -= 1
      }
      seen.add(key)
    }
  }

  /** Drops the item at `index`; there is one gap, where the first dropped item stood. */
  #leaveGap(index: number): void {
    this.#items.splice(index, 1)
    this.#gapAt = this.#dropped === 0 ? index : Math.min(this.#gapAt, index)
    this.#dropped += 1
  }
}
