/** Migration: the guest first and its disk (and memory) afterwards, against the disk first; and over a link with a round trip time. */
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import {
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_STREAM_DISKS,
} from '../src/index.js'
import { run } from '../src/util/run.js'
import { mayMakeHosts, move, twoHosts, type Hosts, type Move, type Way } from '../scripts/two-hosts.js'
import { patternImage, temporaryFolder, type Cleanup } from '../test/support/images.js'
import { benchRoot, emptyDomain, MiB, type Bench } from './bench.js'
import { delayRelay } from './delay-relay.js'
import { duration, inTurn, median, ratio, spread, type Table, type Times } from './report.js'

/** 60 MiB/s */
const MEGABITS = 503
/** ms, each way */
const LATENCY = 5

/** Gbit/s of a link that is none to wait for */
const FAST = 10
/** bytes of a disk that hardly counts */
const SMALL = 64 * MiB

/** The larger disk, and one of a quarter of it. */
export const benchMigrate: Bench = async (t, { rounds, size }) => {
  const tables = [await latencyTable(t, rounds, Math.min(size, 128 * MiB))]
  if (!(await mayMakeHosts())) return tables
  const hosts = await twoHosts(t, await temporaryFolder(t), MEGABITS)
  tables.unshift(await transportTable(t, hosts, rounds, Math.min(size / 4, SMALL)))
  for (const each of [size / 4, size]) tables.unshift(await allWays(t, hosts, rounds, each))
  return tables
}

/** How a guest gets to another host, and what a column of a table says of it. */
const columns: readonly { way: Way; name: string }[] = [
  { way: 'mirror', name: 'disk first' },
  { way: 'stream', name: 'disk afterwards' },
  { way: 'postcopy', name: 'disk and memory afterwards' },
]

async function allWays(t: Cleanup, hosts: Hosts, rounds: number, size: number): Promise<Table> {
  const base = await patternImage(await temporaryFolder(t), size)
  const moves = new Map<Way, Move[]>(columns.map(({ way }) => [way, []]))
  const ways = columns.map(({ way }) => ({
    name: way,
    run: async () => {
      const moved = await move(t, hosts, way, base)
      if (moved.bad > 0) throw new Error(`${moved.bad} blocks were wrong`)
      moves.get(way)?.push(moved)
      return moved.total
    },
  }))
  await inTurn(ways, rounds)
  const figures = (pick: (moved: Move) => number): Times =>
    new Map(columns.map(({ way }) => [way, (moves.get(way) ?? []).map(pick)]))
  const row = (what: string, times: Times, text: (all: readonly number[]) => string): string[] => [
    what,
    ...columns.flatMap(({ way }) => [
      text(times.get(way) ?? []),
      ...(way === 'mirror' ? [] : [ratio(times, 'mirror', way).text]),
    ]),
  ]
  const mebibytes = (all: readonly number[]): string => `${Math.round(median(all) / MiB)} MiB`
  const running = figures((moved) => moved.running)
  const sooner = (way: Way): string => ratio(running, way, 'mirror').text
  return {
    title: `${size / MiB} MiB, a guest of 128 MiB, 60 MiB/s between two hosts`,
    head: ['', ...columns.flatMap(({ way, name }) => (way === 'mirror' ? [name] : [name, ': first']))],
    rows: [
      row('until the guest runs', running, spread),
      row(
        'the guest stands still',
        figures(({ stop }) => stop),
        spread,
      ),
      row(
        'until its source is free',
        figures(({ total }) => total),
        spread,
      ),
      row(
        'over the link',
        figures(({ bytes }) => bytes),
        mebibytes,
      ),
    ],
    notes: [
      `With its disk afterwards the guest runs ${sooner('stream')} times as soon, with its memory too ${sooner('postcopy')} times. Every block was right at the end.`,
    ],
  }
}

/** How memory goes over, on the same link and on one that is faster than everything else. */
async function transportTable(t: Cleanup, slow: Hosts, rounds: number, size: number): Promise<Table> {
  const base = await patternImage(await temporaryFolder(t), size)
  const fast = await twoHosts(t, await temporaryFolder(t), FAST * 1000)
  const bytes = new Map<string, number[]>()
  const running = new Map<string, number[]>()
  const ways = [slow, fast].flatMap((hosts) =>
    ['plain', 'zstd', 'auto'].map((transport) => {
      const name = `${hosts === slow ? '60 MiB/s' : `${FAST} Gbit/s`}, ${transport}`
      const run = async (): Promise<number> => {
        const moved = await move(t, hosts, 'stream', base, transport)
        if (moved.bad > 0) throw new Error(`${moved.bad} blocks were wrong`)
        bytes.set(name, [...(bytes.get(name) ?? []), moved.bytes])
        running.set(name, [...(running.get(name) ?? []), moved.running])
        return moved.total
      }
      return { name, run }
    }),
  )
  // the first move to a host asks its QEMU what it can do
  for (const hosts of [slow, fast]) await move(t, hosts, 'stream', base, 'plain')
  await inTurn(ways, rounds)
  const plainOf = (name: string): string => name.replace(/, .*/, ', plain')
  return {
    title: `${size / MiB} MiB afterwards, a guest of 128 MiB: how its memory goes`,
    head: ['link, transport', 'until the guest runs', 'part of plain', 'over the link'],
    rows: ways.map(({ name }) => [
      name,
      spread(running.get(name) ?? []),
      name === plainOf(name) ? '' : ratio(running, plainOf(name), name).text,
      `${Math.round(median(bytes.get(name) ?? []) / MiB)} MiB`,
    ]),
    notes: ['Every block was right at the end.'],
  }
}

/** QEMU's own job against our requests in parallel, for the disk that follows. */
async function latencyTable(t: Cleanup, rounds: number, size: number): Promise<Table> {
  const folder = await temporaryFolder(t)
  const base = await patternImage(folder, size)
  let number = 0
  const follow = async (engine: 'auto' | 'job'): Promise<number> => {
    const [here, there] = [await benchRoot(t), await benchRoot(t)]
    const image = join(here.folder, 'disk.qcow2')
    await run('qemu-img', ['convert', '-O', 'qcow2', base.path, image])
    const dom = await here.conn.domainCreateXML(emptyDomain(image))
    const path = join(folder, `link-${number++}`)
    await delayRelay(t, path, join(there.root, 'run/migration/tunnel.sock'), LATENCY)
    const destinationXML = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
    const params = { destinationXML, uri: `virstream+unix://${path}`, diskStreamEngine: engine }
    const began = performance.now()
    const moved = await dom.migrate(there.conn, params, VIR_MIGRATE_LIVE | VIR_MIGRATE_STREAM_DISKS)
    while ((await stateOf(dom)) !== VIR_DOMAIN_SHUTOFF) await delay(20)
    const took = performance.now() - began
    await moved.destroy()
    return took
  }
  const ways = [
    { name: "block-stream (engine 'job')", run: () => follow('job') },
    { name: "requests in parallel (engine 'auto')", run: () => follow('auto') },
  ]
  const { times } = await inTurn(ways, rounds)
  const [job, auto] = ways.map(({ name }) => name) as [string, string]
  return {
    title: `${size / MiB} MiB, a link with 10 ms from there and back`,
    head: ['the disk follows by', 'until its source is free', 'part of the first'],
    rows: [job, auto].map((name) => [
      name,
      spread(times.get(name) ?? []),
      name === job ? '' : ratio(times, job, auto).text,
    ]),
    notes: [
      `The link is a relay in this process that hands on each byte ${duration(LATENCY)} later, unlimited otherwise.`,
    ],
  }
}

/** A transient domain is gone when it is shut off. */
async function stateOf(dom: { getState: () => Promise<{ state: number }> }): Promise<number> {
  return dom.getState().then(
    ({ state }) => state,
    () => VIR_DOMAIN_SHUTOFF,
  )
}
