/** What the tunnel costs: bulk against a TCP connection of its own on the same link, and small requests beside the bulk. */
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { messageOf } from '../src/error.js'
import { temporaryFolder, type Cleanup } from '../test/support/images.js'
import { TestAuthority } from '../test/tunnel/pki.js'
import { MiB, type BenchOptions } from './bench.js'
import { inTurn, median, ratio, type Table, type Times } from './report.js'
import type { Carrying, Order, Transfer } from './tunnel-end.js'
import { limitedLink, loopback, type Link } from './tunnel-links.js'

interface Way {
  name: string
  way: Carrying
  tls: boolean
}

const ways: readonly Way[] = [
  { name: 'TCP', way: 'direct', tls: false },
  { name: 'tunnel', way: 'tunnel', tls: false },
  { name: 'TLS over TCP', way: 'direct', tls: true },
  { name: 'tunnel, TLS', way: 'tunnel', tls: true },
]

const WARM_UP = 64 * MiB
/** seconds that a transfer takes at most on a link of known rate */
const SECONDS = 2

class End {
  readonly #child: ChildProcess

  constructor(t: Cleanup, prefix: readonly string[]) {
    const argv = [...prefix, process.execPath, join(import.meta.dirname, 'tunnel-end.js')]
    this.#child = spawn(argv[0] ?? '', argv.slice(1), { stdio: ['ignore', 'inherit', 'inherit', 'ipc'] })
    t.after(() => this.#child.kill())
  }

  async order(order: Order): Promise<unknown> {
    this.#child.send(order)
    const [answer] = (await once(this.#child, 'message')) as [{ result: unknown } | { error: string }]
    if ('error' in answer) throw new Error(answer.error)
    return answer.result
  }
}

export async function benchTunnel(t: Cleanup, options: BenchOptions): Promise<Table[]> {
  const folder = await temporaryFolder(t)
  const authority = await TestAuthority.make(folder)
  const pki = {
    server: await authority.issue('server', '/CN=localhost'),
    client: await authority.issue('client', '/CN=client'),
  }
  const { links, notes } = await allLinks(t)
  const rows: string[][] = []
  for (const link of links) rows.push(...(await measure(t, link, pki, options)))
  const head = [
    'link',
    'way',
    'as fast as TCP',
    'MB/s',
    'CPU s/GB, sender',
    'CPU s/GB, receiver',
    '64 bytes, p50',
    'p99',
  ]
  return [{ title: 'One tunnel: bulk, and requests of 64 bytes beside it', head, rows, notes }]
}

async function allLinks(t: Cleanup): Promise<{ links: Link[]; notes: string[] }> {
  try {
    const links: Link[] = []
    for (const gigabits of [1, 4, 10]) links.push(await limitedLink(t, gigabits))
    return { links: [...links, loopback], notes: [] }
  } catch (error) {
    return {
      links: [loopback],
      notes: [`Only loopback, since no network namespaces could be made: ${messageOf(error)}.`],
    }
  }
}

async function measure(
  t: Cleanup,
  link: Link,
  pki: { server: string; client: string },
  { rounds, size }: BenchOptions,
): Promise<string[][]> {
  const [sender, receiver] = [new End(t, link.sender), new End(t, link.receiver)]
  const bytes = Math.min(size, link.rate === undefined ? Infinity : link.rate * SECONDS)
  const received: Times = new Map()
  const pings: Times = new Map()
  const transfer = async ({ way, tls }: Way, length: number): Promise<Transfer & { receiverMs: number }> => {
    const at = { host: link.host, way }
    const port = (await receiver.order({ do: 'listen', ...at, pkipath: tls ? pki.server : undefined })) as number
    const before = (await receiver.order({ do: 'cpu' })) as number
    const order = { do: 'send', ...at, port, bytes: length, pkipath: tls ? pki.client : undefined } as const
    const sent = (await sender.order(order)) as Transfer
    return { ...sent, receiverMs: ((await receiver.order({ do: 'cpu' })) as number) - before }
  }
  // programs that have not done it yet are slower
  for (const way of ways) await transfer(way, Math.min(bytes, WARM_UP))
  const { times, cpu } = await inTurn(
    ways.map((way) => ({
      name: way.name,
      run: async () => {
        const result = await transfer(way, bytes)
        received.set(way.name, [...(received.get(way.name) ?? []), result.receiverMs])
        pings.set(way.name, [...(pings.get(way.name) ?? []), ...result.pings])
        return result
      },
    })),
    rounds,
  )
  const of = (all: Times, name: string): number => median(all.get(name) ?? [])
  return ways.map(({ name }) => [
    link.name,
    name,
    name === 'TCP' ? '' : ratio(times, name, 'TCP').text,
    (bytes / 1000 / of(times, name)).toFixed(0),
    (of(cpu, name) / (bytes / 1e6)).toFixed(2),
    (of(received, name) / (bytes / 1e6)).toFixed(2),
    `${of(pings, name).toFixed(2)} ms`,
    `${percentile(pings.get(name) ?? [], 0.99).toFixed(1)} ms`,
  ])
}

function percentile(numbers: readonly number[], part: number): number {
  const sorted = numbers.toSorted((a, b) => a - b)
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? NaN
}
