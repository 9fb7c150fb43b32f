/**
 * A whole disk streamed by virstream, against the same block-stream sent by hand to a QEMU with the same argv, and against
 * plain copies of the same data. No guest runs: the domain stays paused.
 */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { VIR_DOMAIN_START_PAUSED } from '../src/index.js'
import { run } from '../src/util/run.js'
import { overlay, type Cleanup } from '../test/support/images.js'
import { startNbdkit, startQemuNbd } from '../test/support/nbd-server.js'
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
import { argvOf, cpuOf, pidOf, startByHand } from './by-hand.js'
import { duration, inTurn, median, ratio, spread, type Measured, type Table, type Way } from './report.js'

interface Base {
  title: string
  /** what a backing file is called, and a copy reads from */
  uri: string
  prepare: () => Promise<void>
  copies: Way[]
  /** by default virstream does not leave this base to QEMU's job alone: that is a way of its own then */
  isRemote?: boolean
  /** bytes */
  size: number
}

const OURS = 'virstream'
const OUR_JOB = "virstream, engine 'job'"
const HAND = 'block-stream by hand'

interface Sample {
  ms: number
  cpuMs: number
}

/** Time, and the processor time of that QEMU and of this process. */
async function sample(pid: number, work: () => Promise<unknown>): Promise<Sample> {
  const [theirs, own] = [await cpuOf(pid), process.cpuUsage()]
  const ms = await time(work)
  const { user, system } = process.cpuUsage(own)
  return { ms, cpuMs: (await cpuOf(pid)) - theirs + (user + system) / 1000 }
}

/** One stream through our API: from the call to its settled end. */
async function ours({ conn, root }: BenchRoot, path: string, engine: 'auto' | 'job'): Promise<Sample> {
  const dom = await conn.domainCreateXML(emptyDomain(path), VIR_DOMAIN_START_PAUSED)
  try {
    return await sample(await pidOf(root, dom), async () => (await dom.stream('vda', { engine })).finished)
  } finally {
    await dom.destroy()
  }
}

/** The argv of a domain on `path`, to be used for others. */
async function learnArgv({ conn, root }: BenchRoot, path: string): Promise<string[]> {
  const dom = await conn.domainCreateXML(emptyDomain(path), VIR_DOMAIN_START_PAUSED)
  const argv = await argvOf(await pidOf(root, dom))
  await dom.destroy()
  return argv
}

/** `flushed`: until the copy is on the host's storage, as with virstream, which flushes before an image lets go of its base. */
async function byHand(argv: readonly string[], folder: string, flushed = false): Promise<Sample> {
  const socket = join(folder, 'hand.sock')
  await rm(socket, { force: true })
  await using qemu = await startByHand(argv, socket)
  const args = { 'job-id': 'stream', device: 'node-1-format', 'on-error': 'enospc' }
  let error: unknown
  const result = await sample(qemu.pid, async () => {
    const data = await qemu.qmp.executeUntil('block-stream', args, 'BLOCK_JOB_COMPLETED')
    error = data['error']
    const flush = { 'command-line': 'qemu-io node-1-format flush' }
    if (flushed) await qemu.qmp.execute('human-monitor-command', flush)
  })
  if (error !== undefined) throw new Error('block-stream by hand failed', { cause: error })
  return result
}

/** The same argv without the guard node: what an unguarded chain would do. */
function withoutGuard(argv: readonly string[]): string[] {
  const at = argv.findIndex((arg) => arg.includes('"driver":"quorum"'))
  if (at < 1) throw new Error('there is no guard in the argv')
  return argv.toSpliced(at - 1, 2).map((arg) => arg.replace('"backing":"node-2-guard"', '"backing":"node-2-format"'))
}

async function measure(root: BenchRoot, base: Base, rounds: number): Promise<Measured> {
  const { folder } = root
  const fresh = async (): Promise<string> => {
    await rm(join(folder, 'top.qcow2'), { force: true })
    return await overlay(folder, base.uri, { name: 'top.qcow2' })
  }
  const argv = await learnArgv(root, await fresh())
  const ways: Way[] = [
    { name: OURS, run: async () => ours(root, await fresh(), 'auto') },
    ...(base.isRemote === true ? [{ name: OUR_JOB, run: async () => ours(root, await fresh(), 'job') }] : []),
    { name: HAND, run: async () => (await fresh(), byHand(argv, folder)) },
    { name: `${HAND}, flushed`, run: async () => (await fresh(), byHand(argv, folder, true)) },
    { name: `${HAND}, no guard`, run: async () => (await fresh(), byHand(withoutGuard(argv), folder)) },
    ...base.copies,
  ]
  return await inTurn(ways, rounds, base.prepare)
}

function copies(folder: string, uri: string, others: readonly (readonly [string, ...string[]])[]): Way[] {
  const target = join(folder, 'copy')
  const commands: (readonly [string, ...string[]])[] = [
    ['qemu-img', 'convert', '-W', '-m', '8', '-f', 'raw', '-O', 'qcow2', uri, target],
    ...others,
  ]
  return commands.map(([program, ...args]) => ({
    name: program === 'qemu-img' ? 'qemu-img convert' : program,
    run: async () => {
      await rm(target, { force: true })
      return await time(() => run(program, args, { timeout: 600_000 }))
    },
  }))
}

/** ms that a read over the slow link takes longer */
const LATENCY = 2

async function bases(t: Cleanup, folder: string, path: string, size: number): Promise<Base[]> {
  const server = await startQemuNbd(t, { image: path, format: 'raw', socket: join(folder, 'nbd.sock') })
  // with one request under way at a time a whole image would take too long
  const part = Math.min(size, Math.max(MiB, size / 8))
  const far = await startNbdkit(t, {
    plugin: ['file', path],
    filters: ['delay', 'offset'],
    parameters: [`rdelay=${LATENCY}ms`, `range=${part}`],
    socket: join(folder, 'far.sock'),
  })
  const copy = join(folder, 'copy')
  const local = copies(folder, path, [['dd', `if=${path}`, `of=${copy}`, 'bs=1M', 'status=none']])
  const over = (uri: string): Pick<Base, 'uri' | 'isRemote' | 'copies'> => ({
    uri,
    isRemote: true,
    copies: copies(folder, uri, [['nbdcopy', uri, copy]]),
  })
  const cached = { prepare: () => warm(path), size }
  return [
    { title: 'local raw, in the page cache', uri: path, copies: local, ...cached },
    { title: 'local raw, cold', uri: path, copies: local, prepare: () => evict(path), size },
    { title: 'NBD on a unix socket', ...over(server.uri), ...cached },
    { title: `NBD, ${LATENCY} ms away`, ...over(far.uri), ...cached, size: part },
  ]
}

function tableOf({ title, size }: Base, { times, cpu }: Measured): Table {
  const rows = [...times].map(([name, ms]) => [
    name,
    name === OURS ? '' : ratio(times, OURS, name).text,
    name === OURS || !cpu.has(name) ? '' : ratio(cpu, OURS, name).text,
    spread(ms),
    `${Math.round(size / MiB / (median(ms) / 1000))} MiB/s`,
    cpu.has(name) ? duration(median(cpu.get(name) ?? [])) : '',
  ])
  return {
    title: `Streaming ${size / MiB} MiB: ${title}`,
    head: ['way', 'virstream is … times as fast', 'by CPU time', 'time (min–max)', 'throughput', 'CPU time'],
    rows,
    notes: [],
  }
}

export async function benchStream(t: Cleanup, { rounds, size }: BenchOptions): Promise<Table[]> {
  const root = await benchRoot(t)
  const path = await denseImage(root.folder, size)
  const tables: Table[] = []
  for (const base of await bases(t, root.folder, path, size)) {
    tables.push(tableOf(base, await measure(root, base, rounds)))
  }
  return tables
}
