/** What a server wants to know of its user, asked in one of libvirt's threads and answered on ours. */
import koffi from 'koffi'
import type { Credential, DriverHost } from '../driver.js'
import type { LibvirtNotice } from '../native.js'
import * as c from '../constants.gen.js'
import type { Library } from './library.js'

const credential = koffi.struct({
  type: 'int',
  prompt: 'const char *',
  challenge: 'const char *',
  defresult: 'const char *',
  result: 'void *',
  resultlen: 'unsigned int',
})
const size = koffi.sizeof(credential)

const types = [
  c.VIR_CRED_USERNAME,
  c.VIR_CRED_AUTHNAME,
  c.VIR_CRED_LANGUAGE,
  c.VIR_CRED_CNONCE,
  c.VIR_CRED_PASSPHRASE,
  c.VIR_CRED_ECHOPROMPT,
  c.VIR_CRED_NOECHOPROMPT,
  c.VIR_CRED_REALM,
  c.VIR_CRED_EXTERNAL,
]
// libvirt keeps no copy, and what JavaScript has moves: memory of its own, never given back
const typesMemory: unknown = koffi.alloc('int', types.length)
koffi.encode(typesMemory, koffi.array('int', types.length), types)
const typesAt = koffi.address(typesMemory)

type Authenticate = NonNullable<DriverHost['authenticate']>

export class Authentication {
  readonly #lib: Library
  readonly #ask: Authenticate
  readonly #id: number

  constructor(lib: Library, ask: Authenticate) {
    this.#lib = lib
    this.#ask = ask
    this.#id = lib.listen((notice) => void this.#answer(notice))
  }

  /** virConnectAuth */
  asStruct(): Uint8Array {
    const { authenticate } = this.#lib.functions
    return new Uint8Array(BigUint64Array.of(typesAt, BigInt(types.length), authenticate, BigInt(this.#id)).buffer)
  }

  end(): void {
    this.#lib.unlisten(this.#id)
  }

  async #answer({ token, data, number: count }: LibvirtNotice): Promise<void> {
    const asked = Array.from({ length: count }, (_, nth) => read(data + BigInt(nth * size)))
    let given: readonly (string | undefined)[] = []
    try {
      given = await this.#ask(asked)
    } catch {
      // no answer is one too
    }
    const complete = asked.every((_, nth) => typeof given[nth] === 'string')
    if (complete) for (const nth of asked.keys()) write(data + BigInt(nth * size), given[nth] ?? '')
    this.#lib.answer(token, complete ? 0 : -1)
  }
}

function read(at: bigint): Credential {
  const { type, prompt, challenge, defresult } = koffi.decode(at, credential) as {
    type: number
    prompt: string | null
    challenge: string | null
    defresult: string | null
  }
  return {
    type,
    prompt: prompt ?? '',
    ...(challenge !== null && { challenge }),
    ...(defresult !== null && { defaultResult: defresult }),
  }
}

/** libvirt frees what it is given. */
function write(at: bigint, text: string): void {
  const bytes = Buffer.from(`${text}\0`)
  const copy = koffi.address(koffi.alloc('uint8_t', bytes.length))
  koffi.encode(copy, 'uint8_t', bytes, bytes.length)
  koffi.encode(at, koffi.offsetof(credential, 'result'), 'void *', copy)
  koffi.encode(at, koffi.offsetof(credential, 'resultlen'), 'unsigned int', bytes.length - 1)
}
