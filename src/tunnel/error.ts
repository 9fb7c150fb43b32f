/** What went wrong, in the words of Linux where it has one. */
export type TunnelErrorCode =
  /** the other side breaks the protocol: garbage, too long, more than it was allowed, a version that we do not speak */
  | 'EPROTO'
  /** refused at the hello: token, certificate or name */
  | 'EACCES'
  /** a channel was refused by the other side, or nobody listens at the address */
  | 'ECONNREFUSED'
  /** the link or the channel broke */
  | 'ECONNRESET'
  /** the link is dead, or a deadline passed */
  | 'ETIMEDOUT'
  /** closed on purpose */
  | 'ESHUTDOWN'
  /** what our own caller asked for cannot be: an address, a name, an argument that is too long */
  | 'EINVAL'

/** What goes wrong on a tunnel or on one of its channels. The message is a whole sentence. */
export class TunnelError extends Error {
  override readonly name = 'TunnelError'
  readonly code: TunnelErrorCode

  constructor(code: TunnelErrorCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause })
    this.code = code
  }
}

/** The other side does what the protocol forbids: the tunnel can't go on. */
export function protocolError(message: string): TunnelError {
  return new TunnelError('EPROTO', message)
}

/** Anything that was thrown, as a TunnelError; `message` is put before what is not one yet. */
export function asTunnelError(thrown: unknown, code: TunnelErrorCode, message: string): TunnelError {
  if (thrown instanceof TunnelError) return thrown
  return new TunnelError(code, `${message}: ${thrown instanceof Error ? thrown.message : String(thrown)}`, thrown)
}
