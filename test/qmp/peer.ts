import assert from 'node:assert/strict'
import { Duplex } from 'node:stream'
import type { QmpEvent } from '../../src/qmp/framing.js'

interface Command {
  execute: string
  arguments?: object
  id: string
}

const GREETING = { QMP: { version: { qemu: { major: 7, minor: 2, micro: 0 }, package: '' }, capabilities: ['oob'] } }

/**
 * A scripted QMP server: it expects the given commands in this order and answers each as told. `done()` fails when commands
 * are left over or others came.
 */
export class QmpPeer {
  readonly stream: Duplex
  readonly #script: { execute: string; reply: (command: Command) => object | undefined }[] = []
  readonly #surprises: string[] = []
  #buffer = ''

  constructor(options: { greet?: boolean } = {}) {
    this.stream = new Duplex({
      read: () => undefined,
      write: (chunk: Buffer, _encoding, callback) => {
        this.#receive(chunk.toString())
        callback()
      },
    })
    if (options.greet !== false) this.say(GREETING)
    this.expect('qmp_capabilities', () => ({ return: {} }))
  }

  /** `reply` undefined: no answer, ever */
  expect(execute: string, reply: (command: Command) => object | undefined): this {
    this.#script.push({ execute, reply })
    return this
  }

  say(message: object): void {
    this.stream.push(JSON.stringify(message) + '\r\n')
  }

  event(event: string, data: object = {}): void {
    this.say({ event, data, timestamp: { seconds: 1, microseconds: 2 } } satisfies QmpEvent | object)
  }

  done(): void {
    assert.deepEqual(this.#surprises, [], 'commands that nobody expected')
    const left = this.#script.map((step) => step.execute)
    assert.deepEqual(left, [], 'commands that were expected but never came')
  }

  #receive(text: string): void {
    this.#buffer += text
    for (let end = this.#buffer.indexOf('\n'); end !== -1; end = this.#buffer.indexOf('\n')) {
      const command = JSON.parse(this.#buffer.slice(0, end)) as Command
      this.#buffer = this.#buffer.slice(end + 1)
      this.#answer(command)
    }
  }

  #answer(command: Command): void {
    const step = this.#script.shift()
    if (step?.execute !== command.execute) {
      this.#surprises.push(`${command.execute} (expected ${step?.execute ?? 'nothing'})`)
      return
    }
    const reply = step.reply(command)
    if (reply !== undefined) this.say({ ...reply, id: command.id })
  }
}
