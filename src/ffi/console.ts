/** A console of a domain: libvirt's stream that does not block, as a Duplex. */
import { Duplex } from 'node:stream'
import koffi from 'koffi'
import type { HypervisorOps } from '../driver.js'
import { failFrom } from '../error.js'
import type { Connection } from './connection.js'

const fail = failFrom('VIR_FROM_STREAMS')

const NON_BLOCKING = 1 // VIR_STREAM_NONBLOCK
const WOULD_BLOCK = -2
/** virStreamEventType */
const READABLE = 1
const WRITABLE = 2
const ENDED = 4 | 8

const CHUNK = 64 * 1024

const open = new Map<number, ConsoleStream>()
let nextId = 1

/** One C callback for all streams; its opaque says which. */
let callback: bigint | undefined
function eventCallback(): bigint {
  const type = koffi.proto('void', ['void *', 'int', 'void *'])
  callback ??= koffi.register(
    (_stream: bigint, events: number, opaque: bigint | null) => open.get(Number(opaque ?? 0n))?.ready(events),
    koffi.pointer(type),
  )
  return callback
}

class ConsoleStream extends Duplex {
  readonly #conn: Connection
  readonly #at: bigint
  readonly #id = nextId++
  #events = 0
  #unsent: { chunk: Buffer; done: (error?: Error) => void } | undefined

  constructor(conn: Connection, at: bigint) {
    super({ allowHalfOpen: false })
    this.#conn = conn
    this.#at = at
    open.set(this.#id, this)
    conn.lib.now('virStreamEventAddCallback', at, ENDED, eventCallback(), BigInt(this.#id), null)
    this.#want(ENDED)
  }

  /** libvirt says what the stream is ready for. */
  ready(events: number): void {
    if (this.destroyed) return
    if ((events & (READABLE | ENDED)) !== 0) this.#receive()
    if ((events & WRITABLE) !== 0) this.#send()
  }

  override _read(): void {
    this.#want(this.#events | READABLE)
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error) => void): void {
    this.#unsent = { chunk, done }
    this.#send()
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    open.delete(this.#id)
    this.#unsent?.done(error ?? undefined)
    this.#unsent = undefined
    this.#conn.lib.now('virStreamEventRemoveCallback', this.#at)
    void this.#giveBack(error).finally(() => done(error))
  }

  async #giveBack(error: Error | null): Promise<void> {
    const { lib } = this.#conn
    const ended = this.readableEnded && error === null
    await lib.call(ended ? 'virStreamFinish' : 'virStreamAbort', this.#at).catch(() => undefined)
    await lib.call('virStreamFree', this.#at).catch(() => undefined)
  }

  #want(events: number): void {
    if (events === this.#events || this.destroyed) return
    this.#events = events
    this.#conn.lib.now('virStreamEventUpdateCallback', this.#at, events)
  }

  #receive(): void {
    const buffer = Buffer.allocUnsafe(CHUNK)
    const got = this.#conn.lib.now('virStreamRecv', this.#at, buffer, buffer.length)
    if (got === WOULD_BLOCK) return
    if (got < 0) {
      this.destroy(this.#conn.lib.lastError('virStreamRecv'))
    } else if (got === 0) {
      this.#want(0)
      this.push(null)
    } else if (!this.push(buffer.subarray(0, got))) {
      this.#want(this.#events & ~READABLE)
    }
  }

  #send(): void {
    if (this.#unsent === undefined) return
    const { chunk, done } = this.#unsent
    const sent = this.#conn.lib.now('virStreamSend', this.#at, chunk, chunk.length)
    if (sent === WOULD_BLOCK) {
      this.#want(this.#events | WRITABLE)
    } else if (sent < 0) {
      this.#unsent = undefined
      done(this.#conn.lib.lastError('virStreamSend'))
    } else if (sent < chunk.length) {
      this.#unsent = { chunk: chunk.subarray(sent), done }
      this.#send()
    } else {
      this.#unsent = undefined
      this.#want(this.#events & ~WRITABLE)
      done()
    }
  }
}

export function consoleOps(conn: Connection): Pick<HypervisorOps, 'domainOpenConsole'> {
  const streams = new Set<ConsoleStream>()
  // libvirt tells a stream nothing of the end of its connection
  const end = (error?: Error): void => {
    for (const stream of streams) stream.destroy(error)
  }
  conn.onClose(() => {
    end()
    return Promise.resolve()
  })
  conn.onLost(() => end(fail('VIR_ERR_RPC', 'the connection is lost')))
  return {
    domainOpenConsole: (ref, device, flags) =>
      conn.withDomain(ref, async (domain) => {
        const stream = conn.lib.now('virStreamNew', conn.at, NON_BLOCKING)
        if (stream === 0n) throw conn.lib.lastError('virStreamNew')
        try {
          await conn.call('virDomainOpenConsole', domain, device ?? null, stream, flags)
        } catch (error) {
          await conn.lib.call('virStreamFree', stream)
          throw error
        }
        const console = new ConsoleStream(conn, stream)
        streams.add(console)
        console.once('close', () => streams.delete(console))
        if (!conn.closed && !conn.lost) return console
        console.destroy()
        throw fail('VIR_ERR_INVALID_CONN', 'the connection is closed')
      }),
  }
}
