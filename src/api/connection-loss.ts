import type { Logger } from 'pino'
import { failFrom } from '../error.js'
import type { EventHub } from './event-hub.js'

const fail = failFrom('VIR_FROM_NONE')

/** Whether a connection has broken, and who wants to know. */
export class ConnectionLoss {
  readonly #logger: Logger
  readonly #events: EventHub
  #reason: number | undefined
  #callback: ((reason: number) => void) | undefined

  constructor(logger: Logger, events: EventHub) {
    this.#logger = logger
    this.#events = events
  }

  get isAlive(): boolean {
    return this.#reason === undefined
  }

  /** Says so once: listeners of events end, since no more will come. `reason` VIR_CONNECT_CLOSE_REASON_*. */
  happen(reason: number): void {
    if (this.#reason !== undefined) return
    this.#reason = reason
    this.#logger.warn({ reason }, 'the connection to the hypervisor is lost')
    this.#events.close()
    this.#callback?.(reason)
  }

  register(callback: (reason: number) => void): void {
    if (this.#callback !== undefined) throw fail('VIR_ERR_OPERATION_INVALID', 'a close callback is already registered')
    this.#callback = callback
  }

  unregister(callback: (reason: number) => void): void {
    if (this.#callback !== callback) throw fail('VIR_ERR_OPERATION_INVALID', 'this close callback is not registered')
    this.#callback = undefined
  }
}
