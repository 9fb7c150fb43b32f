import {
  VIR_DOMAIN_BLOCK_JOB_CANCELED,
  VIR_DOMAIN_BLOCK_JOB_COMPLETED,
  VIR_DOMAIN_BLOCK_JOB_READY,
  VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES,
  VIR_DOMAIN_EVENT_CRASHED,
  VIR_DOMAIN_EVENT_STOPPED,
} from '../constants.gen.js'
import type { StreamDiskState, StreamOptions } from '../driver.js'
import { failFrom, messageOf } from '../error.js'
import type { VirError } from '../error.js'
import { VIR_STREAM_DISK_START, VIR_STREAM_DISK_STOP } from '../stream-flags.js'
import { BoundedQueue } from '../util/queue.js'
import { resolveDisk } from './disk-names.js'
import type { Domain } from './domain.js'
import type { EventOfKind } from './event-hub.js'
import type { Session } from './session.js'

const fail = failFrom('VIR_FROM_DOM')

/** Where a stream is, in bytes of the disk; `offset` only grows, and is `size` at the end. */
export interface StreamProgress {
  offset: number
  size: number
}

type StreamEvent = EventOfKind<'lifecycle' | 'block-job' | 'stream-progress' | 'overflow' | 'close'>
type Events = BoundedQueue<StreamEvent>
type Ending = { error?: VirError }

/** Of positions only the newest is of interest. */
const newestOnly = {
  bound: 1,
  keyOf: (): string => '',
  rankOf: (): number => 0,
  gap: (): StreamProgress => ({ offset: 0, size: 0 }),
}

/**
 * A stream of one disk, followed. `for await (const { offset, size } of stream)` gives its positions until it has ended
 * well, and throws what `finished` rejects with. `await using` lets go of it; the stream itself goes on.
 */
export class DiskStream implements AsyncDisposable {
  readonly domain: Domain
  /** target dev of the disk */
  readonly disk: string
  /**
   * Resolves when all is copied and the disk needs no backing image any more. Rejects with VIR_ERR_OPERATION_FAILED and
   * the driver's reason; with VIR_ERR_OPERATION_ABORTED when it was stopped, by whomever, or when the domain ended; with
   * VIR_ERR_INVALID_CONN when the connection closed and VIR_ERR_INVALID_STREAM when this handle was let go of before.
   */
  readonly finished: Promise<void>

  readonly #session: Session
  readonly #events: Events
  readonly #followers = new Set<BoundedQueue<StreamProgress>>()
  readonly #settle: (ending: Ending) => void
  #position: StreamProgress | undefined
  #ending: Ending | undefined
  /** it goes on when the domain is shut off */
  #outlives = false

  private constructor(domain: Domain, session: Session, disk: string, events: Events, signal: AbortSignal | undefined) {
    this.domain = domain
    this.disk = disk
    this.#session = session
    this.#events = events
    const { promise, settle } = endOf()
    this.finished = promise
    const onAbort = (): void => void this.#abort(signal)
    this.#settle = (ending) => {
      signal?.removeEventListener('abort', onAbort)
      settle(ending)
    }
    if (signal?.aborted === true) onAbort()
    else signal?.addEventListener('abort', onAbort, { once: true })
    void this.#follow()
  }

  /** Made by `Domain.stream()`: listens first, then starts the stream. */
  static async start(domain: Domain, session: Session, name: string, options: StreamOptions): Promise<DiskStream> {
    const disk = await resolveDisk(domain, name)
    const events = listen(domain, session)
    try {
      await domain.streamDisk(disk, 0, VIR_STREAM_DISK_START, options)
      const stream = new DiskStream(domain, session, disk, events, options.signal)
      stream.#outlives = options.onShutdown === 'continue'
      return stream
    } catch (error) {
      await events.return()
      throw error
    }
  }

  /** Made by `Domain.attachStream()`. */
  static async attach(
    domain: Domain,
    session: Session,
    name: string,
    options: Pick<StreamOptions, 'signal'>,
  ): Promise<DiskStream> {
    const events = listen(domain, session)
    try {
      const disk = await resolveDisk(domain, name)
      const state = (await domain.streamDiskInfo()).find((candidate) => candidate.disk === disk)
      if (state === undefined) throw fail('VIR_ERR_OPERATION_INVALID', `disk '${disk}' is not being streamed`)
      const stream = new DiskStream(domain, session, disk, events, options.signal)
      stream.#advance(state)
      stream.#outlives = state.onShutdown === 'continue'
      return stream
    } catch (error) {
      await events.return()
      throw error
    }
  }

  /** What virDomainStreamDiskInfo says of it; undefined once it has ended. */
  async info(): Promise<StreamDiskState | undefined> {
    const states = await this.domain.streamDiskInfo()
    return states.find((state) => state.disk === this.disk)
  }

  /** Ends the stream; what was copied stays, and a new stream goes on from there. */
  async stop(): Promise<void> {
    await this.domain.streamDisk(this.disk, 0, VIR_STREAM_DISK_STOP)
  }

  /** Bytes/s; 0: no limit. */
  async setBandwidth(bytesPerSecond: number): Promise<void> {
    await this.domain.blockJobSetSpeed(this.disk, bytesPerSecond, VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)
  }

  /** The base is somewhere else now: see `Domain.streamDiskSetBase`. The stream goes on with it. */
  async setBase(base: string, options: { image?: string } = {}): Promise<void> {
    await this.domain.streamDiskSetBase(this.disk, base, options)
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<StreamProgress, undefined> {
    const positions = new BoundedQueue<StreamProgress>(newestOnly)
    if (this.#position !== undefined) positions.push(this.#position)
    if (this.#ending === undefined) this.#followers.add(positions)
    else positions.close()
    try {
      yield* positions
      await this.finished
    } finally {
      this.#followers.delete(positions)
    }
    return undefined
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#end({
      error: fail('VIR_ERR_INVALID_STREAM', `the handle on the stream of disk '${this.disk}' was let go of`),
    })
    await this.#events.return()
  }

  async #follow(): Promise<void> {
    let missed = false
    for await (const event of this.#events) {
      if (event.kind === 'overflow') missed = true
      else if (event.kind !== 'close') this.#take(event)
      if (missed && this.#ending === undefined && this.#events.length === 0) {
        missed = !(await this.#catchUp())
      }
      if (this.#ending !== undefined) break
    }
    this.#end({
      error: fail('VIR_ERR_INVALID_CONN', `the connection closed; the stream of disk '${this.disk}' goes on`),
    })
  }

  #take(event: Exclude<StreamEvent, { kind: 'overflow' | 'close' }>): void {
    if (event.kind === 'lifecycle') {
      if (this.#outlives) return
      if (event.event !== VIR_DOMAIN_EVENT_STOPPED && event.event !== VIR_DOMAIN_EVENT_CRASHED) return
      this.#end(this.#aborted(`domain '${this.domain.name}' ended while its disk '${this.disk}' was streamed`))
    } else if (event.disk !== this.disk) {
      return
    } else if (event.kind === 'stream-progress') {
      this.#advance(event)
    } else if (event.status === VIR_DOMAIN_BLOCK_JOB_COMPLETED) {
      this.#end({})
    } else if (event.status === VIR_DOMAIN_BLOCK_JOB_CANCELED) {
      this.#end(this.#aborted(`the stream of disk '${this.disk}' was stopped`))
    } else if (event.status !== VIR_DOMAIN_BLOCK_JOB_READY) {
      const why = event.error ?? 'no reason was given'
      this.#end({ error: fail('VIR_ERR_OPERATION_FAILED', `the stream of disk '${this.disk}' failed: ${why}`) })
    }
  }

  #aborted(text: string): Ending {
    return { error: fail('VIR_ERR_OPERATION_ABORTED', text) }
  }

  /** Events were lost, perhaps the end of the stream: asks. False when new events have come that may tell. */
  async #catchUp(): Promise<boolean> {
    const state = await this.info().catch(() => undefined)
    if (state !== undefined) this.#advance(state)
    else if (this.#events.length > 0) return false
    else
      this.#end({ error: fail('VIR_ERR_OPERATION_FAILED', `how the stream of disk '${this.disk}' ended is not known`) })
    return true
  }

  #advance({ offset, size }: StreamProgress): void {
    if (this.#position !== undefined && offset < this.#position.offset) return
    this.#position = { offset, size }
    for (const follower of this.#followers) follower.push(this.#position)
  }

  #end(ending: Ending): void {
    if (this.#ending !== undefined) return
    this.#ending = ending
    this.#settle(ending)
    for (const follower of this.#followers) follower.close()
    this.#followers.clear()
  }

  /** The caller's signal: the stream is stopped, and its end comes as an event. */
  async #abort(signal: AbortSignal | undefined): Promise<void> {
    try {
      await this.stop()
    } catch (error) {
      this.#session.logger.debug(
        { err: error },
        `stopping the stream of '${this.disk}' on a signal: ${messageOf(error)}`,
      )
      const text = `the stream of disk '${this.disk}' was aborted but could not be stopped: ${messageOf(error)}`
      this.#end({ error: fail('VIR_ERR_OPERATION_ABORTED', text, signal?.reason) })
    }
  }
}

function listen(domain: Domain, session: Session): Events {
  return session.events.listen({ domain, kinds: ['lifecycle', 'block-job', 'stream-progress'] })
}

/** A promise that nobody has to await: its rejection counts as handled. */
function endOf(): { promise: Promise<void>; settle: (ending: Ending) => void } {
  let settle!: (ending: Ending) => void
  const promise = new Promise<void>((resolve, reject) => {
    settle = ({ error }) => (error === undefined ? resolve() : reject(error))
  })
  promise.catch(() => undefined)
  return { promise, settle }
}
