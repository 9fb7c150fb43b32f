/** A program that cleans up behind itself, whether it ends well, fails or is interrupted. */
import { constants } from 'node:os'
import { messageOf } from '../src/error.js'
import type { Cleanup } from '../test/support/images.js'

/** Steps to take back at the end, newest first: what a test has, for the helpers of the tests. */
export class Stack implements Cleanup {
  readonly #steps: (() => unknown)[] = []

  after: Cleanup['after'] = (step) => {
    if (step !== undefined) this.#steps.push(step as () => unknown)
  }

  async undo(complain: (text: string) => void): Promise<void> {
    for (let step = this.#steps.pop(); step !== undefined; step = this.#steps.pop()) {
      try {
        await step()
      } catch (error) {
        complain(`cleaning up: ${messageOf(error)}`)
      }
    }
  }
}

/** Becomes 128 + the number of the first signal that wants us to end. */
function interruption(onInterrupt: () => void): Promise<number> {
  return new Promise((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
      process.once(signal, () => {
        onInterrupt()
        resolve(128 + constants.signals[signal])
      })
    }
  })
}

/**
 * Runs `body`, then what it has left to be taken back, and exits: 0, 1 with a sentence, or as a shell counts signals. Its
 * signal is aborted when the user interrupts; it is not waited for then.
 */
export async function runProgram(
  name: string,
  body: (t: Cleanup, signal: AbortSignal) => Promise<void>,
): Promise<never> {
  const complain = (text: string): void => void process.stderr.write(`\n${name}: ${text}\n`)
  const stack = new Stack()
  const interrupt = new AbortController()
  const interrupted = interruption(() => {
    complain('interrupted, cleaning up')
    interrupt.abort()
  })
  const done = body(stack, interrupt.signal).then(
    () => 0,
    (error: unknown) => {
      if (!interrupt.signal.aborted) complain(messageOf(error))
      return 1
    },
  )
  const status = await Promise.race([interrupted, done])
  await stack.undo(complain)
  process.exit(status)
}
