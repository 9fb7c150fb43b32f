/** virstreamd as a process of its own. */
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { text } from 'node:stream/consumers'
import type { Readable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import type { Readiness } from '../../src/remote/embedded.js'
import type { Cleanup } from './images.js'

const program = fileURLToPath(new URL('../../src/bin/virstreamd.js', import.meta.url))

export interface DaemonProcess {
  child: ChildProcess
  pid: number
  readiness: Readiness
  /** sends a signal and waits for its end, which it answers */
  end: (signal?: NodeJS.Signals) => Promise<{ status: number | null; stderr: string }>
}

/** Starts one (`at`: behind these words, e.g. in a network namespace) and waits until it is ready, or says why it is not. It is killed with the test at the latest. */
export async function daemonProcess(
  t: Cleanup,
  root: string,
  args: readonly string[] = [],
  env: NodeJS.ProcessEnv = {},
  at: readonly string[] = [],
): Promise<DaemonProcess> {
  const words = [program, '--root', root, '--ready-fd', '3', ...args]
  const line = [...at, process.execPath, ...words]
  const child = spawn(line[0] ?? process.execPath, line.slice(1), {
    stdio: ['ignore', 'inherit', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  })
  const exited = once(child, 'exit') as Promise<[number | null]>
  const stderr = text(child.stderr as Readable)
  t.after(() => child.kill('SIGKILL'))
  const said = await text(child.stdio[3] as Readable)
  const end = async (signal?: NodeJS.Signals): Promise<{ status: number | null; stderr: string }> => {
    if (signal !== undefined) child.kill(signal)
    const [status] = await exited
    return { status, stderr: await stderr }
  }
  return { child, pid: child.pid ?? 0, readiness: JSON.parse(said) as Readiness, end }
}
