import { getSystemErrorMap } from 'node:util'
import type { errorCodes, errorDomains } from './error-codes.gen.js'

/** libvirt's name of an error, e.g. `VIR_ERR_OPERATION_INVALID` (virErrorNumber). */
export type VirErrorCode = keyof typeof errorCodes
/** libvirt's name of the part of the system that reports, e.g. `VIR_FROM_QEMU` (virErrorDomain). */
export type VirErrorDomain = keyof typeof errorDomains

/** The one error that leaves virstream: what libvirt's `virError` holds, as an exception. */
export class VirError extends Error {
  override readonly name = 'VirError'
  readonly code: VirErrorCode
  readonly domain: VirErrorDomain

  constructor(code: VirErrorCode, domain: VirErrorDomain, message: string, options?: { cause?: unknown }) {
    super(message, options)
    this.code = code
    this.domain = domain
  }
}

export type Fail = (code: VirErrorCode, message: string, cause?: unknown) => VirError

/** An error maker for one part of the system: `const fail = failFrom('VIR_FROM_QEMU')`, then `throw fail(code, message)`. */
export function failFrom(domain: VirErrorDomain): Fail {
  return (code, message, cause) => new VirError(code, domain, message, cause === undefined ? undefined : { cause })
}

/** The sentence of anything that was thrown. */
export function messageOf(thrown: unknown): string {
  return thrown instanceof Error ? thrown.message : String(thrown)
}

/** As messageOf(), where the sentence names the file already: of a system error 'No such file or directory' alone. */
export function wordsOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  const number = 'errno' in error && typeof error.errno === 'number' ? error.errno : undefined
  const words = number === undefined ? undefined : getSystemErrorMap().get(number)?.[1]
  return words === undefined ? error.message : words.charAt(0).toUpperCase() + words.slice(1)
}

/** The `code` of a system error (`'ENOENT'`), if it has one. */
export function errnoOf(thrown: unknown): string | undefined {
  if (!(thrown instanceof Error) || !('code' in thrown)) return undefined
  return typeof thrown.code === 'string' ? thrown.code : undefined
}
