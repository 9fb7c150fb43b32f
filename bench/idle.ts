/**
 * What a stream costs the guest that works meanwhile, and what policy 'idle' makes of it: a guest that reads and writes in
 * bursts, without a stream, beside a full one, and beside one that runs in the gaps of the bursts.
 */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { Domain } from '../src/index.js'
import { diskXml, guestXml } from '../test/support/domain.js'
import { Guest, guestFiles, type GuestLatency } from '../test/support/guest.js'
import { overlay, patternImage, type Cleanup, type PatternImage } from '../test/support/images.js'
import { benchRoot, MiB, warm, type BenchOptions, type BenchRoot } from './bench.js'
import { median, type Table } from './report.js'

/** ms that the guest reads and writes, and that it does nothing */
const BURST = 300
const GAP = 700
/** bursts where there is no stream whose end they could last to */
const BURSTS = 4
/** bursts after which a stream is too slow to be waited for */
const MOST_BURSTS = 120
/** ms between two looks whether the stream has ended */
const LOOK = 20

type Policy = 'full' | 'idle'
interface Go {
  latency: GuestLatency
  /** ms of the stream */
  ms: number
}

const WAYS: readonly { name: string; disk: string; policy?: Policy }[] = [
  { name: 'no stream', disk: 'vda' },
  { name: 'full', disk: 'vdb', policy: 'full' },
  { name: 'idle', disk: 'vdc', policy: 'idle' },
]

/** Bursts on one disk, the first one before the stream begins, until the stream has ended. */
async function go(dom: Domain, guest: Guest, disk: string, policy: Policy | undefined): Promise<Go> {
  await guest.latency(disk)
  await guest.work(disk)
  await delay(LOOK)
  const began = performance.now()
  let took: number | undefined
  const stream = policy && (await dom.stream(disk, { policy }))
  const ended = stream?.finished.then(() => {
    took = performance.now() - began
  })
  ended?.catch(() => undefined)
  for (let burst = 0; took === undefined && burst < (stream === undefined ? BURSTS : MOST_BURSTS); burst++) {
    if (burst > 0) await guest.work(disk)
    await pass(BURST, () => took !== undefined)
    await guest.stop(disk)
    await pass(GAP, () => took !== undefined)
  }
  if (took === undefined) await stream?.stop()
  await ended
  const latency = await guest.latency(disk)
  const { bad, errors } = await guest.stat()
  if (bad + errors > 0) throw new Error(`the guest has read ${bad} wrong blocks, and ${errors} requests failed`)
  return { latency, ms: took ?? NaN }
}

async function pass(ms: number, isOver: () => boolean): Promise<void> {
  const end = performance.now() + ms
  while (performance.now() < end && !isOver()) await delay(LOOK)
}

/** All ways on one guest, each on a disk of its own. */
async function round({ conn, folder }: BenchRoot, base: PatternImage, turn: number): Promise<Map<string, Go>> {
  const paths = await Promise.all(
    WAYS.map(async ({ disk }) => [disk, await overlay(folder, base.path, { name: `${disk}.qcow2` })] as const),
  )
  const devices = paths.map(([disk, path]) => diskXml(disk, path)).join('\n')
  const dom = await conn.domainCreateXML(await guestXml(folder, { name: 'bench', devices }))
  const results = new Map<string, Go>()
  try {
    using guest = await Guest.connect(join(folder, 'bench.serial'))
    await guest.ready()
    for (let i = 0; i < WAYS.length; i++) {
      const way = WAYS[(i + turn) % WAYS.length]
      if (way === undefined) continue
      await guest.base(way.disk, base.seed, base.size)
      results.set(way.name, await go(dom, guest, way.disk, way.policy))
    }
  } finally {
    await dom.destroy()
    for (const [, path] of paths) await rm(path, { force: true })
  }
  return results
}

const between = (numbers: readonly number[], digits: number): string => {
  const middle = median(numbers).toFixed(digits)
  if (numbers.length < 2) return middle
  return `${middle} (${Math.min(...numbers).toFixed(digits)}–${Math.max(...numbers).toFixed(digits)})`
}

/** One number for each round. */
const numbersOf = (all: readonly Map<string, Go>[], name: string, value: (go: Go) => number): number[] =>
  all.flatMap((results) => {
    const found = results.get(name)
    return found === undefined ? [] : [value(found)]
  })

const p50 = ({ latency }: Go): number => latency.p50
const p99 = ({ latency }: Go): number => latency.p99
const ms = (one: Go): number => one.ms

function rowOf(all: readonly Map<string, Go>[], name: string, mib: number): string[] {
  const own = (value: (go: Go) => number): number[] => numbersOf(all, name, value)
  /** round by round */
  const times = (value: (go: Go) => number): string => {
    const without = numbersOf(all, 'no stream', value)
    return between(
      own(value).map((mine, turn) => mine / (without[turn] ?? NaN)),
      2,
    )
  }
  const cells = [name, between(own(p50), 2), between(own(p99), 2)]
  if (name === 'no stream') return [...cells, '', '', '', '']
  const full = numbersOf(all, 'full', ms)
  const speed = own(ms).map((mine) => mib / (mine / 1000))
  const kept = own(ms).map((mine, turn) => (100 * (full[turn] ?? NaN)) / mine)
  return [...cells, times(p50), times(p99), between(speed, 0), between(kept, 0)]
}

export async function benchIdle(t: Cleanup, { rounds, size }: BenchOptions): Promise<Table[]> {
  await guestFiles()
  const root = await benchRoot(t)
  const base = await patternImage(root.folder, size)
  const all: Map<string, Go>[] = []
  for (let turn = 0; turn < rounds; turn++) {
    await warm(base.path)
    all.push(await round(root, base, turn))
  }
  return [
    {
      title: `A guest at work while its disk of ${size / MiB} MiB is streamed: local raw, in the page cache`,
      head: ['stream', 'p50 ms', 'p99 ms', 'p50 is … times', 'p99 is … times', 'MiB/s', '% of full speed kept'],
      rows: WAYS.map(({ name }) => rowOf(all, name, size / MiB)),
      notes: [
        `Latency as the guest sees it: random reads and writes of 4 to 64 KiB for ${BURST} ms, then ${GAP} ms of nothing, until the stream ends. 'Times': against no stream, round by round.`,
      ],
    },
  ]
}
