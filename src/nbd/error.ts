import { replies } from './constants.js'

/** The wire's error numbers (they are Linux's). */
const errnos = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const

const names = new Map<number, string>(Object.entries(errnos).map(([name, number]) => [number, name]))

/**
 * What goes wrong between an NBD client and a server. `code` is an error of the protocol (`EIO`, `EPERM`, `ENOSPC`, …) when the
 * peer answered one; `ECONNRESET` for a lost connection; `EPROTO` for a peer that breaks the protocol.
 */
export class NbdError extends Error {
  override readonly name = 'NbdError'
  readonly code: string
  /** the number on the wire, as Linux has it; 0 when the error did not come over the wire */
  readonly errno: number

  constructor(code: string, message: string, options?: { errno?: number; cause?: unknown }) {
    super(message, options?.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.errno = options?.errno ?? 0
  }
}

/** The peer does what the protocol forbids: the connection can't go on. */
export function protocolError(message: string): NbdError {
  return new NbdError('EPROTO', message)
}

/** The error of a reply; a number that the protocol doesn't know counts as EINVAL, as it says. */
export function errorOfReply(errno: number, command: string, message: string): NbdError {
  const code = names.get(errno) ?? 'EINVAL'
  return new NbdError(code, `NBD ${command} failed: ${message === '' ? code : message}`, { errno })
}

/** The number to send for an error that serving a request threw: the protocol's own where it has one, EIO otherwise. */
export function errnoToSend(thrown: unknown): number {
  const code = thrown instanceof Error && 'code' in thrown ? thrown.code : undefined
  return Object.entries(errnos).find(([name]) => name === code)?.[1] ?? errnos.EIO
}

const refusals = new Map<number, [code: string, meaning: string]>([
  [replies.errUnsup, ['ENOTSUP', 'the server does not support it']],
  [replies.errPolicy, ['EACCES', 'the server forbids it']],
  [replies.errInvalid, ['EINVAL', 'the server finds it invalid']],
  [replies.errPlatform, ['ENOTSUP', 'the server can not do it on its platform']],
  [replies.errTlsReqd, ['EACCES', 'the server demands TLS']],
  [replies.errUnknown, ['ENOENT', 'the server has no such export']],
  [replies.errShutdown, ['ESHUTDOWN', 'the server is shutting down']],
  [replies.errBlockSizeReqd, ['EINVAL', 'the server demands that block sizes be asked for']],
  [replies.errTooBig, ['EINVAL', 'the request is too big for the server']],
])

/** The error of an option that the server refused; `message` is the server's own, often empty. */
export function errorOfOption(type: number, option: string, message: string): NbdError {
  const [code, meaning] = refusals.get(type) ?? ['EINVAL', `the server refused with reply type ${type}`]
  return new NbdError(code, `NBD ${option} failed: ${message === '' ? meaning : message}`)
}
