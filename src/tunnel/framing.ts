/**
 * Frames: how bytes that come in any pieces become frames, and back. No sockets. docs/tunnel.md has the wire format.
 * A frame is 8 bytes of header (type: 8 bits, length of the payload: 24 bits, channel: 32 bits, big-endian) and its payload.
 */
import { protocolError } from './error.js'

export const HEADER_SIZE = 8

export const frameTypes = {
  hello: 1,
  open: 2,
  accept: 3,
  refuse: 4,
  data: 5,
  credit: 6,
  fin: 7,
  reset: 8,
  ping: 9,
  pong: 10,
  goaway: 11,
} as const

export type FrameType = (typeof frameTypes)[keyof typeof frameTypes]

/** The longest DATA payload that we send; senders may go up to `limits` */
export const DATA_SIZE = 128 * 1024
const REASON_SIZE = 1024
export const OPEN_SIZE = 64 * 1024

/** Shortest and longest payload of each type, in bytes. */
const limits: Readonly<Record<FrameType, readonly [least: number, most: number]>> = {
  [frameTypes.hello]: [16, 16 * 1024],
  [frameTypes.open]: [8, OPEN_SIZE],
  [frameTypes.accept]: [6, OPEN_SIZE],
  [frameTypes.refuse]: [0, REASON_SIZE],
  [frameTypes.data]: [1, 1024 * 1024],
  [frameTypes.credit]: [4, 4],
  [frameTypes.fin]: [0, 0],
  [frameTypes.reset]: [0, REASON_SIZE],
  [frameTypes.ping]: [8, 8],
  [frameTypes.pong]: [8, 8],
  [frameTypes.goaway]: [0, REASON_SIZE],
}

const ofTheLink: ReadonlySet<number> = new Set([frameTypes.hello, frameTypes.ping, frameTypes.pong, frameTypes.goaway])

export interface Frame {
  type: FrameType
  /** 0: the link itself */
  channel: number
  /** of a DATA frame perhaps only a piece: the rest follows as if it were a frame of its own */
  payload: Buffer
}

/** The header of a frame; its payload goes after it. */
export function frameHeader(type: FrameType, channel: number, length: number): Buffer {
  const header = Buffer.allocUnsafe(HEADER_SIZE)
  header.writeUInt32BE(type * 0x1000000 + length, 0)
  header.writeUInt32BE(channel, 4)
  return header
}

/** A short frame in one piece. Payloads longer than the type allows are a mistake of ours: RangeError. */
export function frame(type: FrameType, channel: number, payload: Uint8Array = Buffer.alloc(0)): Buffer {
  const [least, most] = limits[type]
  if (payload.length < least || payload.length > most)
    throw new RangeError(`no frame of type ${type} has ${payload.length} bytes`)
  return Buffer.concat([frameHeader(type, channel, payload.length), payload])
}

/** The payload of REFUSE, RESET and GOAWAY: text, cut where it would be too long. */
export function reasonPayload(reason: string): Buffer {
  const bytes = Buffer.from(reason, 'utf8')
  if (bytes.length <= REASON_SIZE) return bytes
  // not in the middle of a character
  let end = REASON_SIZE
  while (((bytes[end] ?? 0) & 0xc0) === 0x80) end -= 1
  return bytes.subarray(0, end)
}

function isFrameType(type: number): type is FrameType {
  return type in limits
}

/**
 * Splits a stream of bytes into frames, without copying DATA. Holds back at most one header and one payload that is not
 * DATA, whose length is bounded by its type. After it has thrown it must not be used any more.
 */
export class FrameReader {
  #header = Buffer.alloc(HEADER_SIZE)
  #headerLength = 0
  #type: FrameType = frameTypes.data
  #channel = 0
  /** bytes of the payload that are still to come; undefined: a header comes next */
  #left: number | undefined
  #parts: Buffer[] = []

  /** Hands on every frame that `chunk` completes, and every piece of a DATA frame. Throws TunnelError EPROTO. */
  push(chunk: Buffer, onFrame: (frame: Frame) => void): void {
    let at = 0
    while (at < chunk.length) {
      if (this.#left === undefined) at = this.#takeHeader(chunk, at, onFrame)
      else at = this.#takePayload(chunk, at, this.#left, onFrame)
    }
  }

  /** In the middle of a frame: a stream that ends here was cut. */
  get inFrame(): boolean {
    return this.#left !== undefined || this.#headerLength > 0
  }

  #takeHeader(chunk: Buffer, at: number, onFrame: (frame: Frame) => void): number {
    const taken = chunk.copy(this.#header, this.#headerLength, at, at + HEADER_SIZE - this.#headerLength)
    this.#headerLength += taken
    // the very first byte tells what is no frame at all
    const type = this.#header.readUInt8(0)
    if (!isFrameType(type)) throw protocolError(`there is no frame of type ${type}`)
    if (this.#headerLength < HEADER_SIZE) return at + taken
    this.#headerLength = 0
    this.#type = type
    this.#channel = this.#header.readUInt32BE(4)
    const length = this.#header.readUIntBE(1, 3)
    checkHeader(type, this.#channel, length)
    if (length > 0) this.#left = length
    else onFrame({ type, channel: this.#channel, payload: Buffer.alloc(0) })
    return at + taken
  }

  #takePayload(chunk: Buffer, at: number, left: number, onFrame: (frame: Frame) => void): number {
    const part = chunk.subarray(at, at + left)
    this.#left = left - part.length === 0 ? undefined : left - part.length
    if (this.#type === frameTypes.data) {
      onFrame({ type: this.#type, channel: this.#channel, payload: part })
    } else if (this.#left !== undefined) {
      // a copy: a short piece must not keep a whole chunk alive, and a piece for each byte must stay cheap
      this.#parts.push(Buffer.from(part))
    } else {
      const payload = this.#parts.length === 0 ? part : Buffer.concat([...this.#parts.splice(0), part])
      onFrame({ type: this.#type, channel: this.#channel, payload })
    }
    return at + part.length
  }
}

function checkHeader(type: FrameType, channel: number, length: number): void {
  const [least, most] = limits[type]
  if (length < least || length > most) throw protocolError(`a frame of type ${type} has ${length} bytes`)
  // REFUSE may be of a channel or of the link
  if (type !== frameTypes.refuse && ofTheLink.has(type) !== (channel === 0))
    throw protocolError(`a frame of type ${type} is on channel ${channel}`)
}
