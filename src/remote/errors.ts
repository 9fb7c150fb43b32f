import { failFrom, messageOf, VirError, type VirErrorCode } from '../error.js'
import { TunnelError, type TunnelErrorCode } from '../tunnel/error.js'

const fail = failFrom('VIR_FROM_RPC')

/** what libvirt says in the same case */
const codes: Readonly<Record<TunnelErrorCode, VirErrorCode>> = {
  EPROTO: 'VIR_ERR_RPC',
  EACCES: 'VIR_ERR_AUTH_FAILED',
  ECONNREFUSED: 'VIR_ERR_SYSTEM_ERROR',
  ECONNRESET: 'VIR_ERR_RPC',
  ETIMEDOUT: 'VIR_ERR_RPC',
  ESHUTDOWN: 'VIR_ERR_RPC',
  EINVAL: 'VIR_ERR_INVALID_ARG',
}

/** What a user is told of anything that went wrong on the way; an error of the other side stays what it is. */
export function wireError(thrown: unknown, what: string): VirError {
  if (thrown instanceof VirError) return thrown
  const code = thrown instanceof TunnelError ? codes[thrown.code] : 'VIR_ERR_INTERNAL_ERROR'
  return fail(code, `${what}: ${messageOf(thrown)}`, thrown)
}
