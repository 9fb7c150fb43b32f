/**
 * The same guest moves to another host in three ways, side by side: its disk mirrored first, then the switch; or the switch
 * first, its disk afterwards; or the switch at once, its memory and its disk afterwards. Two network namespaces stand for the hosts, with a limited link between them.
 * `npm run demo:migrate`, or after set-up: `node dist/scripts/demo-migrate.js [--size MIB] [--link MBIT]`.
 */
import { parseArgs } from 'node:util'
import { guestFiles } from '../test/support/guest.js'
import { patternImage, temporaryFolder } from '../test/support/images.js'
import { Screen, grouped, seconds } from './demo-screen.js'
import { runProgram } from './program.js'
import { mayMakeHosts, move, twoHosts, type Move, type Way } from './two-hosts.js'

const MiB = 1024 * 1024
const screen = new Screen()

const words: Record<Way, string> = {
  mirror: 'mirror first, switch after (VIR_MIGRATE_NON_SHARED_DISK)',
  stream: 'switch first, disk after (VIR_MIGRATE_STREAM_DISKS)',
  postcopy: 'switch at once, memory and disk after (and VIR_MIGRATE_POSTCOPY)',
}

await runProgram('demo', async (t) => {
  const { values } = parseArgs({ options: { size: { type: 'string' }, link: { type: 'string' } } })
  const [size, megabits] = [Number(values.size ?? 256), Number(values.link ?? 400)]
  if (!Number.isInteger(size) || size < 16 || !Number.isInteger(megabits) || megabits < 10)
    throw new Error('--size takes MiB (16 at least), --link Mbit/s (10 at least)')
  if (!(await mayMakeHosts()))
    throw new Error('the demo makes two network namespaces, which takes root (CAP_NET_ADMIN)')
  screen.title('A guest moves to another host')
  const folder = await temporaryFolder(t)
  await guestFiles()
  const { value: base } = await screen.step(`a disk of ${size} MiB, each block known by heart`, () =>
    patternImage(folder, size * MiB),
  )
  const { value: hosts } = await screen.step(`two hosts, ${megabits} Mbit/s between them, TLS on one port`, () =>
    twoHosts(t, folder, megabits),
  )
  const results = new Map<Way, Move>()
  for (const way of ['mirror', 'stream', 'postcopy'] as const) {
    screen.chapter(words[way])
    const { value } = await screen.step('all of it has moved', () => move(t, hosts, way, base))
    show(value)
    results.set(way, value)
  }
  compare(results)
})

function show({ running, stop, total, bytes, bad, blocks }: Move): void {
  screen.line('until the guest ran there', seconds(running))
  screen.line('the guest stood still', seconds(stop))
  screen.line('until its source was free', seconds(total))
  screen.line('over the link', `${grouped(Math.round(bytes / MiB))} MiB`)
  screen.line('blocks checked by the guest', `${grouped(blocks)}, ${bad} wrong`)
  if (bad !== 0) throw new Error(`${bad} blocks were wrong`)
}

function compare(results: ReadonlyMap<Way, Move>): void {
  const [mirror, stream, postcopy] = (['mirror', 'stream', 'postcopy'] as const).map((way) => results.get(way))
  if (mirror === undefined || stream === undefined || postcopy === undefined) return
  screen.chapter('Side by side: until the guest runs (#), until its source is free (.)')
  const row = (name: string, { running, total }: Move): Parameters<Screen['compare']>[0][number] => {
    return {
      name,
      parts: [{ ms: running, letter: '#' }, ...(total > running ? [{ ms: total - running, letter: '.' }] : [])],
    }
  }
  screen.compare([row('mirror first', mirror), row('disk after', stream), row('both after', postcopy)])
  const sooner = ({ running }: Move): string => (mirror.running / running).toFixed(1)
  screen.say(`With its disk streamed afterwards the guest ran at the destination ${sooner(stream)} times as soon, with its memory
    afterwards too ${sooner(postcopy)} times; the whole move took ${(stream.total / mirror.total).toFixed(2)} and
    ${(postcopy.total / mirror.total).toFixed(2)} of the time. The larger the disk, the larger the difference.`)
}
