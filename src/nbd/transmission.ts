/** The messages after the negotiation: requests, simple replies, chunks of structured replies. Both directions, no I/O. */
import { FieldReader, type Grammar, u16, u32, u64 } from './codec.js'
import { chunkFlags, chunks, commands, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC } from './constants.js'
import { protocolError } from './error.js'
import { text } from './handshake.js'

export interface Request {
  flags: number
  /** one of `commands` */
  type: number
  /** the client's own number of the request, which replies carry */
  cookie: bigint
  /** kept as it came: a server answers an impossible one with EINVAL */
  offset: bigint
  length: number
  /** what a write carries; empty otherwise */
  payload: Buffer
}

/** One extent of a metadata context; what `flags` means is the context's own. */
export interface StatusDescriptor {
  length: number
  flags: number
}

export type Chunk =
  | { type: 'none' }
  | { type: 'data'; offset: number; data: Buffer }
  | { type: 'hole'; offset: number; length: number }
  | { type: 'status'; contextId: number; extents: StatusDescriptor[] }
  | { type: 'error'; errno: number; message: string }

export type Reply =
  | { kind: 'simple'; cookie: bigint; errno: number; data: Buffer }
  | { kind: 'chunk'; cookie: bigint; done: boolean; chunk: Chunk }

/** What the request of a reply allows the reply to be. */
export interface ReplyLimits {
  /** bytes that follow a simple reply without error */
  simplePayload: number
  /** longest chunk of a structured reply */
  chunk: number
}

const requestHeader = 28

export function* readRequest(maxPayload: number): Grammar<Request> {
  const header = new FieldReader(yield requestHeader)
  if (header.u32() !== REQUEST_MAGIC) throw protocolError('an NBD request has the wrong magic')
  const flags = header.u16()
  const type = header.u16()
  const cookie = header.bytes(8).readBigUInt64BE()
  const offset = header.bytes(8).readBigUInt64BE()
  const length = header.u32()
  if (type !== commands.write || length === 0) return { flags, type, cookie, offset, length, payload: Buffer.alloc(0) }
  if (length > maxPayload) throw protocolError(`an NBD write of ${length} bytes is too long`)
  return { flags, type, cookie, offset, length, payload: yield length }
}

/** The header of a request; a write's bytes follow it. */
export function encodeRequest(type: number, flags: number, cookie: bigint, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(requestHeader)
  bytes.writeUInt32BE(REQUEST_MAGIC, 0)
  bytes.writeUInt16BE(flags, 4)
  bytes.writeUInt16BE(type, 6)
  bytes.writeBigUInt64BE(cookie, 8)
  bytes.writeBigUInt64BE(BigInt(offset), 16)
  bytes.writeUInt32BE(length, 24)
  return bytes
}

/** Reads a reply of either kind; `limitsOf` knows the request of a cookie, and throws for a cookie of no request. */
export function* readReply(limitsOf: (cookie: bigint) => ReplyLimits): Grammar<Reply> {
  const header = yield 16
  const magic = header.readUInt32BE()
  const cookie = header.readBigUInt64BE(8)
  if (magic === SIMPLE_REPLY_MAGIC) {
    const errno = header.readUInt32BE(4)
    const length = errno === 0 ? limitsOf(cookie).simplePayload : 0
    return { kind: 'simple', cookie, errno, data: length === 0 ? Buffer.alloc(0) : yield length }
  }
  if (magic !== STRUCTURED_REPLY_MAGIC) throw protocolError('an NBD reply has the wrong magic')
  const done = (header.readUInt16BE(4) & chunkFlags.done) !== 0
  const type = header.readUInt16BE(6)
  const length = (yield 4).readUInt32BE()
  const limit = limitsOf(cookie).chunk
  if (length > limit) throw protocolError(`an NBD reply chunk of ${length} bytes is longer than ${limit}`)
  const payload = length === 0 ? Buffer.alloc(0) : yield length
  return { kind: 'chunk', cookie, done, chunk: decodeChunk(type, new FieldReader(payload), done) }
}

function decodeChunk(type: number, fields: FieldReader, done: boolean): Chunk {
  switch (type) {
    case chunks.none:
      if (!done) throw protocolError('an empty NBD reply chunk is not the last one')
      fields.end()
      return { type: 'none' }
    case chunks.offsetData:
      return { type: 'data', offset: fields.u64(), data: fields.rest() }
    case chunks.offsetHole:
      return { type: 'hole', offset: fields.u64(), length: fields.u32() }
    case chunks.blockStatus:
      return { type: 'status', contextId: fields.u32(), extents: decodeExtents(fields) }
    default:
      // the highest bit marks every error, also one that is not known yet
      if ((type & 0x8000) === 0) throw protocolError(`the NBD reply chunk type ${type} is unknown`)
      return { type: 'error', errno: fields.u32(), message: text(fields.bytes(fields.u16())) }
  }
}

function decodeExtents(fields: FieldReader): StatusDescriptor[] {
  if (fields.left === 0 || fields.left % 8 !== 0) throw protocolError('an NBD block status has no whole extents')
  const extents = Array.from({ length: fields.left / 8 }, () => ({ length: fields.u32(), flags: fields.u32() }))
  if (extents.some((extent) => extent.length === 0)) throw protocolError('an NBD block status has an empty extent')
  return extents
}

/** The header of a simple reply; a read's bytes follow it. */
export function encodeSimpleReply(cookie: bigint, errno: number): Buffer {
  return Buffer.concat([u32(SIMPLE_REPLY_MAGIC), u32(errno), u64(cookie)])
}

/** A chunk in the pieces to send, so that its data need not be copied. */
export function encodeChunk(cookie: bigint, done: boolean, chunk: Chunk): Uint8Array[] {
  const [type, ...parts] = encodeChunkBody(chunk)
  const length = parts.reduce((sum, part) => sum + part.length, 0)
  const flags = done ? chunkFlags.done : 0
  const header = [u32(STRUCTURED_REPLY_MAGIC), u16(flags), u16(type), u64(cookie), u32(length)]
  return [Buffer.concat(header), ...parts]
}

function encodeChunkBody(chunk: Chunk): [number, ...Uint8Array[]] {
  switch (chunk.type) {
    case 'none':
      return [chunks.none]
    case 'data':
      return [chunks.offsetData, u64(chunk.offset), chunk.data]
    case 'hole':
      return [chunks.offsetHole, u64(chunk.offset), u32(chunk.length)]
    case 'status': {
      const extents = chunk.extents.flatMap((extent) => [u32(extent.length), u32(extent.flags)])
      return [chunks.blockStatus, Buffer.concat([u32(chunk.contextId), ...extents])]
    }
    case 'error': {
      const message = Buffer.from(chunk.message).subarray(0, 1024)
      return [chunks.error, u32(chunk.errno), u16(message.length), message]
    }
  }
}
