/** What the demo writes: chapters, steps with their times, a progress bar. 80 columns; colours only on a terminal. */
import { SingleBar } from 'cli-progress'
import { stdout } from 'node:process'

const WIDTH = 78
const MiB = 1024 * 1024

/** '0.31 s', '12.4 s' */
export function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(ms < 9_950 ? 2 : 1)} s`
}

/** 12345678 → '12,345,678' */
export const grouped = (count: number): string => count.toLocaleString('en-US')

export interface Timed<T> {
  value: T
  ms: number
}

export class Screen {
  readonly #tty = stdout.isTTY
  readonly #colours = stdout.isTTY && process.env['NO_COLOR'] === undefined
  #chapters = 0
  #silent = false

  /** Whatever comes later is not written. */
  fallSilent(): void {
    this.#silent = true
  }

  title(text: string): void {
    this.#write(`\n${this.#style(1, text)}\n`)
  }

  chapter(text: string): void {
    this.#write(`\n${this.#style(1, `${++this.#chapters}. ${text}`)}\n`)
  }

  /** A paragraph, broken into lines. */
  say(text: string): void {
    let line = '  '
    for (const word of text.split(/\s+/)) {
      if (line.trim() !== '' && line.length + 1 + word.length > WIDTH) {
        this.#write(`${line}\n`)
        line = '  '
      }
      line += line === '  ' ? word : ` ${word}`
    }
    this.#write(`${line}\n`)
  }

  /** A line with what it says at its right end, joined by dots. */
  line(text: string, end: string): void {
    const dots = Math.max(3, WIDTH - 4 - text.length - end.length)
    this.#write(`  ${text} ${this.#style(2, '.'.repeat(dots))} ${end}\n`)
  }

  /** Does `work` and writes how long it took. */
  async step<T>(text: string | ((value: T) => string), work: () => Promise<T>, doing?: string): Promise<Timed<T>> {
    const pending = doing ?? (typeof text === 'string' ? text : undefined)
    if (this.#tty && pending !== undefined) this.#write(`  ${pending} ...`)
    const began = performance.now()
    try {
      const value = await work()
      const ms = performance.now() - began
      if (this.#tty) this.#write('\r\x1b[K')
      this.line(typeof text === 'string' ? text : text(value), seconds(ms))
      return { value, ms }
    } catch (error) {
      if (this.#tty && pending !== undefined) this.#write('\n')
      throw error
    }
  }

  /** A bar on a terminal, a line for each tenth otherwise. `note` is written behind it. */
  bar(name: string, size: number): { update(offset: number, note: string): void; stop(): void } {
    return this.#tty ? barOnTerminal(name, size) : barInLines(name, size)
  }

  /** Bars to compare durations by, the longest over the whole width. */
  compare(rows: readonly { name: string; parts: readonly { ms: number; letter: string }[] }[]): void {
    const total = (row: (typeof rows)[number]): number => row.parts.reduce((sum, { ms }) => sum + ms, 0)
    const longest = Math.max(...rows.map(total))
    const label = Math.max(...rows.map(({ name }) => name.length))
    const room = WIDTH - label - 14
    for (const row of rows) {
      const bars = row.parts.map(({ ms, letter }) => letter.repeat(Math.max(1, Math.round((ms / longest) * room))))
      this.#write(`  ${row.name.padEnd(label)}  ${bars.join('')} ${this.#style(1, seconds(total(row)))}\n`)
    }
  }

  #write(text: string): void {
    if (!this.#silent) stdout.write(text)
  }

  #style(code: number, text: string): string {
    return this.#colours ? `\x1b[${code}m${text}\x1b[0m` : text
  }
}

function barOnTerminal(name: string, size: number): ReturnType<Screen['bar']> {
  const format = `  ${name} [{bar}] {percentage} %  {mib} MiB  {note}`
  const bar = new SingleBar({
    format,
    barsize: 20,
    barCompleteChar: '=',
    barIncompleteChar: '-',
    hideCursor: true,
    stopOnComplete: false,
    linewrap: false,
    fps: 10,
  })
  const mib = (offset: number): string => `${Math.round(offset / MiB)}/${Math.round(size / MiB)}`
  bar.start(size, 0, { mib: mib(0), note: '' })
  return {
    update: (offset, note) => bar.update(offset, { mib: mib(offset), note }),
    stop: () => bar.stop(),
  }
}

function barInLines(name: string, size: number): ReturnType<Screen['bar']> {
  let written = -1
  return {
    update(offset, note) {
      const tenth = Math.floor((offset / size) * 10)
      if (tenth <= written) return
      written = tenth
      const percent = `${Math.floor((offset / size) * 100)} %`.padStart(5)
      stdout.write(`  ${name} ${percent}  ${Math.round(offset / MiB)} of ${Math.round(size / MiB)} MiB  ${note}\n`)
    },
    stop: () => undefined,
  }
}
