/**
 * Moves a Linux guest between two hosts, again and again, and kills somebody each time: the daemon of either host at a step
 * of its own, at a time, or where it writes down how far the migration is; either QEMU; who drives the migration.
 * `node dist/test/campaign/migrate.js [--seed N] [--runs N] [--from K] [--as-user]`.
 */
import { randomInt } from 'node:crypto'
import { chmodSync, existsSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { runProgram } from '../../scripts/program.js'
import { messageOf } from '../../src/error.js'
import {
  type Domain,
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_NON_SHARED_DISK,
  VIR_MIGRATE_POSTCOPY,
  VIR_MIGRATE_STREAM_DISKS,
} from '../../src/index.js'
import { run } from '../../src/util/run.js'
import { assertGivenBack, otherUser } from '../support/dac.js'
import { diskXml, guestXml } from '../support/domain.js'
import { Guest } from '../support/guest.js'
import { backingOf, type Cleanup, patternImage, type PatternImage, temporaryFolder } from '../support/images.js'
import { Host } from './migrate-hosts.js'
import type { Order } from './migrate-hook.js'
import { killAll } from './place.js'
import { random } from './plan.js'

const NAME = 'guest'
const MiB = 1024 * 1024
const SIZE = 16 * MiB
/** ms until everything must have come to its end, the kernel's and QEMU's own pauses included */
const SETTLED = 150_000

/** its disks follow; and it comes back; its disks go first; its memory follows, and its disks */
type Life = 'stream' | 'back' | 'mirror' | 'postcopy'
const FLAGS: Readonly<Record<Life, number>> = {
  stream: VIR_MIGRATE_STREAM_DISKS,
  back: VIR_MIGRATE_STREAM_DISKS,
  mirror: VIR_MIGRATE_NON_SHARED_DISK,
  postcopy: VIR_MIGRATE_STREAM_DISKS | VIR_MIGRATE_POSTCOPY,
}

type Victim = 'source' | 'destination' | 'source qemu' | 'destination qemu' | 'client'
type Moment = Order | { ms: number }

export interface Round {
  run: number
  life: Life
  victim: Victim
  moment: Moment
}

/** `asUser`: QEMUs that are another user may not have memory that follows. */
export function makeRound(seed: number, run: number, asUser: boolean): Round {
  const next = random(Math.imul(seed, 0x9e3779b1) ^ Math.imul(run + 1, 0x85ebca6b))
  const oneOf = <T>(values: readonly T[]): T => values[Math.floor(next() * values.length)] as T
  const lives = ['stream', 'stream', 'back', 'back', 'mirror'] as const
  const life = oneOf<Life>(asUser ? lives : [...lives, 'postcopy', 'postcopy'])
  const drivers = ['source', 'source', 'source', 'destination', 'destination', 'destination', 'client'] as const
  // where memory follows its guest a QEMU takes it along
  const victim = oneOf<Victim>(life === 'postcopy' ? drivers : [...drivers, 'source qemu', 'destination qemu'])
  const kind = next()
  const ms = Math.floor(next() * 4_000)
  const step = 1 + Math.floor(next() * 80)
  const record = 1 + Math.floor(next() * 6)
  const side = oneOf(['<', '>'] as const)
  const own = victim === 'source' || victim === 'destination'
  const moment: Moment = !own || kind < 0.25 ? { ms } : kind < 0.65 ? { record, side } : { step }
  return { run, life, victim, moment }
}

/** Two hosts and a guest on one of them. */
export class Theatre {
  readonly hosts: readonly [Host, Host]
  readonly #base: PatternImage
  readonly #xml: string
  /** index of the host that has the guest */
  #at = 0
  #hasGuest = false
  #keeping: NodeJS.Timeout | undefined
  /** sources end as soon as their guest has gone (`serve: 'external'`) */
  external = false

  private constructor(hosts: readonly [Host, Host], base: PatternImage, xml: string) {
    this.hosts = hosts
    this.#base = base
    this.#xml = xml
  }

  /** `asUser`: QEMUs are another user, and images are locked; needs root */
  static async open(t: Cleanup, asUser: boolean): Promise<Theatre> {
    const folder = await temporaryFolder(t)
    const base = await patternImage(folder, SIZE)
    const settings = asUser ? await userSettings(folder) : {}
    const hosts = [new Host(t, join(folder, 'a'), settings), new Host(t, join(folder, 'b'), settings)] as const
    const xml = await guestXml(hosts[0].folder, { name: NAME, devices: diskXml('vda', hosts[0].image) })
    const theatre = new Theatre(hosts, base, xml)
    t.after(() => theatre.close())
    for (const host of hosts) await host.start()
    return theatre
  }

  async close(): Promise<void> {
    clearInterval(this.#keeping)
    for (const host of this.hosts) await host.end()
  }

  get #source(): Host {
    return this.hosts[this.#at === 0 ? 0 : 1]
  }
  get #destination(): Host {
    return this.hosts[this.#at === 0 ? 1 : 0]
  }

  /** A fresh guest on the first host, where there is none. */
  async #boot(): Promise<void> {
    if (this.#hasGuest) return
    this.#at = 0
    const { image } = this.#source
    for (const host of this.hosts) rmSync(host.image, { force: true })
    await run('qemu-img', ['convert', '-O', 'qcow2', this.#base.path, image])
    await (await this.#source.conn()).domainCreateXML(this.#xml)
    using guest = await this.#guest()
    await guest.base('vda', this.#base.seed, this.#base.size)
    await guest.work('vda', 'slowly')
    this.#hasGuest = true
  }

  async #guest(): Promise<Guest> {
    const guest = await Guest.connect(this.#source.serial)
    await guest.ready()
    return guest
  }

  /** Rejects with what went wrong; answers whether somebody was killed, and at which step. */
  async play(round: Round): Promise<{ killed: boolean; words: string }> {
    await this.#boot()
    const [source, destination] = [this.#source, this.#destination]
    const { life } = round
    const own = round.victim === 'source' ? source : destination
    const before = own.lastWords.length
    if (!('ms' in round.moment)) own.order(round.moment)
    const kill = 'ms' in round.moment ? this.#killLater(round.victim, round.moment.ms) : undefined
    const keeping = setInterval(() => {
      for (const host of this.hosts) void host.keep()
    }, 100)
    this.#keeping = keeping
    const story = this.#act(round)
    const end = await Promise.race([story, delay(SETTLED, 'no answer', { ref: false })])
    const byTime = await kill
    for (const host of this.hosts) host.calm()
    await this.#settle(round)
    clearInterval(keeping)
    await this.#check()
    const lost = life === 'postcopy' && !this.#hasGuest ? ['the guest was lost'] : []
    const killed = byTime ?? own.lastWords.length > before
    return {
      killed: killed || round.victim === 'client',
      words: [...own.lastWords.slice(before), end, ...lost].join('; '),
    }
  }

  async #killLater(victim: Victim, ms: number): Promise<boolean> {
    const [source, destination] = [this.#source, this.#destination]
    await delay(ms)
    if (victim === 'source') return source.kill()
    if (victim === 'destination') return destination.kill()
    if (victim === 'source qemu') return killAll(source.qemus())
    if (victim === 'destination qemu') return killAll(destination.qemus())
    return false
  }

  /** What is tried, and how that ended; that it fails is no fault. */
  async #act({ life, victim, moment }: Round): Promise<string> {
    const [source, destination] = [this.#source, this.#destination]
    try {
      const dom = await (await source.conn()).domainLookupByName(NAME)
      const xml = await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)
      const params = {
        ...{ destinationXML: xml.replaceAll(source.folder, destination.folder), uri: destination.uri },
        ...(life !== 'mirror' && { diskStreamBandwidth: life === 'back' ? 2 * MiB : 8 * MiB }),
        ...(life !== 'mirror' && this.external && { serve: 'external' as const }),
        ...(life === 'postcopy' && { bandwidth: 8, bandwidthPostcopy: 16 }),
      }
      const going = dom.migrate(await destination.conn(), params, VIR_MIGRATE_LIVE | FLAGS[life])
      if (life === 'postcopy') void letMemoryFollow(dom).catch(() => undefined)
      if (victim === 'client' && 'ms' in moment) {
        going.catch(() => undefined)
        await delay(moment.ms / 2)
        for (const host of this.hosts) host.drop()
        return 'left alone'
      }
      await going
      if (life === 'back') await dom.abortJob()
      return 'done'
    } catch (error) {
      return messageOf(error)
    }
  }

  /** Until one host has the guest, or its QEMU was killed and none has, and nobody waits for anybody. */
  async #settle({ life, victim }: Round): Promise<void> {
    const end = performance.now() + SETTLED
    let last = ''
    for (;;) {
      try {
        const [a, b] = this.hosts
        const running = [await a.isRunning(NAME), await b.isRunning(NAME), await a.isRunning(NAME)]
        if (running.every(Boolean)) throw new TwoGuestsError()
        const left = [await a.left(), await b.left()]
        last = JSON.stringify({ running, left })
        // the domain and its QEMU, and nothing at the other host
        const alone = left.findIndex((names, at) => names.length === 2 && left[1 - at]?.length === 0)
        // one that was killed a moment ago may not have been missed yet
        if (running[alone] === true && this.hosts[alone]?.qemus().length === 1) {
          this.#at = alone
          return
        }
        const isLost = life === 'postcopy' && (await this.hosts[alone]?.endLost(NAME)) === true
        if (isLost || (victim.endsWith('qemu') && left.flat().length === 0)) {
          this.#hasGuest = false
          return
        }
      } catch (error) {
        if (error instanceof TwoGuestsError) throw error
        last = messageOf(error)
      }
      if (performance.now() > end) throw new Error(`not settled: ${last}`)
      await delay(100)
    }
  }

  /** Every block of the guest's disk is right, and it needs nobody; images that nobody has are their owner's again. */
  async #check(): Promise<void> {
    const isFree = (host: Host): boolean => existsSync(host.image) && !(this.#hasGuest && host === this.#source)
    if (process.geteuid?.() === 0) await assertGivenBack(...this.hosts.filter(isFree).map(({ image }) => image))
    if (!this.#hasGuest) return
    using guest = await this.#guest()
    await guest.stop('vda')
    const { bad, err } = await guest.verify('vda')
    const { bad: seen, errors } = await guest.stat()
    if (bad + err + seen + errors > 0) throw new Error(`wrong blocks: ${JSON.stringify({ bad, err, seen, errors })}`)
    await guest.work('vda', 'slowly')
    const backing = await backingOf(this.#source.image)
    if (backing !== undefined) throw new Error(`the image still needs '${backing}'`)
    // one that was left is what the guest had before
    if (existsSync(this.#destination.image)) rmSync(this.#destination.image)
  }
}

class TwoGuestsError extends Error {
  constructor() {
    super('two guests run')
  }
}

async function userSettings(folder: string): Promise<object> {
  chmodSync(folder, 0o755)
  const { name: user } = await otherUser()
  return { security: ['dac'], user, lockManager: 'ofd' }
}

/** What follows its guest only follows it when it is let. */
async function letMemoryFollow(dom: Domain): Promise<void> {
  while ((await dom.getJobStats()).memProcessed === 0) await delay(20)
  await dom.migrateStartPostCopy()
}

export function describe({ run: number, life, victim, moment }: Round): string {
  const when =
    'ms' in moment
      ? `after ${moment.ms} ms`
      : 'step' in moment
        ? `at step ${moment.step}`
        : `at record ${moment.side}${'phase' in moment ? ` ${moment.phase}` : moment.record}`
  return `${number}: ${life}, ${victim} ${when}`
}

async function main(t: Cleanup): Promise<void> {
  const { values } = parseArgs({
    options: {
      seed: { type: 'string' },
      from: { type: 'string', default: '0' },
      runs: { type: 'string', default: '100' },
      'as-user': { type: 'boolean', default: false },
      external: { type: 'boolean', default: false },
    },
  })
  const seed = values.seed === undefined ? randomInt(1_000_000) : Number(values.seed)
  const theatre = await Theatre.open(t, values['as-user'])
  theatre.external = values.external
  const counts = new Map<string, number>()
  const began = performance.now()
  const from = Number(values.from)
  for (let number = from; number < from + Number(values.runs); number++) {
    const round = makeRound(seed, number, values['as-user'])
    const start = performance.now()
    const { killed, words } = await theatre.play(round).catch(async (error: unknown) => {
      await theatre.close()
      for (const { folder, logs } of theatre.hosts) process.stderr.write(`${folder}\n${logs.slice(-2).join('')}\n`)
      throw new Error(`${describe(round)}: WRONG: ${messageOf(error)}`, { cause: error })
    })
    const seconds = ((performance.now() - start) / 1000).toFixed(1)
    console.log(
      `${describe(round)}${words === '' ? '' : ` (${words})`}, ${seconds} s: ok${killed ? '' : ', nobody killed'}`,
    )
    const lost = words.includes('the guest was lost') ? ['guests lost'] : []
    for (const key of [round.life, round.victim, killed ? 'kills' : 'nobody killed', ...lost])
      counts.set(key, (counts.get(key) ?? 0) + 1)
  }
  const minutes = ((performance.now() - began) / 60_000).toFixed(1)
  console.log([...counts].map(([key, count]) => `${key}: ${count}`).join(', '))
  console.log(`${minutes} minutes, seed ${seed}, all well`)
}

if (process.argv[1]?.endsWith('migrate.js') === true) await runProgram('campaign', main)
