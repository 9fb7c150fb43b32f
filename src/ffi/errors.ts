/** libvirt's virError as `VirError`. */
import koffi from 'koffi'
import { errorCodes, errorDomains } from '../error-codes.gen.js'
import { VirError } from '../error.js'
import type { VirErrorCode, VirErrorDomain } from '../error.js'

/** The beginning of struct _virError (virterror.h); what follows is not read. */
const virError = koffi.struct({
  code: 'int',
  domain: 'int',
  message: 'const char *',
  level: 'int',
  conn: 'void *',
  dom: 'void *',
  str1: 'const char *',
  str2: 'const char *',
})

interface RawError {
  code: number
  domain: number
  message: string | null
  str2: string | null
}

const codeNames = new Map<number, VirErrorCode>(
  Object.entries(errorCodes).map(([name, code]) => [code, name as VirErrorCode]),
)
const domainNames = new Map<number, VirErrorDomain>(
  Object.entries(errorDomains).map(([name, number]) => [number, name as VirErrorDomain]),
)

/** libvirt puts a sentence of the code before the one that was reported, unless that is but a word of it (a function, a URI). */
function reported(text: string, detail: string): string {
  return text.endsWith(`: ${detail}`) && /\s/.test(detail) ? detail : text
}

/** `at`: where a virError lies; 0: the function failed without saying why. */
export function toVirError(at: bigint, functionName: string): VirError {
  if (at === 0n)
    return new VirError('VIR_ERR_INTERNAL_ERROR', 'VIR_FROM_NONE', `${functionName} failed without a reason`)
  const { code, domain, message, str2 } = koffi.decode(at, virError) as RawError
  const text = message ?? `${functionName} failed`
  const bare = reported(text, str2 ?? '')
  const known = codeNames.get(code)
  return new VirError(
    known ?? 'VIR_ERR_INTERNAL_ERROR',
    domainNames.get(domain) ?? 'VIR_FROM_NONE',
    known === undefined ? `${bare} (libvirt's error ${code}, which is newer than virstream)` : bare,
  )
}
