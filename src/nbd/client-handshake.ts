import { handshakeFlags, infos, MAX_LISTED, MAX_STRING, options, replies } from './constants.js'
import { errorOfOption, NbdError, protocolError } from './error.js'
import {
  type BlockSizes,
  decodeInfo,
  decodeListed,
  decodeMetaContext,
  encodeClientFlags,
  encodeExportRequest,
  encodeMetaContextRequest,
  encodeOption,
  type OptionReply,
  readGreeting,
  readOptionReply,
  text,
} from './handshake.js'
import type { NbdWire } from './wire.js'

/** What a server tells of an export. */
export interface NbdExportInfo {
  /** bytes */
  size: number
  /** NBD's transmission flags, as in `transmissionFlags` */
  flags: number
  /** undefined: the server has no wishes, and takes anything up to 32 MiB */
  blockSizes?: BlockSizes
  description?: string
}

/** What was agreed on for the transmission. */
export interface Negotiated {
  info: NbdExportInfo
  structuredReplies: boolean
  /** names of the granted metadata contexts, by their number on the wire */
  contexts: Map<number, string>
}

/** Takes the server's greeting and answers it; every negotiation starts so. */
export async function greet(wire: NbdWire): Promise<void> {
  const { flags } = await wire.expect(readGreeting())
  if ((flags & handshakeFlags.fixedNewstyle) === 0) {
    throw protocolError('the NBD server lacks the "fixed newstyle" negotiation')
  }
  wire.send(encodeClientFlags(flags & (handshakeFlags.fixedNewstyle | handshakeFlags.noZeroes)))
}

const isError = (type: number): boolean => type >= 0x80000000

/** Sends an option and answers the replies before the final one; an error reply is thrown. */
async function ask(wire: NbdWire, option: number, name: string, data?: Uint8Array): Promise<OptionReply[]> {
  wire.send(encodeOption(option, data))
  const received: OptionReply[] = []
  for (;;) {
    const reply = await wire.expect(readOptionReply())
    if (reply.option !== option) throw protocolError(`the NBD server replied to option ${reply.option}, not ${option}`)
    if (isError(reply.type)) throw errorOfOption(reply.type, name, text(reply.data))
    if (reply.type === replies.ack) return received
    received.push(reply)
    if (received.length > MAX_LISTED) throw protocolError(`the NBD server sent more than ${MAX_LISTED} replies`)
  }
}

/** As `ask`, but undefined when the server doesn't know the option. */
async function askIfKnown(
  wire: NbdWire,
  option: number,
  name: string,
  data?: Uint8Array,
): Promise<OptionReply[] | undefined> {
  try {
    return await ask(wire, option, name, data)
  } catch (error) {
    if (error instanceof NbdError && error.code === 'ENOTSUP') return undefined
    throw error
  }
}

function checkedName(name: string): string {
  if (Buffer.byteLength(name) > MAX_STRING) throw new NbdError('EINVAL', 'the name of an NBD export is too long')
  return name
}

function infoOf(received: readonly OptionReply[]): NbdExportInfo {
  let info: NbdExportInfo | undefined
  const more: Pick<NbdExportInfo, 'blockSizes' | 'description'> = {}
  for (const reply of received) {
    if (reply.type !== replies.info) throw protocolError(`the NBD server sent a reply of type ${reply.type} unasked`)
    const part = decodeInfo(reply.data)
    if (part.info === 'export') info = { size: part.size, flags: part.flags }
    if (part.info === 'blockSize') more.blockSizes = part.sizes
    if (part.info === 'description') more.description = part.text
  }
  if (info === undefined) throw protocolError('the NBD server did not tell the size of the export')
  return { ...info, ...more }
}

const wantedInfos = [infos.description, infos.blockSize]

async function agreeOnContexts(wire: NbdWire, name: string, wanted: readonly string[]): Promise<Map<number, string>> {
  const data = encodeMetaContextRequest(name, wanted)
  const received = (await askIfKnown(wire, options.setMetaContext, 'SET_META_CONTEXT', data)) ?? []
  return new Map(
    received.map((reply) => {
      if (reply.type !== replies.metaContext) throw protocolError(`an NBD reply of type ${reply.type} came unasked`)
      const { id, name: granted } = decodeMetaContext(reply.data)
      return [id, granted]
    }),
  )
}

/** The negotiation of a client that wants to use an export. */
export async function negotiate(wire: NbdWire, name: string, metaContexts: readonly string[]): Promise<Negotiated> {
  checkedName(name)
  await greet(wire)
  const structuredReplies = (await askIfKnown(wire, options.structuredReply, 'STRUCTURED_REPLY')) !== undefined
  const useContexts = structuredReplies && metaContexts.length > 0
  const contexts = useContexts ? await agreeOnContexts(wire, name, metaContexts) : new Map<number, string>()
  const received = await ask(wire, options.go, `GO '${name}'`, encodeExportRequest(name, wantedInfos))
  return { info: infoOf(received), structuredReplies, contexts }
}

/** One line of a server's list. */
export interface NbdListed {
  name: string
  description: string
}

export async function askForList(wire: NbdWire): Promise<NbdListed[]> {
  await greet(wire)
  const received = await ask(wire, options.list, 'LIST')
  return received.map((reply) => {
    if (reply.type !== replies.server) throw protocolError(`an NBD reply of type ${reply.type} came unasked`)
    return decodeListed(reply.data)
  })
}

export async function askForInfo(wire: NbdWire, name: string): Promise<NbdExportInfo> {
  const data = encodeExportRequest(checkedName(name), wantedInfos)
  await greet(wire)
  return infoOf(await ask(wire, options.info, `INFO '${name}'`, data))
}

/** Ends a negotiation without using an export. The server's reply does not matter. */
export function abort(wire: NbdWire): void {
  wire.send(encodeOption(options.abort))
  wire.end()
}
