/** A QEMU that is started by hand, without the driver: what the driver is compared with. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createConnection } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { QmpClient } from '../../src/qmp/client.js'
import type { QmpEvent } from '../../src/qmp/framing.js'
import type { Cleanup } from './images.js'

export interface ByHand {
  events: QmpEvent[]
  execute: (command: string, args?: object) => Promise<unknown>
  kill: () => Promise<void>
}

async function connectMonitor(socketPath: string, events: QmpEvent[]): Promise<QmpClient> {
  for (let tries = 0; ; tries++) {
    const socket = createConnection(socketPath)
    try {
      await once(socket, 'connect')
      return await QmpClient.connect(socket, { timeout: 20_000, onEvent: (event) => events.push(event) })
    } catch (error) {
      if (tries > 2_400) throw error
      await delay(25)
    }
  }
}

/** Starts `argv` with a monitor on `socketPath`; it ends with the test at the latest. */
export async function startByHand(t: Cleanup, argv: readonly string[], socketPath: string): Promise<ByHand> {
  const [program = '', ...args] = argv
  args.push('-qmp', `unix:${socketPath},server=on,wait=off`)
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit'] })
  const exited = once(child, 'exit')
  const kill = async (): Promise<void> => {
    child.kill('SIGKILL')
    await exited
  }
  t.after(kill)
  const events: QmpEvent[] = []
  const client = await connectMonitor(socketPath, events)
  return { events, kill, execute: (command, args) => client.execute(command, args, { timeout: 20_000 }) }
}

/** An argv of the driver without its monitor, its pid file and its sandbox. */
export function withoutMonitor(argv: readonly string[]): string[] {
  const dropped = ['-chardev', '-mon', '-pidfile', '-sandbox']
  const kept: string[] = []
  for (let i = 0; i < argv.length; i++) {
    const value = argv[i + 1] ?? ''
    const ours = argv[i] !== '-chardev' || value.includes('id=charmonitor')
    if (dropped.includes(argv[i] ?? '') && ours) i++
    else kept.push(argv[i] ?? '')
  }
  return kept
}
