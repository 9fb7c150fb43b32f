/** Requests and answers in JSON on one channel: what the phases of a migration say to each other. */
import type { Duplex } from 'node:stream'
import { errorCodes, errorDomains } from '../error-codes.gen.js'
import { VirError, type VirErrorCode, type VirErrorDomain } from '../error.js'
import { asTunnelError, protocolError, TunnelError } from './error.js'

export interface MessagesOptions {
  /** Answers what a request returns; what it throws goes back as the error. The signal: nobody waits for the answer any more. */
  onRequest?: (method: string, params: unknown, signal: AbortSignal) => unknown
  /** bytes of one message; default 4 MiB */
  maxBytes?: number
  /** requests of the other side that are being answered at a time; more break the channel. Default 64 */
  maxInFlight?: number
}

export interface RequestOptions {
  /** ms; default: as long as the channel lives */
  timeout?: number
  signal?: AbortSignal
}

/** An error as it travels; code and domain by name where it was a VirError. */
interface WireError {
  message: string
  code?: string
  domain?: string
}

type Message =
  | { id: number; method: string; params: unknown }
  | { id: number; result: unknown }
  | { id: number; error: WireError }
  | { id: number; cancel: true }

interface Waiter {
  resolve: (result: unknown) => void
  reject: (error: Error) => void
  /** to be called before either */
  settled: () => void
}

const LENGTH = 4
const MAX_BYTES = 4 * 1024 * 1024

/** Both sides may ask. Each message is its length (32 bits, big-endian) and JSON in UTF-8. */
export class Messages {
  /** Resolves when the channel is over: undefined when it was closed on purpose. Never rejects. */
  readonly closed: Promise<TunnelError | undefined>
  readonly #duplex: Duplex
  readonly #options: MessagesOptions
  readonly #waiters = new Map<number, Waiter>()
  readonly #answering = new Map<number, AbortController>()
  #nextId = 1
  #parts: Buffer[] = []
  #length = 0
  #isClosing = false
  #over: TunnelError | undefined
  #resolveClosed!: (error: TunnelError | undefined) => void

  constructor(duplex: Duplex, options: MessagesOptions = {}) {
    this.#duplex = duplex
    this.#options = options
    this.closed = new Promise((resolve) => (this.#resolveClosed = resolve))
    duplex.on('data', (bytes: Buffer) => this.#receive(bytes))
    duplex.on('error', (error) => this.#end(asTunnelError(error, 'ECONNRESET', 'the channel broke')))
    duplex.once('end', () => this.#end(undefined))
    duplex.once('close', () => this.#end(undefined))
    // of one that is closed by now nothing more is heard
    if (duplex.destroyed)
      this.#end(asTunnelError(duplex.errored ?? 'it was closed before', 'ECONNRESET', 'the channel broke'))
  }

  /**
   * Asks the other side. Rejects with its error: a VirError as it was thrown there, else a TunnelError ECONNREFUSED with its
   * message; or with TunnelError ETIMEDOUT, EINVAL (too long), or what ended the channel.
   */
  request(method: string, params: unknown, options: RequestOptions = {}): Promise<unknown> {
    const { timeout, signal } = options
    return new Promise((resolve, reject) => {
      if (this.#over !== undefined) throw this.#over
      signal?.throwIfAborted()
      const id = this.#nextId++
      const late = (): void =>
        this.#giveUp(id, new TunnelError('ETIMEDOUT', `no answer to '${method}' within ${timeout ?? 0} ms`))
      const timer = timeout === undefined ? undefined : setTimeout(late, timeout)
      const aborted = (): void => this.#giveUp(id, signal?.reason as Error)
      signal?.addEventListener('abort', aborted)
      const settled = (): void => {
        this.#waiters.delete(id)
        clearTimeout(timer)
        signal?.removeEventListener('abort', aborted)
      }
      this.#waiters.set(id, { resolve, reject, settled })
      try {
        this.#send({ id, method, params })
      } catch (error) {
        settled()
        throw error
      }
    })
  }

  /** Ends the channel; requests that wait reject. */
  close(): void {
    this.#end(undefined)
  }

  /** The same as soon as what the other side has asked is answered. */
  closeWhenAnswered(): void {
    this.#isClosing = true
    this.#endWhenAnswered()
  }

  #endWhenAnswered(): void {
    if (this.#isClosing && this.#answering.size === 0) this.#end(undefined)
  }

  #receive(bytes: Buffer): void {
    if (this.#over !== undefined) return
    this.#parts.push(bytes)
    this.#length += bytes.length
    try {
      for (let body = this.#next(); body !== undefined; body = this.#next()) this.#take(parse(body))
    } catch (error) {
      this.#end(asTunnelError(error, 'EPROTO', 'a message is not understood'))
    }
  }

  /** The next whole message, its length checked before it is there. */
  #next(): Buffer | undefined {
    const [first] = this.#parts
    if (first === undefined || this.#length < LENGTH) return undefined
    const head = first.length >= LENGTH ? first : Buffer.concat(this.#parts)
    if (head !== first) this.#parts = [head]
    const { maxBytes = MAX_BYTES } = this.#options
    const length = head.readUInt32BE()
    if (length > maxBytes) throw protocolError(`a message of ${length} bytes is too long`)
    if (this.#length < LENGTH + length) return undefined
    const all = this.#parts.length === 1 ? head : Buffer.concat(this.#parts)
    const rest = all.subarray(LENGTH + length)
    this.#parts = rest.length === 0 ? [] : [rest]
    this.#length = rest.length
    return all.subarray(LENGTH, LENGTH + length)
  }

  #take(message: Message): void {
    if ('method' in message) void this.#answer(message)
    else if ('cancel' in message) this.#answering.get(message.id)?.abort()
    // an answer that comes after its request was given up is of no use any more
    else if ('error' in message) this.#takeWaiter(message.id)?.reject(fromWire(message.error))
    else this.#takeWaiter(message.id)?.resolve(message.result)
  }

  #takeWaiter(id: number): Waiter | undefined {
    const waiter = this.#waiters.get(id)
    waiter?.settled()
    return waiter
  }

  #giveUp(id: number, error: Error): void {
    const waiter = this.#takeWaiter(id)
    if (waiter === undefined) return
    this.#reply({ id, cancel: true })
    waiter.reject(error)
  }

  async #answer({ id, method, params }: { id: number; method: string; params: unknown }): Promise<void> {
    const { onRequest, maxInFlight = 64, maxBytes = MAX_BYTES } = this.#options
    const tooMany = this.#answering.size >= maxInFlight || this.#answering.has(id)
    if (tooMany || this.#duplex.writableLength > maxBytes) {
      this.#end(
        protocolError(tooMany ? 'there are too many requests at a time' : 'the other side does not read its answers'),
      )
      return
    }
    const controller = new AbortController()
    this.#answering.set(id, controller)
    try {
      if (onRequest === undefined) throw new TunnelError('ECONNREFUSED', `nobody answers '${method}' here`)
      const result = await onRequest(method, params, controller.signal)
      this.#reply({ id, result: result ?? null })
    } catch (error) {
      this.#reply({ id, error: toWire(error) })
    } finally {
      this.#answering.delete(id)
      this.#endWhenAnswered()
    }
  }

  /** Says what no longer matters to anybody once the channel is over. */
  #reply(message: Message): void {
    if (this.#over === undefined) this.#send(message)
  }

  #send(message: Message): void {
    const body = Buffer.from(JSON.stringify(message), 'utf8')
    const { maxBytes = MAX_BYTES } = this.#options
    if (body.length > maxBytes) throw new TunnelError('EINVAL', `a message of ${body.length} bytes is too long`)
    const length = Buffer.alloc(LENGTH)
    length.writeUInt32BE(body.length)
    this.#duplex.write(Buffer.concat([length, body]))
  }

  #end(error: TunnelError | undefined): void {
    if (this.#over !== undefined) return
    this.#over = error ?? new TunnelError('ESHUTDOWN', 'the channel was closed')
    for (const controller of this.#answering.values()) controller.abort()
    for (const id of [...this.#waiters.keys()]) this.#takeWaiter(id)?.reject(this.#over)
    if (error === undefined) this.#duplex.end()
    else this.#duplex.destroy(error)
    this.#resolveClosed(error)
  }
}

function parse(body: Buffer): Message {
  const message = JSON.parse(body.toString('utf8')) as Partial<Record<string, unknown>> | null
  if (typeof message !== 'object' || message === null || typeof message['id'] !== 'number')
    throw protocolError('a message has no number')
  const { id, method, params, error } = message
  if (typeof method === 'string') return { id, method, params }
  if ('cancel' in message) return { id, cancel: true }
  if ('result' in message) return { id, result: message['result'] }
  if (typeof error !== 'object' || error === null || !('message' in error) || typeof error.message !== 'string')
    throw protocolError('a message is neither request nor answer')
  return { id, error: error as WireError }
}

function toWire(thrown: unknown): WireError {
  if (thrown instanceof VirError) return { message: thrown.message, code: thrown.code, domain: thrown.domain }
  return { message: thrown instanceof Error ? thrown.message : String(thrown) }
}

function fromWire({ message, code, domain }: WireError): Error {
  if (code === undefined || !(code in errorCodes)) return new TunnelError('ECONNREFUSED', message)
  const from = domain !== undefined && domain in errorDomains ? domain : 'VIR_FROM_NONE'
  return new VirError(code as VirErrorCode, from as VirErrorDomain, message)
}
