import type { Duplex } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import * as c from '../constants.gen.js'
import type { DomainEvent, DriverHost, HypervisorOps, OverflowEvent } from '../driver.js'
import { failFrom } from '../error.js'
import { VIR_STREAM_DISK_ONE } from '../stream-flags.js'
import type { TunnelError } from '../tunnel/error.js'
import { Messages, type RequestOptions } from '../tunnel/messages.js'
import type { Channel } from '../tunnel/channel.js'
import type { Tunnel } from '../tunnel/tunnel.js'
import { Gate } from '../util/gate.js'
import { isOpened, type Opened, type Opening } from './protocol.js'
import { CONSOLE, CONTROL, EVENTS, isObject, PROTOCOL_VERSION } from './protocol.js'
import { wireError } from './errors.js'

const fail = failFrom('VIR_FROM_REMOTE')

/** calls on their way at a time, so that their answers need not wait in the daemon's memory */
const AT_A_TIME = 32

/** ms between two looks whether a migration still has the tunnel */
const LEAVE_INTERVAL = 100

/** May take as long as a migration, so they keep nobody waiting. */
const patient: ReadonlySet<string> = new Set<keyof HypervisorOps>([
  'domainMigratePrepare',
  'domainMigratePerform',
  'domainMigrateFinish',
  'domainMigrateConfirm',
  'domainAbortJob',
  'domainSave',
  'domainManagedSave',
  'domainRestore',
])

const eventKinds: ReadonlySet<unknown> = new Set<(DomainEvent | OverflowEvent)['kind']>([
  'lifecycle',
  'block-job',
  'stream-progress',
  'stream-unit',
  'io-error',
  'job-completed',
  'migration-iteration',
  'agent',
  'device-added',
  'device-removed',
  'device-removal-failed',
  'control-error',
  'overflow',
])

/** The client's side of a tunnel to a daemon. */
export class RemoteConnection {
  readonly #tunnel: Tunnel
  readonly #uri: string
  readonly #host: DriverHost
  readonly #messages: Messages
  readonly #opened: Opened
  readonly #gate = new Gate(AT_A_TIME)
  readonly #consoles = new Set<Channel>()
  #closing = false
  /** a migration has the tunnel too */
  #lent = false

  private constructor(tunnel: Tunnel, uri: string, host: DriverHost, channel: Channel, opened: Opened) {
    this.#tunnel = tunnel
    this.#uri = uri
    this.#host = host
    this.#opened = opened
    this.#messages = new Messages(channel, { onRequest: (method, params) => this.#take(method, params) })
    void this.#messages.closed.then((error) => this.#gone(error))
  }

  static async open(tunnel: Tunnel, uri: string, host: DriverHost): Promise<RemoteConnection> {
    const opening: Opening = { version: PROTOCOL_VERSION, readOnly: host.readOnly }
    const channel = await tunnel.open(CONTROL, { ...opening }).catch((error: unknown) => {
      throw wireError(error, `the daemon at '${uri}' refused the connection`)
    })
    const { reply } = channel
    if (!isOpened(reply) || reply.version !== PROTOCOL_VERSION) {
      channel.destroy()
      throw fail('VIR_ERR_RPC', `the daemon at '${uri}' does not speak version ${PROTOCOL_VERSION} of the protocol`)
    }
    return new RemoteConnection(tunnel, uri, host, channel, reply)
  }

  /** What the daemon's driver can do, done there. */
  operations(): Partial<HypervisorOps> {
    const forwarded = this.#opened.operations.map((name) => [
      name,
      async (...args: unknown[]) => (await this.#call(name, args)) ?? undefined,
    ])
    const all = Object.fromEntries(forwarded) as Partial<HypervisorOps>
    const { domainOpenConsole, domainStreamDisk, domainMigratePrepare, domainMigratePerform } = all
    return {
      ...all,
      ...(domainStreamDisk && { domainStreamDisk: (...args) => this.#streamDisk(...args) }),
      ...(domainOpenConsole && { domainOpenConsole: (...args) => this.#openConsole(...args) }),
      ...(domainMigratePrepare && {
        domainMigratePrepare: async (...args) => {
          const prepared = await domainMigratePrepare(...args)
          return prepared.uri === '' ? { ...prepared, uri: this.#uri } : prepared
        },
      }),
      ...(domainMigratePerform && {
        // a tunnel of ours is of no use to a source that is elsewhere
        domainMigratePerform: (domain, params, flags, cookie, uri) =>
          domainMigratePerform(domain, params, flags, cookie, uri),
      }),
      connectTunnel: () => this.#lend(),
      connectClose: () => this.#close(),
    }
  }

  async #call(name: string, args: readonly unknown[], options?: RequestOptions): Promise<unknown> {
    const request = (): Promise<unknown> => this.#messages.request(name, args, options)
    try {
      return await (patient.has(name) ? request() : this.#gate.pass(request))
    } catch (error) {
      throw wireError(error, `the call of '${name}' to '${this.#uri}' failed`)
    }
  }

  async #streamDisk(...[domain, disk, offset, flags, options]: Parameters<HypervisorOps['domainStreamDisk']>) {
    const { signal, ...rest } = options
    // a whole stream that is not wanted any more has to be stopped, which its caller does
    const how = flags === VIR_STREAM_DISK_ONE && signal !== undefined ? { signal } : undefined
    return (await this.#call('domainStreamDisk', [domain, disk, offset, flags, rest], how)) as number
  }

  async #openConsole(...args: Parameters<HypervisorOps['domainOpenConsole']>): Promise<Duplex> {
    const id = await this.#call('domainOpenConsole', args)
    const console = await this.#tunnel.open(CONSOLE, { id }).catch((error: unknown) => {
      throw wireError(error, 'cannot open the console')
    })
    // the tunnel ends with its last channel
    if (this.#closing) {
      console.destroy()
      throw fail('VIR_ERR_RPC', `the connection to '${this.#uri}' was closed`)
    }
    this.#consoles.add(console)
    return console.once('close', () => this.#consoles.delete(console))
  }

  #take(method: string, params: unknown): null {
    if (method !== EVENTS || !Array.isArray(params)) throw fail('VIR_ERR_RPC', `'${method}' is nothing to ask a client`)
    for (const event of params as unknown[]) {
      if (isEvent(event)) this.#host.emit(event)
      else this.#host.logger.warn({ event }, 'the daemon told of something that is not known here')
    }
    return null
  }

  #gone(error: TunnelError | undefined): void {
    if (!this.#closing) this.#host.emit({ kind: 'close', ...reasonOf(error) })
    if (this.#lent) void this.#leave()
    else this.#tunnel.destroy()
  }

  /** A migration goes through the same tunnel, perhaps for longer than this connection is open: until its last channel ends. */
  #lend(): Promise<Tunnel> {
    if (this.#tunnel.isClosed) return Promise.reject(fail('VIR_ERR_RPC', `the connection to '${this.#uri}' is broken`))
    this.#lent = true
    return Promise.resolve(this.#tunnel)
  }

  async #close(): Promise<void> {
    this.#closing = true
    this.#messages.close()
    for (const console of this.#consoles) console.destroy()
    if (this.#lent) void this.#leave()
    else await this.#tunnel.close('the client closed the connection')
  }

  /** Closes the tunnel when nobody has a channel on it any more. */
  async #leave(): Promise<void> {
    while (!this.#tunnel.isClosed && this.#tunnel.stats.channels.length > 0) await delay(LEAVE_INTERVAL)
    await this.#tunnel.close('the client closed the connection')
  }
}

function isEvent(event: unknown): event is DomainEvent | OverflowEvent {
  if (!isObject(event) || !eventKinds.has(event['kind'])) return false
  if (event['kind'] === 'overflow') return true
  const { domain } = event
  return isObject(domain) && typeof domain['name'] === 'string' && typeof domain['uuid'] === 'string'
}

function reasonOf(error: TunnelError | undefined): { reason: number; error: string } {
  if (error === undefined) return { reason: c.VIR_CONNECT_CLOSE_REASON_EOF, error: 'the daemon closed the connection' }
  const dead = error.code === 'ETIMEDOUT'
  return {
    reason: dead ? c.VIR_CONNECT_CLOSE_REASON_KEEPALIVE : c.VIR_CONNECT_CLOSE_REASON_ERROR,
    error: error.message,
  }
}
