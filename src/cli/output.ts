import type { Writable } from 'node:stream'

/** Writes what a command prints. When nobody reads any more it goes on in silence, and says so to who asks. */
export class Output {
  readonly #stream: Writable
  readonly #gone = new AbortController()
  #problem: Error | undefined

  constructor(stream: Writable) {
    this.#stream = stream
    stream.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'EPIPE') this.#problem = error
      this.#gone.abort()
    })
  }

  /** Why not everything was written, other than that nobody reads it. */
  get problem(): Error | undefined {
    return this.#problem
  }

  /** Aborts when the reader has gone away. */
  get gone(): AbortSignal {
    return this.#gone.signal
  }

  get stream(): Writable {
    return this.#stream
  }

  /** Resolves when what was written has gone out, or cannot. */
  flush(): Promise<void> {
    return new Promise((resolve) => this.#stream.write('', () => resolve()))
  }

  line(text = ''): void {
    this.write(`${text}\n`)
  }

  write(text: string): void {
    if (!this.#gone.signal.aborted) this.#stream.write(text)
  }
}

/** A table as virsh draws it: two blanks less than the columns' widths are the line below the header. */
export function formatTable(header: readonly string[], rows: readonly (readonly string[])[], quiet = false): string[] {
  const all = [header, ...rows]
  const widths = header.map((_title, column) => Math.max(...all.map((row) => (row[column] ?? '').length)))
  const line = (row: readonly string[]): string =>
    ` ${row.map((cell, column) => (column === row.length - 1 ? cell : cell.padEnd(widths[column] ?? 0))).join('   ')}`
  const rule = '-'.repeat(widths.reduce((sum, width) => sum + width + 3, 0))
  return [...(quiet ? [] : [line(header), rule]), ...rows.map(line)]
}

/** '1.500 GiB' */
export function formatSize(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB']
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit += 1
  }
  return `${value.toFixed(3)} ${units[unit] ?? ''}`
}
