/** Numbers of the NBD protocol (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md), by its own names. */

export const NBDMAGIC = 0x4e42444d41474943n
export const IHAVEOPT = 0x49484156454f5054n
export const OLD_STYLE_MAGIC = 0x00420281861253n
export const OPTION_REPLY_MAGIC = 0x3e889045565a9n
export const REQUEST_MAGIC = 0x25609513
export const SIMPLE_REPLY_MAGIC = 0x67446698
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef

/** Handshake flags of the server; the client's have the same bits. */
export const handshakeFlags = { fixedNewstyle: 1, noZeroes: 2 } as const

export const options = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
} as const

export const replies = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  errUnsup: 0x80000001,
  errPolicy: 0x80000002,
  errInvalid: 0x80000003,
  errPlatform: 0x80000004,
  errTlsReqd: 0x80000005,
  errUnknown: 0x80000006,
  errShutdown: 0x80000007,
  errBlockSizeReqd: 0x80000008,
  errTooBig: 0x80000009,
} as const

export const infos = { export: 0, name: 1, description: 2, blockSize: 3 } as const

/** Transmission flags: what an export is and can do. */
export const transmissionFlags = {
  hasFlags: 1 << 0,
  readOnly: 1 << 1,
  sendFlush: 1 << 2,
  sendFua: 1 << 3,
  rotational: 1 << 4,
  sendTrim: 1 << 5,
  sendWriteZeroes: 1 << 6,
  sendDf: 1 << 7,
  canMultiConn: 1 << 8,
  sendResize: 1 << 9,
  sendCache: 1 << 10,
  sendFastZero: 1 << 11,
} as const

export const commands = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
} as const

export const commandFlags = { fua: 1, noHole: 2, df: 4, reqOne: 8, fastZero: 16 } as const

export const chunkFlags = { done: 1 } as const
export const chunks = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  error: 0x8001,
  errorOffset: 0x8002,
} as const

/** Flags of an extent in the context `base:allocation`. */
export const NBD_STATE_HOLE = 1
export const NBD_STATE_ZERO = 2

/** Longest name, description or message that the protocol allows, in bytes. */
export const MAX_STRING = 4096
/** Longest data of an option or of a reply to one that we take, in bytes. */
export const MAX_OPTION_DATA = 64 * 1024
/** Most exports, or contexts, that we let a server list. */
export const MAX_LISTED = 10_000
/** The most data in one request that every server takes, in bytes. */
export const MAX_PAYLOAD = 32 * 1024 * 1024
/** Longest list of extents that we take in one chunk, in bytes: twice what QEMU sends at most. */
export const MAX_STATUS_CHUNK = 2 * 1024 * 1024
/** Longest chunk that reports an error. */
export const MAX_ERROR_CHUNK = MAX_STRING + 16
