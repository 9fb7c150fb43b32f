/** Rounds, medians and tables. Different ways of one thing are run in turn, so that what else the machine does meets all. */

/** ms by way, one number for each round */
export type Times = Map<string, number[]>

export interface Way {
  name: string
  /** one go; answers the ms that count, and what of the processors' time it took, where that is known */
  run: () => Promise<number | { ms: number; cpuMs: number }>
}

export interface Measured {
  times: Times
  /** of the ways that tell; says more than time where the machine has other things to do */
  cpu: Times
}

export interface Table {
  title: string
  head: string[]
  rows: string[][]
  /** sentences below it */
  notes: string[]
}

/** Every way once in each round, in an order that turns, after what `before` does. */
export async function inTurn(ways: readonly Way[], rounds: number, before?: () => Promise<void>): Promise<Measured> {
  const times: Times = new Map(ways.map(({ name }) => [name, []]))
  const cpu: Times = new Map()
  for (let round = 0; round < rounds; round++) {
    for (let i = 0; i < ways.length; i++) {
      const way = ways[(i + round) % ways.length]
      if (way === undefined) continue
      await before?.()
      const result = await way.run()
      times.get(way.name)?.push(typeof result === 'number' ? result : result.ms)
      if (typeof result !== 'number') cpu.set(way.name, [...(cpu.get(way.name) ?? []), result.cpuMs])
    }
  }
  return { times, cpu }
}

export function median(numbers: readonly number[]): number {
  const sorted = numbers.toSorted((a, b) => a - b)
  const [low, high] = [sorted[Math.floor((sorted.length - 1) / 2)], sorted[Math.ceil((sorted.length - 1) / 2)]]
  return ((low ?? NaN) + (high ?? NaN)) / 2
}

/** How many times as fast `name` was as `other`, round by round: the median, and from what to what. */
export function ratio(times: Times, name: string, other: string): { median: number; text: string } {
  const mine = times.get(name) ?? []
  const theirs = times.get(other) ?? []
  const ratios = mine.map((ms, round) => (theirs[round] ?? NaN) / ms)
  const middle = median(ratios)
  if (ratios.length < 2) return { median: middle, text: middle.toFixed(2) }
  const spread = `${Math.min(...ratios).toFixed(2)}–${Math.max(...ratios).toFixed(2)}`
  return { median: middle, text: `${middle.toFixed(2)} (${spread})` }
}

/** '1.23 s' or '45 ms' */
export function duration(ms: number): string {
  return ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${ms.toFixed(0)} ms`
}

/** '1.23 s (1.20–1.31 s)' */
export function spread(numbers: readonly number[]): string {
  const middle = duration(median(numbers))
  if (numbers.length < 2) return middle
  return `${middle} (${duration(Math.min(...numbers))}–${duration(Math.max(...numbers))})`
}

/** A table as Markdown that is pleasant to read unrendered too. */
export function markdown({ title, head, rows, notes }: Table): string {
  const widths = head.map((cell, i) => Math.max(3, cell.length, ...rows.map((row) => row[i]?.length ?? 0)))
  const line = (cells: readonly string[]): string =>
    `| ${cells.map((cell, i) => cell.padEnd(widths[i] ?? 0)).join(' | ')} |`
  const ruler = `| ${widths.map((width) => '-'.repeat(width)).join(' | ')} |`
  const below = notes.length === 0 ? [] : ['', ...notes]
  return [`### ${title}`, '', line(head), ruler, ...rows.map(line), ...below, ''].join('\n')
}
