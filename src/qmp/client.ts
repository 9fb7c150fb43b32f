import type { Duplex } from 'node:stream'
import { QmpClosedError, QmpError, QmpTimeoutError } from './error.js'
import {
  formatCommand,
  QmpSplitter,
  type QmpEvent,
  type QmpGreeting,
  type QmpMessage,
  type QmpReply,
} from './framing.js'

export interface QmpConnectOptions {
  /** ms to wait for the greeting and the answer to qmp_capabilities */
  timeout: number
  /** called for each event, in order, also for those before the greeting is answered; must not throw */
  onEvent?: (event: QmpEvent) => void
  /** called once when the connection is over, after every waiter was told; undefined: it was closed on our side */
  onClose?: (reason: Error | undefined) => void
  /** called for what the protocol does not allow: a reply that nobody waits for, a line that is no message */
  onAnomaly?: (what: string) => void
  /** writes one line with descriptors attached (SCM_RIGHTS); needed for `execute(…, { fds })` */
  sendWithFds?: (line: Buffer, fds: readonly number[]) => void
  /** asks for commands out of band; a QEMU that has none refuses */
  outOfBand?: boolean
  /** a QEMU that says nothing within `timeout` is taken as it is: it may answer later */
  patient?: boolean
}

export interface QmpExecuteOptions {
  /** ms; the caller chooses how long it will wait */
  timeout: number
  /** descriptors that travel with the command (getfd, add-fd) */
  fds?: readonly number[]
  /** ahead of what QEMU is at; of the few commands that may, on a connection that asked for it */
  outOfBand?: boolean
}

interface Waiter {
  command: string
  resolve: (value: unknown) => void
  reject: (error: Error) => void
  timer: NodeJS.Timeout | undefined
}

/** One QMP connection: commands by id, any number in flight; events to one listener that never holds up the reader. */
export class QmpClient {
  readonly #stream: Duplex
  readonly #options: QmpConnectOptions
  #hasAnswered = false
  readonly #splitter = new QmpSplitter()
  readonly #waiters = new Map<string, Waiter>()
  readonly #expired = new Set<string>()
  /** what has been said and is not heeded yet */
  readonly #unheard: QmpMessage[] = []
  #later: NodeJS.Immediate | undefined
  #serial = 0
  #closed: Error | undefined
  #closedByUs = false
  #greeted!: (greeting: QmpGreeting) => void
  #refused!: (error: Error) => void
  readonly #greeting = new Promise<QmpGreeting>((resolve, reject) => {
    this.#greeted = resolve
    this.#refused = reject
  })

  private constructor(stream: Duplex, options: QmpConnectOptions) {
    this.#stream = stream
    this.#options = options
    this.#greeting.catch(() => undefined) // the one who awaits it is told; an early close is no unhandled rejection
    stream.on('data', (chunk: Buffer) => this.#receive(chunk))
    stream.on('error', (error: Error) => this.#end(error))
    stream.on('end', () => this.#end(new Error('the other side closed it')))
    stream.on('close', () => this.#end(new Error('it was closed')))
  }

  /** Waits for the greeting and leaves negotiation mode. Rejects with QmpClosedError or QmpTimeoutError, the stream destroyed. */
  static async connect(stream: Duplex, options: QmpConnectOptions): Promise<QmpClient> {
    const client = new QmpClient(stream, options)
    const { timeout, patient } = options
    let waited!: (nothing: undefined) => void
    const silence = new Promise<undefined>((resolve) => (waited = resolve))
    const late = (): void =>
      patient === true ? waited(undefined) : client.#end(new QmpTimeoutError('greeting', timeout))
    const timer = setTimeout(late, timeout)
    try {
      const greeting = await Promise.race([client.#greeting, silence])
      clearTimeout(timer)
      await client.#negotiate(greeting === undefined ? 0 : timeout)
      return client
    } catch (error) {
      client.close()
      throw error
    } finally {
      clearTimeout(timer)
    }
  }

  /** A connection that somebody else has brought out of negotiation mode; what it was asked before is an anomaly. */
  static adopt(stream: Duplex, options: QmpConnectOptions): QmpClient {
    const client = new QmpClient(stream, options)
    client.#serial = Date.now()
    return client
  }

  async #negotiate(timeout: number): Promise<void> {
    const { outOfBand, patient } = this.#options
    const args = outOfBand === true ? { enable: ['oob'] } : undefined
    try {
      await this.execute('qmp_capabilities', args, { timeout })
      this.#hasAnswered = true
    } catch (error) {
      // what is sent from now on is read when this has been
      if (patient !== true || !(error instanceof QmpTimeoutError)) throw error
    }
  }

  get isClosed(): boolean {
    return this.#closed !== undefined
  }

  /** Did QEMU answer within its time when it was connected to? */
  get hasAnswered(): boolean {
    return this.#hasAnswered
  }

  /**
   * Sends one command and resolves to what it returns. Rejects with QmpError (QEMU's own error), QmpTimeoutError, or
   * QmpClosedError when the connection is or gets lost.
   */
  execute(command: string, args: object | undefined, options: QmpExecuteOptions): Promise<unknown> {
    if (this.#closed !== undefined) return Promise.reject(this.#closed)
    const id = `vs-${++this.#serial}`
    const line = formatCommand(command, args, id, options.outOfBand)
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.#expire(id, command, options.timeout), options.timeout)
      this.#waiters.set(id, { command, resolve, reject, timer })
      try {
        this.#send(line, options.fds)
      } catch (error) {
        this.#take(id)
        reject(new QmpClosedError(`could not send '${command}'`, { cause: error }))
      }
    })
  }

  /** Ends the connection; who still waits gets a QmpClosedError. QEMU itself goes on. */
  close(): void {
    this.#closedByUs = true
    this.#end(new Error('closed on our side'))
  }

  #send(line: Buffer, fds: readonly number[] | undefined): void {
    if (fds === undefined || fds.length === 0) {
      this.#stream.write(line)
      return
    }
    if (this.#options.sendWithFds === undefined) throw new Error('this connection cannot pass descriptors')
    // bytes that still wait in the stream must not be overtaken: descriptors belong to the line that they come with
    if (this.#stream.writableLength > 0) throw new Error('descriptors cannot overtake what is still being written')
    this.#options.sendWithFds(line, fds)
  }

  #receive(chunk: Buffer): void {
    let messages: QmpMessage[]
    try {
      messages = this.#splitter.push(chunk)
    } catch (error) {
      this.#end(error instanceof Error ? error : new Error(String(error)))
      return
    }
    this.#unheard.push(...messages)
    if (this.#later === undefined) this.#hear()
  }

  /**
   * In the order in which it was said. Whoever gets an answer acts on it before anything is heard that was said later: what
   * QEMU was asked would otherwise count for newer than an event which came with the answer.
   */
  #hear(): void {
    this.#later = undefined
    for (let message = this.#unheard.shift(); message !== undefined; message = this.#unheard.shift()) {
      this.#dispatch(message)
      if (message.kind !== 'reply' || this.#unheard.length === 0) continue
      this.#later = setImmediate(() => this.#hear())
      return
    }
  }

  /** Nobody waits for what comes next. */
  #hearAll(): void {
    clearImmediate(this.#later)
    this.#later = undefined
    for (const message of this.#unheard.splice(0)) this.#dispatch(message)
  }

  #dispatch(message: QmpMessage): void {
    switch (message.kind) {
      case 'greeting':
        this.#greeted(message.greeting)
        break
      case 'event':
        this.#options.onEvent?.(message.event)
        break
      case 'reply':
        this.#answer(message.reply)
        break
      case 'malformed':
        this.#options.onAnomaly?.(`not a QMP message (${message.reason}): '${message.line.slice(0, 200)}'`)
        break
    }
  }

  #answer(reply: QmpReply): void {
    const id = typeof reply.id === 'string' ? reply.id : undefined
    const waiter = id === undefined ? undefined : this.#take(id)
    if (waiter === undefined) {
      const late = id !== undefined && this.#expired.delete(id)
      this.#options.onAnomaly?.(
        `${late ? 'late reply' : 'reply that nobody waits for'}: '${JSON.stringify(reply).slice(0, 200)}'`,
      )
    } else if ('error' in reply) {
      waiter.reject(new QmpError(waiter.command, reply.error.class, reply.error.desc))
    } else {
      waiter.resolve(reply.return)
    }
  }

  #expire(id: string, command: string, timeout: number): void {
    this.#expired.add(id)
    this.#take(id)?.reject(new QmpTimeoutError(command, timeout))
  }

  #take(id: string): Waiter | undefined {
    const waiter = this.#waiters.get(id)
    this.#waiters.delete(id)
    clearTimeout(waiter?.timer)
    return waiter
  }

  #end(reason: Error): void {
    if (this.#closed !== undefined) return
    this.#hearAll()
    if (this.isClosed) return
    this.#closed = new QmpClosedError(`the monitor connection is lost: ${reason.message}`, { cause: reason })
    this.#stream.destroy()
    this.#refused(reason instanceof QmpTimeoutError ? reason : this.#closed)
    for (const id of [...this.#waiters.keys()]) this.#take(id)?.reject(this.#closed)
    this.#options.onClose?.(this.#closedByUs ? undefined : this.#closed)
  }
}
