import type { Duplex } from 'node:stream'
import { commandFlags, commands, MAX_PAYLOAD } from './constants.js'
import { errnoToSend, NbdError } from './error.js'
import type { NbdServed } from './served.js'
import { type Chosen, type Exports, flagsOf, ServerHandshake } from './server-handshake.js'
import { transmissionFlags } from './constants.js'
import { type Chunk, encodeChunk, encodeSimpleReply, readRequest, type Request } from './transmission.js'
import { NbdWire } from './wire.js'

export interface NbdServeOptions {
  /** requests that are worked on at the same time; further ones wait in the socket. Default 16, as QEMU's server */
  maxInFlight?: number
  /** ends the connection */
  signal?: AbortSignal
}

/**
 * Serves one client over any duplex stream: resolves when it has left (by saying so, in the negotiation too, or by closing the
 * stream between two messages); rejects with a `NbdError` when the connection is lost in the middle of something, or the client
 * breaks the protocol. The stream is ended in any case, after what was in flight is done.
 */
export async function serveNbd(stream: Duplex, exports: Exports, options: NbdServeOptions = {}): Promise<void> {
  const wire = new NbdWire(stream)
  const stop = (): void => wire.destroy()
  options.signal?.addEventListener('abort', stop, { once: true })
  try {
    options.signal?.throwIfAborted()
    const chosen = await new ServerHandshake(wire, exports).run()
    if (chosen !== undefined) await new Transmission(wire, chosen).run(options.maxInFlight ?? 16)
    wire.end()
  } catch (error) {
    wire.destroy()
    options.signal?.throwIfAborted()
    throw error
  } finally {
    options.signal?.removeEventListener('abort', stop)
  }
}

const names = new Map<number, string>(Object.entries(commands).map(([name, number]) => [number, name]))
const nothing: Chunk = { type: 'none' }

/** One client's requests. */
class Transmission {
  readonly #wire: NbdWire
  readonly #served: NbdServed
  readonly #structuredReplies: boolean
  readonly #contexts: ReadonlyMap<number, string>
  readonly #flags: number

  constructor(wire: NbdWire, chosen: Chosen) {
    this.#wire = wire
    this.#served = chosen.served
    this.#structuredReplies = chosen.structuredReplies
    this.#contexts = chosen.contexts
    this.#flags = flagsOf(chosen.served, chosen.structuredReplies)
  }

  async run(maxInFlight: number): Promise<void> {
    const inFlight = new Set<Promise<void>>()
    try {
      for (;;) {
        const request = await this.#wire.next(readRequest(MAX_PAYLOAD))
        if (request === undefined || request.type === commands.disconnect) break
        const work: Promise<void> = this.#answer(request).finally(() => inFlight.delete(work))
        inFlight.add(work)
        if (inFlight.size >= maxInFlight) await Promise.race(inFlight)
      }
    } finally {
      await Promise.all(inFlight)
    }
  }

  /** Never rejects: what goes wrong is the reply. */
  async #answer(request: Request): Promise<void> {
    try {
      const offset = this.#checked(request)
      this.#send(request, ...(await this.#perform(request, offset)))
    } catch (error) {
      this.#sendError(request, error)
    }
    await this.#wire.drained()
  }

  #send(request: Request, ...answer: readonly Chunk[]): void {
    const { cookie } = request
    if (this.#structuredReplies) {
      const parts = answer.flatMap((chunk, index) => encodeChunk(cookie, index === answer.length - 1, chunk))
      this.#wire.send(...parts)
      return
    }
    const data = answer.flatMap((chunk) => (chunk.type === 'data' ? [chunk.data] : []))
    this.#wire.send(encodeSimpleReply(cookie, 0), ...data)
  }

  #sendError(request: Request, thrown: unknown): void {
    const errno = errnoToSend(thrown)
    const message = thrown instanceof Error ? thrown.message : String(thrown)
    if (this.#structuredReplies)
      this.#wire.send(...encodeChunk(request.cookie, true, { type: 'error', errno, message }))
    else this.#wire.send(encodeSimpleReply(request.cookie, errno))
  }

  /** The offset of a request that the export can take. */
  #checked(request: Request): number {
    const command = names.get(request.type)
    const { size } = this.#served
    if (command === undefined) throw new NbdError('EINVAL', `command ${request.type} is unknown`)
    if (request.type === commands.flush) return 0
    if (request.length === 0) throw new NbdError('EINVAL', `an empty ${command} makes no sense`)
    if (request.offset + BigInt(request.length) > BigInt(size)) {
      const code = request.type === commands.write || request.type === commands.writeZeroes ? 'ENOSPC' : 'EINVAL'
      throw new NbdError(code, `the ${command} goes past the end of the export (${size})`)
    }
    if (request.type === commands.read && request.length > MAX_PAYLOAD)
      throw new NbdError('EOVERFLOW', 'the read is too long')
    if ((request.flags & commandFlags.fua) !== 0 && (this.#flags & transmissionFlags.sendFua) === 0) {
      throw new NbdError('EINVAL', 'write-through is not offered')
    }
    return Number(request.offset)
  }

  async #perform(request: Request, offset: number): Promise<Chunk[]> {
    const { length } = request
    switch (request.type) {
      case commands.read:
        return [{ type: 'data', offset, data: await this.#read(offset, length) }]
      case commands.blockStatus:
        return this.#blockStatus(offset, length, (request.flags & commandFlags.reqOne) !== 0)
      case commands.write:
        await this.#offered('write')(offset, request.payload)
        break
      case commands.writeZeroes:
        if ((request.flags & commandFlags.fastZero) !== 0) throw new NbdError('ENOTSUP', 'fast zeroes are not offered')
        await this.#offered('writeZeroes')(offset, length, (request.flags & commandFlags.noHole) !== 0)
        break
      case commands.trim:
        await this.#offered('trim')(offset, length)
        break
      case commands.cache:
        await this.#offered('cache')(offset, length)
        break
      default:
        await this.#offered('flush')()
    }
    if ((request.flags & commandFlags.fua) !== 0) await this.#served.flush?.()
    return [nothing]
  }

  #offered<K extends 'write' | 'flush' | 'trim' | 'writeZeroes' | 'cache'>(name: K): NonNullable<NbdServed[K]> {
    const operation = this.#served[name]
    if (operation !== undefined) return operation.bind(this.#served) as NonNullable<NbdServed[K]>
    const changes = name !== 'flush' && name !== 'cache'
    if (changes && this.#served.write === undefined) throw new NbdError('EPERM', 'the export is read-only')
    throw new NbdError('EINVAL', `${name} is not offered`)
  }

  async #read(offset: number, length: number): Promise<Buffer> {
    const data = await this.#served.read(offset, length)
    if (data.length !== length) throw new NbdError('EIO', `${data.length} bytes were read instead of ${length}`)
    return Buffer.from(data.buffer, data.byteOffset, data.length)
  }

  async #blockStatus(offset: number, length: number, one: boolean): Promise<Chunk[]> {
    if (this.#contexts.size === 0) throw new NbdError('EINVAL', 'no metadata context was agreed on')
    const answer: Chunk[] = []
    for (const [contextId, name] of this.#contexts) {
      const found = (await this.#served.contexts?.[name]?.(offset, length)) ?? []
      const [first] = found
      if (first === undefined) throw new NbdError('EIO', `the context '${name}' has no answer`)
      answer.push({ type: 'status', contextId, extents: one ? [first] : found })
    }
    return answer
  }
}
