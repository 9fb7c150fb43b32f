/** The states of domains. Questions that come while others are on their way go together, in one call of libvirt. */
import type { DomainRef, DomainState } from '../driver.js'
import { VirError } from '../error.js'
import type { Connection } from './connection.js'
import { PATIENCE } from './lane.js'
import { fillIn } from './numbers.js'

/** domains of one call */
const MOST = 256
/** calls on their way at a time: libvirt is busy with one while the answers of another are dealt with */
const AT_ONCE = 2
/** domains for which a second call pays: each has its own cost at both ends */
const LEAST = 16
const STATS_STATE = 1 // VIR_DOMAIN_STATS_STATE
const NUMBERS = ['state.state', 'state.reason']

/** All who ask for the state of one domain at a time. */
interface Question {
  uuid: string
  /** the handle, which those who ask hold */
  domain: bigint
  askers: { resolve: (state: DomainState) => void; reject: (error: unknown) => void }[]
}

/** Questions that go together. */
interface Batch {
  questions: readonly Question[]
  /** by the clock of `performance` */
  since: number
}

export class States {
  readonly #conn: Connection
  /** by UUID */
  readonly #waiting = new Map<string, Question>()
  /** on their way, and not for long: what is asked meanwhile waits for their answer, and goes together */
  readonly #under = new Set<Batch>()
  /** domains of calls that take their time: others do not go together with them, since they would have to wait too */
  readonly #slow = new Set<string>()
  #settling = false
  #timer: NodeJS.Timeout | undefined
  /** the driver at the other side tells the states of many domains in one call, as far as is known */
  #tellsMany = true

  constructor(conn: Connection) {
    this.#conn = conn
  }

  /** As it is at some moment after the question. */
  ask({ uuid }: DomainRef, domain: bigint): Promise<DomainState> {
    if (this.#conn.here || !this.#tellsMany || this.#slow.has(uuid)) return this.#askOne(domain)
    return new Promise((resolve, reject) => {
      const { askers } = this.#waiting.get(uuid) ?? this.#add(uuid, domain)
      askers.push({ resolve, reject })
      this.#next()
    })
  }

  #add(uuid: string, domain: bigint): Question {
    const question = { uuid, domain, askers: [] }
    this.#waiting.set(uuid, question)
    return question
  }

  #next(): void {
    if (this.#settling) return
    while (this.#mayGo()) {
      const batch = { questions: this.#take(), since: performance.now() }
      this.#under.add(batch)
      void this.#answer(batch.questions).then(() => this.#answered(batch))
    }
    if (this.#waiting.size > 0) this.#timer ??= setTimeout(() => this.#late(), PATIENCE).unref()
  }

  #mayGo(): boolean {
    if (this.#under.size === 0) return this.#waiting.size > 0
    return this.#under.size < AT_ONCE && this.#waiting.size >= LEAST
  }

  /** The share of one call of all that are not answered. */
  #take(): Question[] {
    const known = [...this.#under].reduce((sum, { questions }) => sum + questions.length, this.#waiting.size)
    const share = Math.min(MOST, Math.max(LEAST, Math.ceil(known / AT_ONCE)))
    const taken: Question[] = []
    for (const question of this.#waiting.values()) {
      if (taken.length === share) break
      taken.push(question)
      this.#waiting.delete(question.uuid)
    }
    return taken
  }

  #answered(batch: Batch): void {
    if (this.#under.delete(batch)) this.#settle(batch.questions.length > 1)
    else for (const { uuid } of batch.questions) this.#slow.delete(uuid)
  }

  /** Many who are answered may ask again, all in turn: the first of them waits for the others. */
  #settle(many: boolean): void {
    if (!many) this.#next()
    else if (!this.#settling) {
      this.#settling = true
      process.nextTick(() => {
        this.#settling = false
        this.#next()
      })
    }
  }

  #late(): void {
    this.#timer = undefined
    const late = performance.now() - PATIENCE
    for (const batch of this.#under) {
      if (batch.since > late) continue
      for (const { uuid } of batch.questions) this.#slow.add(uuid)
      this.#under.delete(batch)
    }
    this.#next()
  }

  async #answer(questions: readonly Question[]): Promise<void> {
    const numbers = questions.length > 1 ? await this.#askMany(questions) : []
    const left: Promise<void>[] = []
    for (const [nth, question] of questions.entries()) {
      const [state = NaN, reason = NaN] = [numbers[nth * 2], numbers[nth * 2 + 1]]
      if (Number.isNaN(state) || Number.isNaN(reason)) left.push(this.#answerOne(question))
      else for (const { resolve } of question.askers) resolve({ state, reason })
    }
    await Promise.all(left)
  }

  async #answerOne({ domain, askers }: Question): Promise<void> {
    try {
      const state = await this.#askOne(domain)
      for (const { resolve } of askers) resolve({ ...state })
    } catch (error) {
      for (const { reject } of askers) reject(error)
    }
  }

  async #askOne(domain: bigint): Promise<DomainState> {
    const out = fillIn(8)
    await this.#conn.call('virDomainGetState', domain, out.bytes.subarray(0, 4), out.bytes.subarray(4), 0)
    return { state: out.int(0), reason: out.int(4) }
  }

  /** Two numbers of each: none of one that is gone, and none at all where the driver cannot; asked alone, each gets its reason. */
  async #askMany(questions: readonly Question[]): Promise<ArrayLike<number>> {
    try {
      return await this.#conn.numbers(questions, STATS_STATE, NUMBERS)
    } catch (error) {
      if (error instanceof VirError && error.code === 'VIR_ERR_NO_SUPPORT') this.#tellsMany = false
      return []
    }
  }
}
