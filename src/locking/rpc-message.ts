/** Messages of libvirt's RPC, as much of it as a client needs that only makes calls: bytes in, messages out. */
import { XdrReader, XdrWriter } from '../util/xdr.js'

/** The peer does what the protocol forbids. */
export class RpcError extends Error {
  override readonly name = 'RpcError'
}

export const messageTypes = { call: 0, reply: 1 } as const
export const statuses = { ok: 0, error: 1 } as const

const LENGTH = 4
const HEADER = LENGTH + 6 * 4
/** of a whole message, by the protocol */
const MAX_MESSAGE = 32 * 1024 * 1024 + LENGTH
const MAX_STRING = 4 * 1024 * 1024

export interface RpcMessage {
  program: number
  version: number
  procedure: number
  type: number
  serial: number
  status: number
  payload: Uint8Array
}

/** What a reply with status `error` says: numbers of virErrorNumber and virErrorDomain, and a sentence. */
export interface RemoteError {
  code: number
  domain: number
  message: string
}

export function encodeMessage(message: RpcMessage): Buffer {
  const header = new XdrWriter()
    .uint(HEADER + message.payload.length)
    .uint(message.program)
    .uint(message.version)
    .int(message.procedure)
    .int(message.type)
    .uint(message.serial)
    .int(message.status)
  return Buffer.concat([header.finish(), message.payload])
}

/** Cuts a stream of bytes into messages. */
export class RpcFraming {
  #rest = Buffer.alloc(0)

  push(chunk: Uint8Array): RpcMessage[] {
    this.#rest = Buffer.concat([this.#rest, chunk])
    const messages: RpcMessage[] = []
    while (this.#rest.length >= LENGTH) {
      const length = this.#rest.readUInt32BE()
      if (length < HEADER || length > MAX_MESSAGE) throw new RpcError(`a message cannot be ${length} bytes long`)
      if (this.#rest.length < length) break
      messages.push(decodeMessage(this.#rest.subarray(LENGTH, length)))
      this.#rest = this.#rest.subarray(length)
    }
    return messages
  }
}

function decodeMessage(bytes: Uint8Array): RpcMessage {
  const reader = new XdrReader(bytes)
  return {
    program: reader.uint(),
    version: reader.uint(),
    procedure: reader.int(),
    type: reader.int(),
    serial: reader.uint(),
    status: reader.int(),
    payload: bytes.subarray(HEADER - LENGTH),
  }
}

export function decodeRemoteError(payload: Uint8Array): RemoteError {
  const reader = new XdrReader(payload)
  const code = reader.int()
  const domain = reader.int()
  // what follows says nothing more to a client of locks
  return { code, domain, message: reader.optional(() => reader.string(MAX_STRING)) ?? 'no message' }
}
