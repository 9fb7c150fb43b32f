/** What is inside the frames that are more than bytes: HELLO, OPEN and ACCEPT. No sockets. */
import { protocolError, TunnelError } from './error.js'
import { OPEN_SIZE } from './framing.js'

/** What goes along with a hello, an OPEN or an ACCEPT: a JSON object. */
export type Params = Readonly<Record<string, unknown>>

/** The version of the protocol that we speak, and the oldest that we still understand. */
export const VERSION = 1
export const OLDEST_VERSION = 1

const MAGIC = Buffer.from('VSTUNNEL', 'latin1')
const MAX_TOKEN = 512
const MAX_SERVICE = 255
/** What a channel may be allowed to send at most. */
export const MAX_WINDOW = 0x7fffffff

export interface Hello {
  version: number
  /** the oldest version that this side understands */
  oldest: number
  /** '' in the server's answer */
  token: string
  params: Params
}

export interface Opening {
  /** bytes that the sender of this frame takes on the channel before it returns credit */
  window: number
  service: string
  params: Params
}

export interface Acceptance {
  window: number
  params: Params
}

/** Walks over a payload; running over its end is the other side's fault. */
class PayloadReader {
  readonly #bytes: Buffer
  #at = 0

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  bytes(count: number): Buffer {
    if (this.#at + count > this.#bytes.length) throw protocolError('a frame ends before its last field')
    this.#at += count
    return this.#bytes.subarray(this.#at - count, this.#at)
  }

  u16(): number {
    return this.bytes(2).readUInt16BE()
  }

  window(): number {
    const window = this.bytes(4).readUInt32BE()
    if (window > MAX_WINDOW) throw protocolError(`a window of ${window} bytes is too large`)
    return window
  }

  /** Text with its length (16 bits) before it. */
  text(most: number): string {
    const length = this.u16()
    if (length > most) throw protocolError(`a text of ${length} bytes is too long`)
    return this.bytes(length).toString('utf8')
  }

  /** The rest: a JSON object. */
  params(): Params {
    return parseParams(this.#bytes.subarray(this.#at).toString('utf8'))
  }
}

function parseParams(text: string): Params {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw protocolError(`parameters are no JSON: ${error instanceof Error ? error.message : String(error)}`)
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw protocolError('parameters are no JSON object')
  return value as Params
}

function shortText(text: string, most: number, what: string): Buffer {
  const bytes = Buffer.from(text, 'utf8')
  if (bytes.length > most) throw new TunnelError('EINVAL', `${what} of ${bytes.length} bytes is too long`)
  const length = Buffer.alloc(2)
  length.writeUInt16BE(bytes.length)
  return Buffer.concat([length, bytes])
}

function numbers(...values: [value: number, bytes: 2 | 4][]): Buffer {
  const parts = values.map(([value, size]) => {
    const bytes = Buffer.alloc(size)
    bytes.writeUIntBE(value, 0, size)
    return bytes
  })
  return Buffer.concat(parts)
}

function bounded(parts: Buffer[], most: number, what: string): Buffer {
  const payload = Buffer.concat(parts)
  if (payload.length > most) throw new TunnelError('EINVAL', `the parameters of ${what} are too long`)
  return payload
}

/** Throws TunnelError EINVAL for what is too long. */
export function helloPayload({ version, oldest, token, params }: Hello): Buffer {
  const parts = [MAGIC, numbers([version, 2], [oldest, 2]), shortText(token, MAX_TOKEN, 'a token')]
  return bounded([...parts, Buffer.from(JSON.stringify(params))], 16 * 1024, 'a hello')
}

export function parseHello(payload: Buffer): Hello {
  const reader = new PayloadReader(payload)
  if (!reader.bytes(MAGIC.length).equals(MAGIC)) throw protocolError('this is no virstream tunnel')
  const [version, oldest] = [reader.u16(), reader.u16()]
  // what follows may look otherwise in a version that we do not speak
  if (commonVersion(version, oldest) === undefined) return { version, oldest, token: '', params: {} }
  return { version, oldest, token: reader.text(MAX_TOKEN), params: reader.params() }
}

/** The newest version that both sides speak; undefined: there is none. */
export function commonVersion(version: number, oldest: number): number | undefined {
  const common = Math.min(version, VERSION)
  return common >= Math.max(oldest, OLDEST_VERSION) ? common : undefined
}

/** Throws TunnelError EINVAL for what is too long. */
export function openPayload({ window, service, params }: Opening): Buffer {
  if (service === '') throw new TunnelError('EINVAL', 'a service has no name')
  const parts = [numbers([window, 4]), shortText(service, MAX_SERVICE, 'a service name')]
  return bounded([...parts, Buffer.from(JSON.stringify(params))], OPEN_SIZE, `channel '${service}'`)
}

export function parseOpen(payload: Buffer): Opening {
  const reader = new PayloadReader(payload)
  const window = reader.window()
  const service = reader.text(MAX_SERVICE)
  if (service === '') throw protocolError('a channel is opened for a service without a name')
  return { window, service, params: reader.params() }
}

export function acceptPayload({ window, params }: Acceptance): Buffer {
  return bounded([numbers([window, 4]), Buffer.from(JSON.stringify(params))], OPEN_SIZE, 'an answer')
}

export function parseAccept(payload: Buffer): Acceptance {
  const reader = new PayloadReader(payload)
  return { window: reader.window(), params: reader.params() }
}

export function creditPayload(bytes: number): Buffer {
  return numbers([bytes, 4])
}
