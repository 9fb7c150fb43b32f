/** How long until a guest works on an image that lies elsewhere: started at once on an overlay, or after a copy. */
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from '../src/util/run.js'
import { diskXml, guestXml } from '../test/support/domain.js'
import { Guest, guestFiles } from '../test/support/guest.js'
import { overlay, patternImage, type Cleanup, type PatternImage } from '../test/support/images.js'
import { startNbdkit, startQemuNbd } from '../test/support/nbd-server.js'
import { isZeroInBase } from '../test/support/pattern.js'
import { benchRoot, MiB, time, type BenchOptions, type BenchRoot } from './bench.js'
import { duration, inTurn, median, ratio, spread, type Table, type Times } from './report.js'

/** Mbit/s */
const LINK = 500
const AT_ONCE = 'at once, on an overlay'
const COPY = 'copy first, then start'

/** Starts a guest on `image`, reads a block of its disk, and ends it; the ms until that block was read. */
async function startUntilRead({ conn, folder }: BenchRoot, image: string, base: PatternImage): Promise<number> {
  const xml = await guestXml(folder, { name: 'bench', devices: diskXml('vda', image) })
  const began = performance.now()
  const dom = await conn.domainCreateXML(xml)
  try {
    using guest = await Guest.connect(join(folder, 'bench.serial'))
    await guest.ready()
    await guest.base('vda', base.seed, base.size)
    let block = 1234
    while (isZeroInBase(base.seed, block)) block++
    const { fields } = await guest.command(`read vda ${block}`)
    if (fields['bad'] !== '0' || fields['kind'] !== 'base') throw new Error(`the guest has read a wrong block ${block}`)
    return performance.now() - began
  } finally {
    await dom.destroy()
  }
}

async function measure(root: BenchRoot, base: PatternImage, uri: string, rounds: number): Promise<Times> {
  const { folder } = root
  const [top, copy] = [join(folder, 'top.qcow2'), join(folder, 'copy.qcow2')]
  const convert = ['convert', '-W', '-m', '8', '-f', 'raw', '-O', 'qcow2', uri, copy]
  const atOnce = async (): Promise<number> => {
    await rm(top, { force: true })
    const made = await time(() => overlay(folder, uri, { name: 'top.qcow2' }))
    return made + (await startUntilRead(root, top, base))
  }
  const copyFirst = async (): Promise<number> => {
    await rm(copy, { force: true })
    const made = await time(() => run('qemu-img', convert, { timeout: 600_000 }))
    return made + (await startUntilRead(root, copy, base))
  }
  const ways = [
    { name: AT_ONCE, run: atOnce },
    { name: COPY, run: copyFirst },
  ]
  return (await inTurn(ways, rounds)).times
}

export async function benchStart(t: Cleanup, { rounds, size }: BenchOptions): Promise<Table[]> {
  await guestFiles()
  const root = await benchRoot(t)
  const base = await patternImage(root.folder, size)
  const socket = join(root.folder, 'nbd.sock')
  const server = await startQemuNbd(t, { image: base.path, format: 'raw', socket })
  const link = await startNbdkit(t, {
    plugin: ['nbd', `socket=${socket}`],
    filters: ['rate'],
    parameters: [`rate=${LINK}M`],
    socket: join(root.folder, 'link.sock'),
  })
  const rows: string[][] = []
  for (const [name, uri] of [
    [`NBD, ${LINK} Mbit/s`, link.uri],
    ['NBD, same machine, no limit', server.uri],
  ] as const) {
    const times = await measure(root, base, uri, rounds)
    const [atOnce = [], copy = []] = [times.get(AT_ONCE), times.get(COPY)]
    const saved = duration(median(copy.map((ms, round) => ms - (atOnce[round] ?? NaN))))
    rows.push([name, ratio(times, AT_ONCE, COPY).text, saved, spread(atOnce), spread(copy)])
  }
  return [
    {
      title: `From start to the guest's first read, image of ${size / MiB} MiB`,
      head: ['base', 'at once is … times as soon', 'saved', AT_ONCE, COPY],
      rows,
      notes: ['Both start through virstream; the time includes making the overlay or the copy.'],
    },
  ]
}
