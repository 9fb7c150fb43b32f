/**
 * All benchmarks, or those that are named: `npm run bench -- [stream] [engines] [idle] [start] [overhead] [tunnel] [libvirt] [migrate] [xml] [--rounds N] [--size MIB]`.
 * Writes tables in Markdown. Nothing is held against a limit: a busy machine is no failure.
 */
import { cpus, release, totalmem } from 'node:os'
import { parseArgs } from 'node:util'
import { runProgram } from '../scripts/program.js'
import { run } from '../src/util/run.js'
import { MiB, type Bench } from './bench.js'
import { benchEngines } from './engines.js'
import { benchIdle } from './idle.js'
import { benchLibvirt } from './libvirt.js'
import { benchOverhead } from './overhead.js'
import { benchMigrate } from './migrate.js'
import { markdown, median, type Table } from './report.js'
import { benchStart } from './start.js'
import { benchStream } from './stream.js'
import { benchTunnel } from './tunnel.js'
import { benchTexts, benchXml } from './xml.js'

export const benches: Readonly<Record<string, { bench: Bench; rounds: number; mib: number }>> = {
  stream: { bench: benchStream, rounds: 5, mib: 1024 },
  engines: { bench: benchEngines, rounds: 5, mib: 512 },
  idle: { bench: benchIdle, rounds: 5, mib: 1024 },
  start: { bench: benchStart, rounds: 3, mib: 512 },
  overhead: { bench: benchOverhead, rounds: 15, mib: 16 },
  tunnel: { bench: benchTunnel, rounds: 5, mib: 1024 },
  libvirt: { bench: (t, { rounds, size }) => benchLibvirt(t, { rounds, size: size / MiB }), rounds: 5, mib: 1000 },
  migrate: { bench: benchMigrate, rounds: 3, mib: 1024 },
  xml: { bench: (_t, { rounds }) => Promise.resolve([xmlTable(rounds)]), rounds: 5, mib: 1 },
}

/** One second of each a round. */
function xmlTable(rounds: number): Table {
  const { from, texts } = benchTexts()
  const rates = new Map<string, { rate: number; megabytes: number }[]>()
  for (let round = 0; round < rounds; round++) {
    for (const { what, ...rate } of benchXml(texts, 1)) rates.set(what, [...(rates.get(what) ?? []), rate])
  }
  const rows = [...rates].map(([what, all]) => {
    const rate = all.map((one) => Math.round(one.rate))
    const range = `${Math.round(median(rate))} (${Math.min(...rate)}–${Math.max(...rate)})`
    return [what, range, median(all.map(({ megabytes }) => megabytes)).toFixed(1)]
  })
  const title = `Domain XML: ${texts.length} definitions of ${from}`
  return { title, head: ['what', 'definitions/s (min–max)', 'MB/s'], rows, notes: [] }
}

function wholeNumber(name: string, text: string | undefined, otherwise: number): number {
  const value = text === undefined ? otherwise : Number(text)
  if (!Number.isInteger(value) || value <= 0) throw new Error(`--${name} takes a whole number, not '${text ?? ''}'`)
  return value
}

async function machine(): Promise<string> {
  const { stdout } = await run('qemu-system-x86_64', ['--version'])
  const qemu = /version ([\d.]+)/.exec(stdout)?.[1] ?? 'unknown'
  const memory = Math.round(totalmem() / (1024 * MiB))
  return `${cpus().length} CPUs, ${memory} GiB, Linux ${release()}, QEMU ${qemu}, Node ${process.versions.node}`
}

if (process.argv[1] === import.meta.filename) {
  await runProgram('bench', async (t) => {
    const options = { rounds: { type: 'string' }, size: { type: 'string' } } as const
    const { values, positionals } = parseArgs({ options, allowPositionals: true })
    const names = positionals.length === 0 ? Object.keys(benches) : positionals
    const unknown = names.find((name) => !(name in benches))
    if (unknown !== undefined)
      throw new Error(`there is no benchmark '${unknown}', only ${Object.keys(benches).join(', ')}`)
    process.stdout.write(`${new Date().toISOString().slice(0, 10)}, ${await machine()}\n\n`)
    for (const name of names) {
      const { bench, rounds, mib } = benches[name] ?? { bench: benchStream, rounds: 1, mib: 1 }
      const size = wholeNumber('size', values.size, mib) * MiB
      for (const table of await bench(t, { rounds: wholeNumber('rounds', values.rounds, rounds), size }))
        process.stdout.write(`${markdown(table)}\n`)
    }
  })
}
