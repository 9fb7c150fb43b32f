/**
 * The two engines that move a stream's data, QEMU's own job and our parallel requests, over bases of different latency, and
 * what 'auto' makes of it. No guest runs: the domain stays paused.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { VIR_DOMAIN_START_PAUSED } from '../src/index.js'
import { overlay, type Cleanup } from '../test/support/images.js'
import { startNbdkit } from '../test/support/nbd-server.js'
import {
  benchRoot,
  denseImage,
  emptyDomain,
  evict,
  MiB,
  time,
  warm,
  type BenchOptions,
  type BenchRoot,
} from './bench.js'
import { duration, inTurn, median, ratio, spread, type Measured, type Table, type Way } from './report.js'

const ENGINES = ['auto', 'pull', 'job'] as const

interface Base {
  title: string
  uri: string
  prepare: () => Promise<void>
  /** bytes: less where one request at a time takes long */
  size: number
}

/** An HTTP server for ranges of one file, each answer `ms` late, in a process of its own: ours has the stream to drive. */
async function startHttp(t: Cleanup, path: string, size: number, ms: number): Promise<string> {
  const program = fileURLToPath(new URL('http-server.js', import.meta.url))
  const child = spawn(process.execPath, [program, path, String(size), String(ms)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  t.after(() => child.kill())
  const [url] = (await once(createInterface({ input: child.stdout }), 'line')) as [string]
  return url
}

async function bases(t: Cleanup, folder: string, path: string, size: number): Promise<Base[]> {
  const nbd = async (ms: number, part: number): Promise<Base> => {
    const server = await startNbdkit(t, {
      plugin: ['file', path],
      filters: ['delay', 'offset'],
      parameters: [`rdelay=${ms}ms`, `range=${part}`],
      socket: join(folder, `nbd-${ms}.sock`),
    })
    const title = ms === 0 ? 'NBD' : `NBD, ${ms} ms away`
    return { title, uri: server.uri, prepare: () => warm(path), size: part }
  }
  const part = (of: number): number => Math.max(MiB, Math.floor(size / of / MiB) * MiB)
  return [
    { title: 'local raw, cold', uri: path, prepare: () => evict(path), size },
    { title: 'local raw, in the page cache', uri: path, prepare: () => warm(path), size },
    await nbd(0, size),
    await nbd(2, part(4)),
    await nbd(10, part(4)),
    { title: 'HTTP, 10 ms away', uri: await startHttp(t, path, part(4), 10), prepare: () => warm(path), size: part(4) },
  ]
}

async function measure({ conn, folder }: BenchRoot, base: Base, rounds: number): Promise<Measured> {
  const top = join(folder, 'top.qcow2')
  const ways: Way[] = ENGINES.map((engine) => ({
    name: engine,
    run: async () => {
      await rm(top, { force: true })
      await overlay(folder, base.uri, { name: 'top.qcow2', size: base.size })
      const dom = await conn.domainCreateXML(emptyDomain(top), VIR_DOMAIN_START_PAUSED)
      try {
        return await time(async () => (await dom.stream('vda', { engine })).finished)
      } finally {
        await dom.destroy()
      }
    },
  }))
  return inTurn(ways, rounds, base.prepare)
}

export async function benchEngines(t: Cleanup, { rounds, size }: BenchOptions): Promise<Table[]> {
  const root = await benchRoot(t)
  const path = await denseImage(root.folder, size)
  const rows: string[][] = []
  for (const base of await bases(t, root.folder, path, size)) {
    const { times } = await measure(root, base, rounds)
    const best = median(times.get('pull') ?? []) < median(times.get('job') ?? []) ? 'pull' : 'job'
    rows.push([
      `${base.title} (${base.size / MiB} MiB)`,
      ratio(times, 'pull', 'job').text,
      `${ratio(times, 'auto', best).text} of ${best}`,
      ...ENGINES.map((engine) =>
        rounds < 2 ? duration(median(times.get(engine) ?? [])) : spread(times.get(engine) ?? []),
      ),
    ])
  }
  const head = ['base', "'pull' is … times as fast as 'job'", "'auto' against the better one", ...ENGINES]
  return [
    { title: 'Engines of a stream', head, rows, notes: ['Times are from the call to the settled end of the stream.'] },
  ]
}
