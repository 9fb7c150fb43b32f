import { connect, Socket } from 'node:net'
import { errorCodes } from '../error-codes.gen.js'
import { type Fail, failFrom, messageOf, type VirErrorCode, wordsOf } from '../error.js'
import { decodeRemoteError, encodeMessage, messageTypes, RpcFraming, type RpcMessage, statuses } from './rpc-message.js'
import { LOCK_PROGRAM, LOCK_VERSION, type LockProcedure, lockProcedures } from './virtlockd-protocol.js'

const fail: Fail = failFrom('VIR_FROM_LOCKING')

/** ms that the daemon gets for an answer: it never waits for locks */
const PATIENCE = 10_000

const codeNames = new Map(Object.entries(errorCodes).map(([name, code]) => [code as number, name as VirErrorCode]))

interface PendingCall {
  resolve: () => void
  reject: (error: Error) => void
}

/** A connection to virtlockd, one call after the other. Every failure is a VirError. */
export class VirtlockdClient implements Disposable {
  readonly #socket: Socket
  readonly #framing = new RpcFraming()
  readonly #pending = new Map<number, PendingCall>()
  #serial = 0

  /** Over a connection that is there, of which `fd` is a copy; the client closes the copy, not the connection. */
  static over(fd: number): VirtlockdClient {
    return new VirtlockdClient(new Socket({ fd, readable: true, writable: true }))
  }

  /** VIR_ERR_SYSTEM_ERROR when nobody listens there. */
  static async connect(path: string): Promise<VirtlockdClient> {
    const socket = connect(path)
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve)
      socket.once('error', (error) => {
        reject(fail('VIR_ERR_SYSTEM_ERROR', `cannot connect to virtlockd at '${path}': ${wordsOf(error)}`, error))
      })
    })
    return new VirtlockdClient(socket)
  }

  private constructor(socket: Socket) {
    this.#socket = socket
    socket.removeAllListeners('error')
    socket.on('data', (chunk: Buffer) => this.#take(chunk))
    socket.on('error', (error) => this.#drop(error.message))
    socket.on('close', () => this.#drop('it closed the connection'))
  }

  async call(procedure: LockProcedure, payload: Uint8Array): Promise<void> {
    const serial = ++this.#serial
    const message: RpcMessage = {
      program: LOCK_PROGRAM,
      version: LOCK_VERSION,
      procedure: lockProcedures.indexOf(procedure) + 1,
      type: messageTypes.call,
      serial,
      status: statuses.ok,
      payload,
    }
    const timer = setTimeout(() => this.#drop(`no answer in ${PATIENCE / 1000} s`), PATIENCE)
    try {
      await new Promise<void>((resolve, reject) => {
        this.#pending.set(serial, { resolve, reject })
        if (this.#socket.destroyed) this.#drop('the connection is closed')
        else this.#socket.write(encodeMessage(message))
      })
    } finally {
      clearTimeout(timer)
    }
  }

  #take(chunk: Buffer): void {
    try {
      for (const message of this.#framing.push(chunk)) this.#settle(message)
    } catch (error) {
      this.#drop(messageOf(error))
    }
  }

  #settle({ serial, status, type, payload }: RpcMessage): void {
    const call = this.#pending.get(serial)
    if (type !== messageTypes.reply || call === undefined) throw new Error(`nobody waits for message ${serial}`)
    // decoded while the call is still there to be told of a reply that cannot be
    const error = status === statuses.ok ? undefined : decodeRemoteError(payload)
    this.#pending.delete(serial)
    if (error === undefined) {
      call.resolve()
      return
    }
    const { code, message } = error
    call.reject(fail(codeNames.get(code) ?? 'VIR_ERR_RPC', `virtlockd: ${message}`))
  }

  #drop(why: string): void {
    const error = fail('VIR_ERR_RPC', `virtlockd broke down: ${why}`)
    for (const { reject } of this.#pending.values()) reject(error)
    this.#pending.clear()
    this.#socket.destroy()
  }

  [Symbol.dispose](): void {
    this.#socket.destroy()
  }
}
