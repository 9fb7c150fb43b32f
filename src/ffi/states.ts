/** The states of domains. Questions that come while others are on their way go together, in one call of libvirt. */
import koffi from 'koffi'
import type { DomainRef, DomainState } from '../driver.js'
import { VirError } from '../error.js'
import type { Connection } from './connection.js'
import { PATIENCE } from './lane.js'
import { fillIn } from './numbers.js'
import { intAt } from './typed-params.js'

/** domains of one call */
const MOST = 256
const STATS_STATE = 1 // VIR_DOMAIN_STATS_STATE

/** struct _virDomainStatsRecord (libvirt-domain.h) */
const statsRecord = koffi.struct({ dom: 'void *', params: 'void *', nparams: 'int' })

interface RawRecord {
  dom: bigint
  params: bigint
  nparams: number
}

/** All who ask for the state of one domain at a time. */
interface Question {
  /** the handle, which those who ask hold */
  domain: bigint
  askers: { resolve: (state: DomainState) => void; reject: (error: unknown) => void }[]
}

/** by UUID */
type Questions = Map<string, Question>

export class States {
  readonly #conn: Connection
  readonly #waiting: Questions = new Map()
  /** on their way, and not for long: what is asked meanwhile waits for their answer, and goes together */
  #under: Questions | undefined
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
    if (!this.#tellsMany || this.#slow.has(uuid)) return this.#askOne(domain)
    return new Promise((resolve, reject) => {
      const { askers } = this.#waiting.get(uuid) ?? this.#add(uuid, domain)
      askers.push({ resolve, reject })
      this.#next()
    })
  }

  #add(uuid: string, domain: bigint): Question {
    const question = { domain, askers: [] }
    this.#waiting.set(uuid, question)
    return question
  }

  #next(): void {
    if (this.#settling || this.#waiting.size === 0) return
    if (this.#under === undefined) {
      const questions: Questions = new Map([...this.#waiting].slice(0, MOST))
      for (const uuid of questions.keys()) this.#waiting.delete(uuid)
      this.#under = questions
      void this.#answer(questions).then(() => this.#answered(questions))
    }
    if (this.#waiting.size > 0) this.#timer ??= setTimeout(() => this.#late(), PATIENCE).unref()
  }

  #answered(questions: Questions): void {
    if (this.#under === questions) {
      this.#under = undefined
      clearTimeout(this.#timer)
      this.#timer = undefined
      this.#settle(questions.size > 1)
    } else {
      for (const uuid of questions.keys()) this.#slow.delete(uuid)
    }
  }

  /** Many who are answered may ask again, all in turn: the first of them waits for the others. */
  #settle(many: boolean): void {
    this.#settling = many
    if (many) setImmediate(() => this.#settle(false))
    else this.#next()
  }

  #late(): void {
    this.#timer = undefined
    for (const uuid of this.#under?.keys() ?? []) this.#slow.add(uuid)
    this.#under = undefined
    this.#next()
  }

  async #answer(questions: Questions): Promise<void> {
    const known = questions.size > 1 ? await this.#askMany(questions) : new Map<string, DomainState>()
    const answers = [...questions].map(async ([uuid, { domain, askers }]) => {
      try {
        const state = known.get(uuid) ?? (await this.#askOne(domain))
        for (const { resolve } of askers) resolve({ ...state })
      } catch (error) {
        for (const { reject } of askers) reject(error)
      }
    })
    await Promise.all(answers)
  }

  async #askOne(domain: bigint): Promise<DomainState> {
    const out = fillIn(8)
    await this.#conn.call('virDomainGetState', domain, out.bytes.subarray(0, 4), out.bytes.subarray(4), 0)
    return { state: out.int(0), reason: out.int(4) }
  }

  /** Of those that libvirt tells of: none that is gone, and nothing where its driver cannot; asked alone, each gets its reason. */
  async #askMany(questions: Questions): Promise<Map<string, DomainState>> {
    const domains = BigUint64Array.of(...[...questions.values()].map(({ domain }) => domain), 0n)
    const out = fillIn(8)
    try {
      const list = new Uint8Array(domains.buffer)
      const count = await this.#conn.call('virDomainListGetStats', list, STATS_STATE, out.bytes, 0)
      return this.#read(out.address(0), count)
    } catch (error) {
      if (error instanceof VirError && error.code === 'VIR_ERR_NO_SUPPORT') this.#tellsMany = false
      return new Map()
    }
  }

  #read(list: bigint, count: number): Map<string, DomainState> {
    const states = new Map<string, DomainState>()
    for (let nth = 0; nth < count; nth++) {
      const at = koffi.decode(list + BigInt(nth * 8), 'void *') as bigint
      const { dom, params, nparams } = koffi.decode(at, statsRecord) as RawRecord
      const [state, reason] = [intAt(params, nparams, 'state.state'), intAt(params, nparams, 'state.reason')]
      if (state !== undefined && reason !== undefined) states.set(this.#conn.uuidOf(dom), { state, reason })
    }
    // its handles are not the last on the connection: those who ask hold theirs
    this.#conn.lib.now('virDomainStatsRecordListFree', list)
    return states
  }
}
