import { homedir } from 'node:os'
import { join } from 'node:path'
import type { Readable, Writable } from 'node:stream'
import { pino } from 'pino'
import type { Logger } from 'pino'
import { Connect } from '../api/connect.js'
import type { Domain } from '../api/domain.js'
import { VirError } from '../error.js'
import { Output } from './output.js'

/** Where a command reads and writes. */
export interface Io {
  stdin: Readable
  stdout: Writable
  stderr: Writable
  env: NodeJS.ProcessEnv
}

export interface GlobalOptions {
  connect?: string
  readonly?: boolean
  quiet?: boolean
  debug?: boolean
}

/** What a command could not do, and why (`cause`). */
export class CommandError extends Error {
  override readonly name = 'CommandError'
}

/** What one run of the command has at hand. */
export class Context {
  readonly io: Io
  readonly out: Output
  readonly err: Output
  readonly quiet: boolean
  readonly #options: GlobalOptions
  readonly #others: Connect[] = []
  #connect: Promise<Connect> | undefined

  constructor(io: Io, options: GlobalOptions) {
    this.io = io
    this.out = new Output(io.stdout)
    this.err = new Output(io.stderr)
    this.quiet = options.quiet ?? false
    this.#options = options
  }

  get uri(): string {
    return this.#options.connect ?? defaultUri(this.io.env)
  }

  /** How the program is called for another command on the same connection. */
  get program(): string {
    const { connect } = this.#options
    return connect === undefined ? 'virstream' : `virstream -c '${connect}'`
  }

  /** What scripts read: printed in any case. */
  print(...lines: string[]): void {
    for (const line of lines) this.out.line(line)
  }

  /** What people read: not printed with --quiet. */
  say(...lines: string[]): void {
    if (!this.quiet) this.print(...lines)
  }

  printJson(data: unknown): void {
    this.print(JSON.stringify(data, undefined, 2))
  }

  connection(): Promise<Connect> {
    this.#connect ??= this.attempt('failed to connect to the hypervisor', () =>
      Connect.open(this.uri, { readOnly: this.#options.readonly ?? false, logger: this.#logger() }),
    )
    return this.#connect
  }

  /** One more connection, to where a domain is to go; closed with the other one. */
  async connectionTo(uri: string): Promise<Connect> {
    const other = await this.attempt(`failed to connect to '${uri}'`, () =>
      Connect.open(uri, { logger: this.#logger() }),
    )
    this.#others.push(other)
    return other
  }

  async close(): Promise<void> {
    for (const other of this.#others) await other.close()
    const connect = await this.#connect?.catch(() => undefined)
    await connect?.close()
  }

  /** By id, then by UUID, then by name, as virsh does. */
  async domain(what: string): Promise<Domain> {
    const conn = await this.connection()
    return this.attempt(`failed to get domain '${what}'`, async () => {
      const id = /^\d+$/.test(what) ? Number(what) : NaN
      if (Number.isSafeInteger(id)) {
        const domain = await optional(conn.domainLookupByID(id))
        if (domain !== undefined) return domain
      }
      if (/^[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}$/i.test(what)) {
        const domain = await optional(conn.domainLookupByUUIDString(what))
        if (domain !== undefined) return domain
      }
      return conn.domainLookupByName(what)
    })
  }

  /** Runs `work`; an error of it comes out below the sentence `failure`. */
  async attempt<T>(failure: string, work: () => Promise<T>): Promise<T> {
    try {
      return await work()
    } catch (error) {
      throw error instanceof VirError ? new CommandError(failure, { cause: error }) : error
    }
  }

  /** As attempt(), but the first Ctrl-C does not end what would be left half done. */
  async whole<T>(failure: string, work: () => Promise<T>): Promise<T> {
    const refuse = (): void => this.err.line('This is finished first; Ctrl-C again ends it half done.')
    process.once('SIGINT', refuse)
    try {
      return await this.attempt(failure, work)
    } finally {
      process.off('SIGINT', refuse)
    }
  }

  #logger(): Logger {
    if (this.#options.debug !== true) return pino({ enabled: false })
    return pino({ level: 'debug', base: null }, { write: (line: string) => this.err.write(line) })
  }
}

async function optional<T>(lookup: Promise<T>): Promise<T | undefined> {
  try {
    return await lookup
  } catch (error) {
    if (error instanceof VirError && error.code === 'VIR_ERR_NO_DOMAIN') return undefined
    throw error
  }
}

/** $VIRSTREAM_DEFAULT_URI, or the QEMU driver with a tree of the user's own. */
export function defaultUri(env: NodeJS.ProcessEnv): string {
  const given = env['VIRSTREAM_DEFAULT_URI']
  if (given !== undefined && given !== '') return given
  const state = env['XDG_STATE_HOME']
  const root = join(state === undefined || state === '' ? join(homedir(), '.local/state') : state, 'virstream')
  return `qemu:///embed?root=${encodeURIComponent(root).replaceAll('%2F', '/')}`
}
