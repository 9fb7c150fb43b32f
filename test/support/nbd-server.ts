/** NBD servers for tests: qemu-nbd and nbdkit, on a unix socket or a loopback port, that can be killed and come back. */
import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { rmSync } from 'node:fs'
import { rm, writeFile } from 'node:fs/promises'
import { connect } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import type { StorageSource } from '../../src/conf/domain-def.js'
import { formatBackingString } from '../../src/storage/backing-string.js'
import type { Cleanup } from './images.js'
import { freePort } from './ports.js'

type NetworkSource = Extract<StorageSource, { type: 'network' }>

/** Where a server listens: at a socket's path, or else at a free loopback port. */
export interface Place {
  socket?: string
  port?: number
}

export class NbdServer {
  /** without a format: the test knows what lies behind */
  readonly source: NetworkSource
  /** what QEMU takes as a file name */
  readonly uri: string
  readonly #command: readonly [string, ...string[]]
  readonly #place: Place
  #child: ChildProcess | undefined
  #words = ''

  constructor(command: readonly [string, ...string[]], place: Place, name: string) {
    this.#command = command
    this.#place = place
    const host =
      place.socket === undefined ? { name: '127.0.0.1', port: place.port } : { transport: 'unix', socket: place.socket }
    this.source = {
      type: 'network',
      protocol: 'nbd',
      ...(name !== '' && { name }),
      hosts: [host as NetworkSource['hosts'][0]],
    }
    this.uri = formatBackingString(this.source)
  }

  get pid(): number | undefined {
    return this.#child?.pid
  }

  /** Starts the server (again, at the same place) and waits until it takes connections. */
  async start(): Promise<void> {
    const [program, ...args] = this.#command
    if (this.#place.socket !== undefined) await rm(this.#place.socket, { force: true })
    const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'] })
    this.#child = child
    child.stderr.on('data', (bytes: Buffer) => {
      this.#words += bytes.toString()
    })
    const failed = new Promise<never>((_, reject) => {
      child.once('error', reject)
      child.once('exit', (code) =>
        reject(new Error(`${program} ended with status ${String(code)}: ${this.#words.trim()}`)),
      )
    })
    failed.catch(() => undefined)
    await Promise.race([failed, this.#listening()])
  }

  /** SIGKILL by default; SIGSTOP and SIGCONT make it hang and go on. Waits for the end where there is one. */
  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    const child = this.#child
    if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
    const gone = once(child, 'exit')
    child.kill(signal)
    if (signal === 'SIGSTOP' || signal === 'SIGCONT') return
    await gone
  }

  async stop(): Promise<void> {
    await this.kill()
    if (this.#place.socket !== undefined) rmSync(this.#place.socket, { force: true })
  }

  async #listening(): Promise<void> {
    for (;;) {
      const { socket: path, port = 0 } = this.#place
      const socket = path === undefined ? connect(port, '127.0.0.1') : connect(path)
      try {
        await once(socket, 'connect')
        return
      } catch {
        await delay(10)
      } finally {
        socket.destroy()
      }
    }
  }
}

async function begin(t: Cleanup, server: NbdServer): Promise<NbdServer> {
  t.after(() => server.stop())
  await server.start()
  return server
}

export interface QemuNbdOptions extends Place {
  image: string
  format: string
  /** export name, default '' */
  export?: string
  writable?: boolean
}

/** qemu-nbd for any number of clients, until the test ends. */
export async function startQemuNbd(t: Cleanup, options: QemuNbdOptions): Promise<NbdServer> {
  const { image, format, export: name = '', writable = false, socket } = options
  const port = socket === undefined ? (options.port ?? (await freePort())) : undefined
  const where = socket === undefined ? ['-b', '127.0.0.1', '-p', String(port)] : ['-k', socket]
  const mode = writable ? [] : ['-r']
  const command = ['qemu-nbd', '-t', '-e', '64', '-f', format, '-x', name, ...mode, ...where, image] as const
  return await begin(t, new NbdServer(command, port === undefined ? { ...options } : { port }, name))
}

export interface NbdkitOptions extends Place {
  /** the plugin with its parameters: ['file', '/path'], ['memory', '64M'] */
  plugin: string[]
  /** outermost first: ['error', 'delay'] */
  filters?: string[]
  /** parameters of the filters: 'rdelay=10ms', 'error-pread=EIO', … */
  parameters?: string[]
  writable?: boolean
}

/** nbdkit for any number of clients, until the test ends. */
export async function startNbdkit(t: Cleanup, options: NbdkitOptions): Promise<NbdServer> {
  const { plugin, filters = [], parameters = [], writable = false, socket } = options
  const port = socket === undefined ? (options.port ?? (await freePort())) : undefined
  const where = socket === undefined ? ['-i', '127.0.0.1', '-p', String(port)] : ['-U', socket]
  const filtered = filters.map((filter) => `--filter=${filter}`)
  const mode = writable ? [] : ['-r']
  const command = ['nbdkit', '-f', ...mode, ...where, ...filtered, ...plugin, ...parameters] as const
  return await begin(t, new NbdServer(command, port === undefined ? { ...options } : { port }, ''))
}

/** nbdkit's error filter with a switch: requests fail while the file is there. */
export interface Trouble {
  filters: string[]
  parameters: string[]
  on(): Promise<void>
  off(): Promise<void>
}

/**
 * Requests of `kind` fail with `error` while the trouble is on. 'extents' is what QEMU asks for the block status;
 * 'pread' are its reads.
 */
export function trouble(file: string, kind: 'pread' | 'extents' | 'all' = 'all', error = 'EIO'): Trouble {
  const [prefix, suffix] = kind === 'all' ? ['error', ''] : [`error-${kind}`, '']
  return {
    filters: ['error'],
    parameters: [`${prefix}${suffix}=${error}`, `${prefix}-rate=100%`, `${prefix}-file=${file}`],
    on: () => writeFile(file, ''),
    off: () => rm(file, { force: true }),
  }
}
