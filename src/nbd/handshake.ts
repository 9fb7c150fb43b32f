/** The messages of the negotiation: greeting, options, replies to options. Both directions, no I/O. */
import { FieldReader, type Grammar, sized, u16, u32, u64 } from './codec.js'
import {
  IHAVEOPT,
  infos,
  MAX_OPTION_DATA,
  MAX_STRING,
  NBDMAGIC,
  OLD_STYLE_MAGIC,
  OPTION_REPLY_MAGIC,
} from './constants.js'
import { protocolError } from './error.js'

export interface Option {
  option: number
  data: Buffer
}

export interface OptionReply {
  option: number
  /** one of `replies`; the highest bit says that it is an error */
  type: number
  data: Buffer
}

/** Sizes in bytes that requests should keep to (NBD_INFO_BLOCK_SIZE). */
export interface BlockSizes {
  minimum: number
  preferred: number
  maximum: number
}

export type ExportInfo =
  | { info: 'export'; size: number; flags: number }
  | { info: 'name' | 'description'; text: string }
  | { info: 'blockSize'; sizes: BlockSizes }
  | { info: 'unknown' }

/** The server's first words: answers its handshake flags. */
export function* readGreeting(): Grammar<{ flags: number }> {
  const magic = yield 16
  if (magic.readBigUInt64BE() !== NBDMAGIC) throw protocolError('the peer is no NBD server')
  const style = magic.readBigUInt64BE(8)
  if (style === OLD_STYLE_MAGIC) throw protocolError('the NBD server speaks the old-style negotiation only')
  if (style !== IHAVEOPT) throw protocolError('the peer is no NBD server')
  return { flags: (yield 2).readUInt16BE() }
}

export function encodeGreeting(flags: number): Buffer {
  return Buffer.concat([u64(NBDMAGIC), u64(IHAVEOPT), u16(flags)])
}

export function* readClientFlags(): Grammar<{ flags: number }> {
  return { flags: (yield 4).readUInt32BE() }
}

export function encodeClientFlags(flags: number): Buffer {
  return u32(flags)
}

export function* readOption(): Grammar<Option> {
  const header = new FieldReader(yield 16)
  if (header.bytes(8).readBigUInt64BE() !== IHAVEOPT) throw protocolError('an NBD option has the wrong magic')
  const option = header.u32()
  const length = header.u32()
  if (length > MAX_OPTION_DATA) throw protocolError(`an NBD option with ${length} bytes of data is too long`)
  return { option, data: length === 0 ? Buffer.alloc(0) : yield length }
}

export function encodeOption(option: number, data: Uint8Array = Buffer.alloc(0)): Buffer {
  return Buffer.concat([u64(IHAVEOPT), u32(option), u32(data.length), data])
}

export function* readOptionReply(): Grammar<OptionReply> {
  const header = new FieldReader(yield 20)
  if (header.bytes(8).readBigUInt64BE() !== OPTION_REPLY_MAGIC) throw protocolError('an NBD reply has the wrong magic')
  const option = header.u32()
  const type = header.u32()
  const length = header.u32()
  if (length > MAX_OPTION_DATA) throw protocolError(`an NBD reply with ${length} bytes of data is too long`)
  return { option, type, data: length === 0 ? Buffer.alloc(0) : yield length }
}

export function encodeOptionReply(option: number, type: number, data: Uint8Array = Buffer.alloc(0)): Buffer {
  return Buffer.concat([u64(OPTION_REPLY_MAGIC), u32(option), u32(type), u32(data.length), data])
}

/** Data of NBD_OPT_INFO and NBD_OPT_GO: the export and what to tell of it. */
export function encodeExportRequest(name: string, wanted: readonly number[]): Buffer {
  return Buffer.concat([sized(name), u16(wanted.length), ...wanted.map(u16)])
}

export function decodeExportRequest(data: Buffer): { name: string; wanted: number[] } {
  const fields = new FieldReader(data)
  const name = fields.string()
  const wanted = Array.from({ length: fields.u16() }, () => fields.u16())
  fields.end()
  return { name, wanted }
}

/** Data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. */
export function encodeMetaContextRequest(name: string, queries: readonly string[]): Buffer {
  return Buffer.concat([sized(name), u32(queries.length), ...queries.map(sized)])
}

export function decodeMetaContextRequest(data: Buffer): { name: string; queries: string[] } {
  const fields = new FieldReader(data)
  const name = fields.string()
  const count = fields.u32()
  if (count * 4 > fields.left) throw protocolError('an NBD message ends before its last field')
  const queries = Array.from({ length: count }, () => fields.string())
  fields.end()
  return { name, queries }
}

/** Data of NBD_REP_META_CONTEXT */
export function encodeMetaContext(id: number, name: string): Buffer {
  return Buffer.concat([u32(id), Buffer.from(name)])
}

export function decodeMetaContext(data: Buffer): { id: number; name: string } {
  const fields = new FieldReader(data)
  return { id: fields.u32(), name: text(fields.rest()) }
}

/** Data of NBD_REP_SERVER */
export function encodeListed(name: string, description: string): Buffer {
  return Buffer.concat([sized(name), Buffer.from(description)])
}

export function decodeListed(data: Buffer): { name: string; description: string } {
  const fields = new FieldReader(data)
  return { name: fields.string(), description: text(fields.rest()) }
}

/** Data of NBD_REP_INFO */
export function encodeInfo(info: Exclude<ExportInfo, { info: 'unknown' }>): Buffer {
  switch (info.info) {
    case 'export':
      return Buffer.concat([u16(infos.export), u64(info.size), u16(info.flags)])
    case 'blockSize':
      return Buffer.concat([
        u16(infos.blockSize),
        u32(info.sizes.minimum),
        u32(info.sizes.preferred),
        u32(info.sizes.maximum),
      ])
    default:
      return Buffer.concat([u16(infos[info.info]), Buffer.from(info.text)])
  }
}

export function decodeInfo(data: Buffer): ExportInfo {
  const fields = new FieldReader(data)
  switch (fields.u16()) {
    case infos.export:
      return { info: 'export', size: fields.u64(), flags: fields.u16() }
    case infos.name:
      return { info: 'name', text: text(fields.rest()) }
    case infos.description:
      return { info: 'description', text: text(fields.rest()) }
    case infos.blockSize:
      return { info: 'blockSize', sizes: decodeBlockSizes(fields) }
    default:
      return { info: 'unknown' }
  }
}

function decodeBlockSizes(fields: FieldReader): BlockSizes {
  const sizes = { minimum: fields.u32(), preferred: fields.u32(), maximum: fields.u32() }
  const isPowerOfTwo = (value: number): boolean => value > 0 && (value & (value - 1)) === 0
  if (!isPowerOfTwo(sizes.minimum) || sizes.minimum > 65536 || sizes.maximum < sizes.minimum) {
    throw protocolError(`the NBD server has impossible block sizes: ${Object.values(sizes).join(', ')}`)
  }
  return sizes
}

/** The message of an error reply; what is longer than the protocol allows is cut. */
export function text(data: Buffer): string {
  return data.subarray(0, MAX_STRING).toString('utf8')
}
