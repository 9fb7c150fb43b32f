/** A QEMU without any of our code: started by hand with a given argv, spoken to over a plain socket. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { createConnection, type Socket } from 'node:net'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { native } from '../src/native.js'
import type { Domain } from '../src/index.js'

interface Message {
  event?: string
  data?: Record<string, unknown>
  return?: unknown
  error?: { desc: string }
}

/** The least that QMP needs: one command at a time, and one event to wait for. */
export class PlainQmp {
  readonly #socket: Socket
  #rest = ''
  #onMessage: (message: Message) => void = () => undefined

  private constructor(socket: Socket) {
    this.#socket = socket
    socket.setEncoding('utf8').on('data', (text: string) => {
      const lines = (this.#rest + text).split('\n')
      this.#rest = lines.pop() ?? ''
      for (const line of lines) this.#onMessage(JSON.parse(line) as Message)
    })
  }

  static async connect(path: string): Promise<PlainQmp> {
    const socket = createConnection(path)
    await once(socket, 'connect')
    const qmp = new PlainQmp(socket)
    await qmp.#next((message) => 'QMP' in message)
    await qmp.execute('qmp_capabilities')
    return qmp
  }

  async execute(command: string, args: Record<string, unknown> = {}): Promise<unknown> {
    const answer = this.#next(({ event }) => event === undefined)
    this.#socket.write(JSON.stringify({ execute: command, arguments: args }))
    const { error, return: value } = await answer
    if (error !== undefined) throw new Error(`${command}: ${error.desc}`)
    return value
  }

  /** Sends a command and waits for an event that can come before its reply. */
  async executeUntil(command: string, args: Record<string, unknown>, event: string): Promise<Record<string, unknown>> {
    const came = this.#next((message) => message.event === event || message.error !== undefined)
    this.#socket.write(JSON.stringify({ execute: command, arguments: args }))
    const { error, data = {} } = await came
    if (error !== undefined) throw new Error(`${command}: ${error.desc}`)
    return data
  }

  close(): void {
    this.#socket.destroy()
  }

  #next(wanted: (message: Message) => boolean): Promise<Message> {
    return new Promise((resolve, reject) => {
      this.#socket.once('close', () => reject(new Error('QEMU closed its monitor')))
      this.#onMessage = (message) => {
        if (wanted(message)) resolve(message)
      }
    })
  }
}

/** Of a running domain's QEMU. */
export async function pidOf(root: string, dom: Domain): Promise<number> {
  return Number(await readFile(join(root, 'run/qemu', String(dom.id), 'pid'), 'utf8'))
}

/** The argv of a process, as the kernel has it. */
export async function argvOf(pid: number): Promise<string[]> {
  return (await readFile(`/proc/${pid}/cmdline`, 'utf8')).split('\0').slice(0, -1)
}

/** ms of processor time that a process has taken so far, all threads (proc(5): utime and stime, in ticks of 10 ms) */
export async function cpuOf(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/stat`, 'utf8')
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
  return (Number(fields[11]) + Number(fields[12])) * 10
}

export interface ByHand extends AsyncDisposable {
  qmp: PlainQmp
  pid: number
  /** ms from the spawn until the monitor had answered */
  ms: number
}

/** Runs an argv of ours with another monitor socket, pid file and other `replacements` of text. */
export async function startByHand(
  argv: readonly string[],
  socket: string,
  replacements: readonly (readonly [string, string])[] = [],
): Promise<ByHand> {
  const [file = '', ...args] = argv.map((arg) => {
    const own = arg.replace(/(id=charmonitor,)fd=\d+/, '$1fd=3').replace(/^.*\/run\/qemu\/\d+\/pid$/, `${socket}.pid`)
    return replacements.reduce((text, [from, to]) => text.replaceAll(from, to), own)
  })
  const began = performance.now()
  const listener = native.listenUnix(socket, 0o600, 1)
  const qemu = spawn(file, args, { stdio: ['ignore', 'ignore', 'pipe', listener], cwd: '/' })
  native.close(listener)
  const exited = once(qemu, 'exit')
  let words = ''
  qemu.stderr?.setEncoding('utf8').on('data', (text: string) => (words += text))
  const end = async (): Promise<void> => {
    qemu.kill('SIGKILL')
    await exited
  }
  try {
    const qmp = await PlainQmp.connect(socket)
    const ms = performance.now() - began
    return {
      qmp,
      pid: qemu.pid ?? 0,
      ms,
      [Symbol.asyncDispose]: async () => {
        qmp.close()
        await end()
      },
    }
  } catch (error) {
    await end()
    await delay(0)
    throw new Error(`QEMU by hand: ${words}`, { cause: error })
  }
}
