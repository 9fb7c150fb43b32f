/** The lives of a stream, act by act; what was asked and what was answered is noted down for the judge. */
import { setTimeout as delay } from 'node:timers/promises'
import * as c from '../../src/index.js'
import { probeImage } from '../../src/storage/probe.js'
import { DISK, NAME, note, type Place } from './place.js'
import type { Plan } from './plan.js'

const MiB = 1024 * 1024
const POLL = 20
/** ms that a stream may be nowhere, on its way from one process to another */
const PATIENCE = 8_000
const LOST = 'there is no stream, and the image still has its base'
/** part of a disk after which a life takes its turn */
const TURN = 0.3

/** A connection that can be closed and opened again, and what it says. */
export class Stage {
  readonly plan: Plan
  readonly place: Place
  /** a Linux guest is up, or none was wanted */
  readonly ready: () => Promise<void>
  conn!: c.Connect
  dom!: c.Domain
  /** of streams that ended in another way than they should */
  failure: string | undefined

  constructor(plan: Plan, place: Place, ready: () => Promise<void>) {
    this.plan = plan
    this.place = place
    this.ready = ready
  }

  async open(): Promise<void> {
    this.conn = await c.Connect.open(this.place.uri)
    this.dom = await this.conn.domainLookupByName(NAME)
    void this.#listen(this.conn)
  }

  async #listen(conn: c.Connect): Promise<void> {
    for await (const event of conn.domainEvents())
      if (event.kind === 'block-job' && event.status === c.VIR_DOMAIN_BLOCK_JOB_FAILED)
        this.failure ??= event.error ?? 'failed without a reason'
  }

  async ask<T>(what: string, act: () => Promise<T>): Promise<T> {
    note(this.place, `asked ${what}`)
    const result = await act()
    note(this.place, `answered ${what}`)
    return result
  }

  create(): Promise<unknown> {
    const paused = this.plan.guest === 'linux' ? 0 : c.VIR_DOMAIN_START_PAUSED
    return this.ask('create', () => this.dom.create(paused)).then(this.ready)
  }

  stream(options: c.StreamOptions = {}): Promise<unknown> {
    const { engine, bandwidth } = this.plan
    const all = { engine, bandwidth, ...options }
    return this.ask('stream', () => this.dom.streamDisk(DISK, 0, c.VIR_STREAM_DISK_START, all))
  }

  /** Until that part of the disk is streamed, or all of it. */
  async reach(part: number): Promise<void> {
    let seen = performance.now()
    for (;;) {
      const [state] = await this.dom.streamDiskInfo()
      if (this.failure !== undefined) throw new Error(`the stream failed: ${this.failure}`)
      if (state === undefined ? await this.#isOver() : state.size > 0 && state.offset >= part * state.size) return
      if (state !== undefined) seen = performance.now()
      if (performance.now() - seen > PATIENCE || (state === undefined && (await this.#isDead()))) throw new Error(LOST)
      await delay(POLL)
    }
  }

  /** A stream of a domain that is to run has no other place to be. */
  async #isDead(): Promise<boolean> {
    const { life } = this.plan
    return !['offline', 'start-offline', 'continue'].includes(life) && !(await this.dom.isActive())
  }

  async end(): Promise<void> {
    await this.reach(2)
    note(this.place, 'answered end')
  }

  async #isOver(): Promise<boolean> {
    const { image, partialBase } = this.place
    return (await headerOf(image)) === (this.plan.life === 'partial' ? partialBase : undefined)
  }
}

/** What the image's header says that it is on top of. */
export async function headerOf(image: string): Promise<string | undefined> {
  const { backing } = await probeImage({ type: 'file', path: image, format: 'qcow2' })
  return backing?.string
}

export const lives: Readonly<Record<Plan['life'], (stage: Stage) => Promise<void>>> = {
  async stream(stage) {
    await stage.create()
    await stage.stream()
    await stage.end()
  },
  async boot(stage) {
    await stage.create()
    await stage.end()
  },
  async units(stage) {
    await stage.create()
    const { size } = stage.plan
    for (let offset = 0; offset < size;)
      offset = await stage.ask('unit', () =>
        stage.dom.streamDisk(DISK, offset, c.VIR_STREAM_DISK_ONE, { unit: 4 * MiB }),
      )
    await stage.end()
  },
  async stop(stage) {
    await stage.create()
    await stage.stream()
    await stage.reach(TURN)
    await stage.ask('stop', () => stage.dom.streamDisk(DISK, 0, c.VIR_STREAM_DISK_STOP))
    await stage.stream()
    await stage.end()
  },
  async resume(stage) {
    await stage.create()
    await stage.stream()
    await stage.reach(TURN)
    await stage.ask('close', () => stage.conn.close())
    await stage.ask('open', () => stage.open())
    await stage.end()
  },
  async partial(stage) {
    await stage.create()
    await stage.stream({ base: stage.place.partialBase })
    await stage.end()
  },
  async offline(stage) {
    await stage.stream()
    await stage.end()
  },
  async 'start-offline'(stage) {
    await stage.stream()
    await stage.reach(TURN)
    await stage.create()
    await stage.end()
  },
  async continue(stage) {
    await stage.create()
    await stage.stream({ onShutdown: 'continue' })
    await stage.reach(TURN)
    await stage.ask('destroy', () => stage.dom.destroy())
    await stage.end()
  },
}
