import { failFrom } from '../../error.js'

const fail = failFrom('VIR_FROM_QEMU')

/** What a job is for; the word stands in the error of whoever could not wait long enough. */
export type JobKind = 'create' | 'destroy' | 'modify' | 'save' | 'stream' | 'settle' | 'undefine' | 'migrate'

/** ms that a call waits for the job of another one (libvirt waits 30 s as well) */
const ADMISSION_TIMEOUT = 30_000

interface Pending {
  kind: JobKind
  start: () => void
  timer?: NodeJS.Timeout
}

/**
 * The right to change one domain, held by one job at a time, given out in the order of asking. Begin and end can't be
 * split: the job is what `work` does. Whoever waited must look again whether the domain still lives.
 */
export class JobQueue {
  #active: JobKind | undefined
  readonly #pending: Pending[] = []

  get active(): JobKind | undefined {
    return this.#active
  }

  /**
   * Runs `work` as the only job. Rejects with VIR_ERR_OPERATION_TIMEOUT when another job holds the domain for too long;
   * with `timeout` Infinity it waits as long as that takes: work that nobody would ask for again.
   * Never await a job from inside another one of the same domain.
   */
  async run<T>(kind: JobKind, work: () => Promise<T>, timeout = ADMISSION_TIMEOUT): Promise<T> {
    await this.#admit(kind, timeout)
    try {
      return await work()
    } finally {
      this.#next()
    }
  }

  #admit(kind: JobKind, timeout: number): Promise<void> {
    if (this.#active === undefined) {
      this.#active = kind
      return Promise.resolve()
    }
    return new Promise((resolve, reject) => {
      const pending: Pending = {
        kind,
        start: () => {
          clearTimeout(pending.timer)
          resolve()
        },
      }
      this.#pending.push(pending)
      if (timeout === Infinity) return
      pending.timer = setTimeout(() => {
        this.#pending.splice(this.#pending.indexOf(pending), 1)
        reject(
          fail('VIR_ERR_OPERATION_TIMEOUT', `cannot acquire state change lock (held by job '${String(this.#active)}')`),
        )
      }, timeout)
    })
  }

  #next(): void {
    const next = this.#pending.shift()
    this.#active = next?.kind
    next?.start()
  }
}
