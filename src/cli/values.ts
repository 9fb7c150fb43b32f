/** A command line that makes no sense. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}

const MIB = 1024 * 1024
const suffixes: Readonly<Record<string, number>> = { '': 1, k: 1024, m: MIB, g: 1024 * MIB, t: 1024 * 1024 * MIB }

/** The options of one command line. */
export class Values {
  readonly #raw: Readonly<Record<string, unknown>>

  constructor(raw: Readonly<Record<string, unknown>>) {
    this.#raw = raw
  }

  /** Names are those of the option without dashes in front: 'keep-nvram'. */
  flag(name: string): boolean {
    return this.#value(name) === true
  }

  given(name: string): boolean {
    return this.#value(name) !== undefined
  }

  text(name: string): string | undefined {
    const value = this.#value(name)
    return typeof value === 'string' ? value : undefined
  }

  /** Seconds, in milliseconds. */
  seconds(name: string): number | undefined {
    const text = this.text(name)
    return text === undefined ? undefined : parseCount(`--${name}`, text, 1) * 1000
  }

  count(name: string): number | undefined {
    const text = this.text(name)
    return text === undefined ? undefined : parseCount(`--${name}`, text, 0)
  }

  /** Bytes: a plain number, or one that says its unit as `parseSize` has it. */
  bytes(name: string): number | undefined {
    const text = this.text(name)
    if (text === undefined) return undefined
    return /\D/.test(text) ? parseSize(text, `--${name}`, 'bytes') : parseCount(`--${name}`, text, 0)
  }

  /** At most one of these. */
  exclusive(...names: string[]): void {
    const given = names.filter((name) => this.given(name))
    if (given.length > 1)
      throw new UsageError(`options ${given.map((name) => `--${name}`).join(' and ')} are mutually exclusive`)
  }

  /** None of these: they need `what`, which was not given. */
  require(what: string, ...names: string[]): void {
    const given = names.find((name) => this.given(name))
    if (given !== undefined) throw new UsageError(`option --${given} requires ${what}`)
  }

  #value(name: string): unknown {
    return this.#raw[name.replace(/-(.)/g, (_dash, letter: string) => letter.toUpperCase())]
  }
}

export function parseCount(what: string, text: string, least: number): number {
  const number = /^\d+$/.test(text) ? Number(text) : NaN
  if (!Number.isSafeInteger(number) || number < least)
    throw new UsageError(`${what} must be a whole number of at least ${least}, not '${text}'`)
  return number
}

/** A size in bytes: `text` is in KiB, or says its unit as virsh has it: 512B, 10MB (of 1000), 10M or 10MiB (of 1024). */
export function parseSize(text: string, what = 'size', plain = 'KiB'): number {
  const [, digits = '', prefix = '', decimal] = /^(\d+)([kmgtKMGT]?)(?:(B)|iB)?$/.exec(text) ?? []
  const power = ['', 'k', 'm', 'g', 't'].indexOf(prefix.toLowerCase())
  const unit = prefix === '' ? (decimal === undefined ? 1024 : 1) : (decimal === undefined ? 1024 : 1000) ** power
  const bytes = digits === '' ? NaN : Number(digits) * unit
  if (!Number.isSafeInteger(bytes))
    throw new UsageError(`${what} must be a number of ${plain}, or a number with B, K, M, G or T, not '${text}'`)
  return bytes
}

/** A bandwidth in bytes/s: `text` is in MiB/s, in bytes/s with --bytes, or says its unit: 500K, 20M, 1G. */
export function parseBandwidth(text: string | undefined, inBytes: boolean): number {
  if (text === undefined) return 0
  const [, digits = '', suffix = ''] = /^(\d+)([kmgtKMGT]?)(?:i?B)?$/.exec(text) ?? []
  const unit = suffix === '' ? (inBytes ? 1 : MIB) : (suffixes[suffix.toLowerCase()] ?? NaN)
  const bytes = digits === '' ? NaN : Number(digits) * unit
  if (!Number.isSafeInteger(bytes))
    throw new UsageError(`bandwidth must be a number of MiB/s, or a number with K, M or G, not '${text}'`)
  return bytes
}
