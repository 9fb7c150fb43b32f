/** What is said to sanlock: by its own client tool, and the two messages that its library sends for a process about itself. */
import { Socket } from 'node:net'
import { failFrom, messageOf } from '../error.js'
import { run, RunError } from '../util/run.js'

const fail = failFrom('VIR_FROM_LOCKING')

const PATIENCE = 10_000
/** a lockspace is joined within some times of its I/O timeout, 10 s by default */
const JOIN_PATIENCE = 180_000

/** The daemon's header: eight 32-bit numbers of the host's byte order (little-endian where QEMU hosts are). */
const HEADER = 32
const MAGIC = 0x04282010
const PROTOCOL = 1
const commands = { register: 1, restrict: 10 } as const
/** this connection can do nothing more */
const RESTRICT_ALL = 1
const NO_PID = 0xffffffff

function message(command: number, flags: number, data2: number): Buffer {
  const bytes = Buffer.alloc(HEADER)
  const fields = [MAGIC, PROTOCOL, command, flags, HEADER, 0, 0, data2]
  for (const [nth, value] of fields.entries()) bytes.writeUInt32LE(value, nth * 4)
  return bytes
}

/**
 * Over the connection that a process has made, of which `fd` is a copy: the daemon ties leases to that process from now on,
 * until the connection ends with it, and hears nothing more from it.
 */
export async function registerProcess(fd: number): Promise<void> {
  const socket = new Socket({ fd, readable: true, writable: true })
  try {
    const answer = new Promise<Buffer>((resolve, reject) => {
      let got = Buffer.alloc(0)
      socket.on('data', (chunk: Buffer) => {
        got = Buffer.concat([got, chunk])
        if (got.length >= HEADER) resolve(got)
      })
      socket.once('error', reject)
      socket.once('close', () => reject(new Error('it closed the connection')))
      socket.setTimeout(PATIENCE, () => reject(new Error('it does not answer')))
    })
    socket.write(message(commands.register, 0, 0))
    socket.write(message(commands.restrict, RESTRICT_ALL, NO_PID))
    const result = (await answer).readInt32LE(24)
    if (result < 0) throw new Error(`result ${result}`)
  } catch (error) {
    throw fail('VIR_ERR_RPC', `sanlock does not register the process: ${messageOf(error)}`, error)
  } finally {
    socket.destroy()
  }
}

export class SanlockTool {
  readonly #env: NodeJS.ProcessEnv

  /** `runDir`: where the daemon's socket is */
  constructor(runDir: string) {
    this.#env = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`, SANLOCK_RUN_DIR: runDir }
  }

  /** What `sanlock ARGS` prints; its result is negative when it failed. VIR_ERR_SYSTEM_ERROR when it cannot be asked. */
  async call(args: readonly string[], timeout = PATIENCE): Promise<{ result: number; text: string }> {
    try {
      const { stdout } = await run('sanlock', [...args], { env: this.#env, timeout })
      return { result: resultOf(stdout) ?? 0, text: stdout }
    } catch (error) {
      const text = error instanceof RunError ? `${error.stdout}${error.stderr}` : ''
      const result = resultOf(text)
      if (result !== undefined && result < 0) return { result, text }
      throw fail('VIR_ERR_SYSTEM_ERROR', `sanlock cannot be asked: ${messageOf(error)}`, error)
    }
  }

  initialize(
    kind: '-s' | '-r',
    lease: string,
    ioTimeout: number | undefined,
  ): Promise<{ result: number; text: string }> {
    return this.call(['direct', 'init', kind, lease, ...timeoutOption(ioTimeout)])
  }

  join(lockspace: string, ioTimeout: number | undefined): Promise<{ result: number; text: string }> {
    return this.call(['client', 'add_lockspace', '-s', lockspace, ...timeoutOption(ioTimeout)], JOIN_PATIENCE)
  }
}

const timeoutOption = (seconds: number | undefined): string[] => (seconds === undefined ? [] : ['-o', String(seconds)])

const resultOf = (text: string): number | undefined => {
  const found = [...text.matchAll(/\bdone (-?\d+)/g)].at(-1)?.[1]
  return found === undefined ? undefined : Number(found)
}
