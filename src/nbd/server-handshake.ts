import { handshakeFlags, infos, options, replies, transmissionFlags } from './constants.js'
import { NbdError } from './error.js'
import {
  decodeExportRequest,
  decodeMetaContextRequest,
  encodeGreeting,
  encodeInfo,
  encodeListed,
  encodeMetaContext,
  encodeOptionReply,
  type Option,
  readClientFlags,
  readOption,
} from './handshake.js'
import { u16, u64 } from './codec.js'
import type { NbdServed } from './served.js'
import type { NbdWire } from './wire.js'

/** What the client chose. */
export interface Chosen {
  served: NbdServed
  structuredReplies: boolean
  /** names of the metadata contexts, by their number on the wire */
  contexts: Map<number, string>
}

export type Exports = ReadonlyMap<string, NbdServed>

/** NBD's transmission flags of what is served. */
export function flagsOf(served: NbdServed, structuredReplies: boolean): number {
  const flag = (is: boolean, value: number): number => (is ? value : 0)
  return (
    transmissionFlags.hasFlags |
    flag(served.write === undefined, transmissionFlags.readOnly) |
    flag(served.flush !== undefined, transmissionFlags.sendFlush) |
    flag(served.write !== undefined && served.flush !== undefined, transmissionFlags.sendFua) |
    flag(served.trim !== undefined, transmissionFlags.sendTrim) |
    flag(served.writeZeroes !== undefined, transmissionFlags.sendWriteZeroes) |
    flag(served.cache !== undefined, transmissionFlags.sendCache) |
    flag(structuredReplies, transmissionFlags.sendDf)
  )
}

/** One client's negotiation. */
export class ServerHandshake {
  readonly #wire: NbdWire
  readonly #exports: Exports
  #noZeroes = false
  #structuredReplies = false
  /** which export the contexts were agreed on for */
  #contextsOf: string | undefined
  #contexts = new Map<number, string>()

  constructor(wire: NbdWire, exports: Exports) {
    this.#wire = wire
    this.#exports = exports
  }

  /** Answers what the client chose; undefined when it left without choosing. */
  async run(): Promise<Chosen | undefined> {
    this.#wire.send(encodeGreeting(handshakeFlags.fixedNewstyle | handshakeFlags.noZeroes))
    const client = await this.#wire.next(readClientFlags())
    if (client === undefined) return undefined
    this.#noZeroes = (client.flags & handshakeFlags.noZeroes) !== 0
    for (;;) {
      const option = await this.#wire.next(readOption())
      if (option === undefined) return undefined
      if (option.option === options.abort) {
        this.#reply(option, replies.ack)
        return undefined
      }
      const served = this.#take(option)
      if (served !== undefined) return this.#chosen(served.name, served.served)
    }
  }

  #chosen(name: string, served: NbdServed): Chosen {
    const contexts = this.#contextsOf === name ? this.#contexts : new Map<number, string>()
    return { served, structuredReplies: this.#structuredReplies, contexts }
  }

  /** Replies to one option; answers the export that transmission is to begin with. */
  #take(option: Option): { name: string; served: NbdServed } | undefined {
    try {
      switch (option.option) {
        case options.exportName:
          return this.#takeExportName(option)
        case options.list:
          this.#list(option)
          return undefined
        case options.info:
        case options.go:
          return this.#takeGo(option)
        case options.structuredReply:
          this.#structuredReplies = option.data.length === 0
          this.#reply(option, option.data.length === 0 ? replies.ack : replies.errInvalid)
          return undefined
        case options.listMetaContext:
        case options.setMetaContext:
          this.#takeContexts(option)
          return undefined
        default:
          this.#reply(option, replies.errUnsup, `option ${option.option} is not supported`)
          return undefined
      }
    } catch (error) {
      if (!(error instanceof NbdError) || option.option === options.exportName) throw error
      this.#reply(option, replies.errInvalid, error.message)
      return undefined
    }
  }

  #reply(option: Option, type: number, data: Uint8Array | string = ''): void {
    const bytes = typeof data === 'string' ? Buffer.from(data) : data
    this.#wire.send(encodeOptionReply(option.option, type, bytes))
  }

  #list(option: Option): void {
    if (option.data.length > 0) {
      this.#reply(option, replies.errInvalid, 'LIST has no data')
      return
    }
    for (const [name, served] of this.#exports) {
      this.#reply(option, replies.server, encodeListed(name, served.description ?? ''))
    }
    this.#reply(option, replies.ack)
  }

  #takeGo(option: Option): { name: string; served: NbdServed } | undefined {
    const { name, wanted } = decodeExportRequest(option.data)
    const served = this.#exports.get(name)
    if (served === undefined) {
      this.#reply(option, replies.errUnknown, `there is no export '${name}'`)
      return undefined
    }
    const flags = flagsOf(served, this.#structuredReplies)
    this.#reply(option, replies.info, encodeInfo({ info: 'export', size: served.size, flags }))
    if (wanted.includes(infos.name)) this.#reply(option, replies.info, encodeInfo({ info: 'name', text: name }))
    if (wanted.includes(infos.description) && served.description !== undefined) {
      this.#reply(option, replies.info, encodeInfo({ info: 'description', text: served.description }))
    }
    if (served.blockSizes !== undefined) {
      this.#reply(option, replies.info, encodeInfo({ info: 'blockSize', sizes: served.blockSizes }))
    }
    this.#reply(option, replies.ack)
    return option.option === options.go ? { name, served } : undefined
  }

  /** The oldest way to choose: an unknown name can only be answered by hanging up. */
  #takeExportName(option: Option): { name: string; served: NbdServed } {
    const name = option.data.toString('utf8')
    const served = this.#exports.get(name)
    if (served === undefined) throw new NbdError('ENOENT', `there is no export '${name}'`)
    this.#wire.send(u64(served.size), u16(flagsOf(served, this.#structuredReplies)))
    if (!this.#noZeroes) this.#wire.send(Buffer.alloc(124))
    return { name, served }
  }

  #takeContexts(option: Option): void {
    const { name, queries } = decodeMetaContextRequest(option.data)
    const served = this.#exports.get(name)
    if (served === undefined) {
      this.#reply(option, replies.errUnknown, `there is no export '${name}'`)
      return
    }
    const isList = option.option === options.listMetaContext
    if (!isList && !this.#structuredReplies) {
      this.#reply(option, replies.errInvalid, 'metadata contexts need structured replies')
      return
    }
    const matches = (context: string): boolean =>
      (isList && queries.length === 0) ||
      queries.some((query) => query === context || (isList && query.endsWith(':') && context.startsWith(query)))
    const found = Object.keys(served.contexts ?? {}).filter(matches)
    found.forEach((context, index) =>
      this.#reply(option, replies.metaContext, encodeMetaContext(isList ? 0 : index + 1, context)),
    )
    if (!isList) {
      this.#contextsOf = name
      this.#contexts = new Map(found.map((context, index) => [index + 1, context]))
    }
    this.#reply(option, replies.ack)
  }
}
