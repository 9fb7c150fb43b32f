/** A QEMU for tests of what is sent to it: reached over QMP, gone when the test ends. */
import { spawn } from 'node:child_process'
import { Duplex } from 'node:stream'
import { QmpClient } from '../../src/qmp/client.js'
import type { QmpEvent } from '../../src/qmp/framing.js'
import { findProgram, requires } from '../support/requires.js'
import type { TestContext } from 'node:test'

export const emulator = findProgram('qemu-system-x86_64') ?? '/usr/bin/qemu-system-x86_64'

export interface TestQemu {
  execute<T>(command: string, args?: object): Promise<T>
  events: QmpEvent[]
}

/** `args` and `-qmp stdio`. Undefined, the test skipped, where there is no QEMU. */
export async function startQemu(t: TestContext, args: string[]): Promise<TestQemu | undefined> {
  if (!requires(t, 'program:qemu-system-x86_64')) return undefined
  const child = spawn(emulator, [...args, '-qmp', 'stdio'], { stdio: ['pipe', 'pipe', 'pipe'] })
  t.after(() => child.kill('SIGKILL'))
  let words = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (words += text))
  const events: QmpEvent[] = []
  const stream = Duplex.from({ readable: child.stdout, writable: child.stdin })
  try {
    const client = await QmpClient.connect(stream, { timeout: 60_000, onEvent: (event) => events.push(event) })
    const execute = <T>(command: string, args?: object): Promise<T> =>
      client.execute(command, args, { timeout: 30_000 }) as Promise<T>
    return { execute, events }
  } catch (error) {
    throw new Error(`QEMU does not start: ${words}`, { cause: error })
  }
}

export const withoutMachine = ['-S', '-no-user-config', '-nodefaults', '-display', 'none', '-machine', 'none']
