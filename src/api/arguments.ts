import { failFrom } from '../error.js'

const fail = failFrom('VIR_FROM_DOM')

const KIB = 1024
/** bytes in the MiB that libvirt counts bandwidths in */
const MIB = 1024 * 1024

/** The checks that stand before every driver call; the errors name the libvirt function that was called. */
export class Arguments {
  readonly #function: string

  constructor(functionName: string) {
    this.#function = functionName
  }

  /** A name, path or document: it has to be there. */
  text(label: string, value: unknown): string {
    if (value === undefined || value === null)
      throw fail('VIR_ERR_INVALID_ARG', `${label} in ${this.#function} must not be NULL`)
    if (typeof value !== 'string')
      throw fail('VIR_ERR_INVALID_ARG', `${label} in ${this.#function} must be a string, not a ${typeof value}`)
    if (value === '') throw fail('VIR_ERR_INVALID_ARG', `${label} in ${this.#function} must not be empty`)
    if (value.includes('\0')) throw fail('VIR_ERR_INVALID_ARG', `${label} in ${this.#function} must not contain NUL`)
    return value
  }

  optionalText(label: string, value: unknown): string | undefined {
    return value === undefined || value === null ? undefined : this.text(label, value)
  }

  /** A number of bytes, of things, or an id: whole, not negative, exact in a double. */
  count(label: string, value: unknown): number {
    if (typeof value !== 'number' || Number.isNaN(value))
      throw fail('VIR_ERR_INVALID_ARG', `${label} in ${this.#function} must be a number`)
    if (value < 0) throw fail('VIR_ERR_INVALID_ARG', `${label} in ${this.#function} must be zero or greater`)
    if (value > Number.MAX_SAFE_INTEGER)
      throw fail('VIR_ERR_OVERFLOW', `${label} in ${this.#function} must be at most ${Number.MAX_SAFE_INTEGER}`)
    if (!Number.isInteger(value))
      throw fail('VIR_ERR_INVALID_ARG', `${label} in ${this.#function} must be a whole number`)
    return value
  }

  /** MiB/s, or bytes/s where the flags say so; answers bytes/s. */
  bandwidth(value: unknown, inBytes: boolean): number {
    const given = this.count('bandwidth', value)
    const bytes = inBytes ? given : given * MIB
    if (!Number.isSafeInteger(bytes))
      throw fail('VIR_ERR_OVERFLOW', `bandwidth must be less than ${Math.ceil(Number.MAX_SAFE_INTEGER / MIB)} MiB/s`)
    return bytes
  }

  /** KiB, or bytes where the flags say so; answers bytes. */
  size(value: unknown, inBytes: boolean): number {
    const given = this.count('size', value)
    if (given === 0)
      throw fail('VIR_ERR_INVALID_ARG', `size in ${this.#function} must not be 0: everything on the disk would be lost`)
    const bytes = inBytes ? given : given * KIB
    if (!Number.isSafeInteger(bytes))
      throw fail('VIR_ERR_OVERFLOW', `size must be less than ${Math.ceil(Number.MAX_SAFE_INTEGER / KIB)} KiB`)
    return bytes
  }

  /** Bits of `known` only. */
  flags(value: unknown, known = 0): number {
    if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > 0xffff_ffff)
      throw fail('VIR_ERR_INVALID_ARG', `flags in ${this.#function} must be an unsigned 32-bit number`)
    const unknown = (value & ~known) >>> 0
    if (unknown !== 0)
      throw fail('VIR_ERR_INVALID_ARG', `unsupported flags (0x${unknown.toString(16)}) in function ${this.#function}`)
    return value
  }

  boolean(label: string, value: unknown): boolean {
    if (typeof value !== 'boolean')
      throw fail('VIR_ERR_INVALID_ARG', `${label} in ${this.#function} must be true or false`)
    return value
  }

  /** At most one of two flags. */
  exclusive(flags: number, one: readonly [string, number], other: readonly [string, number]): void {
    if ((flags & one[1]) !== 0 && (flags & other[1]) !== 0)
      throw fail(
        'VIR_ERR_INVALID_ARG',
        `flags '${one[0]}' and '${other[0]}' in ${this.#function} are mutually exclusive`,
      )
  }
}
