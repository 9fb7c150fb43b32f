/** The daemon's side of a tunnel: what a client asks for goes through the public interface, as any application's calls do. */
import { randomUUID } from 'node:crypto'
import type { Duplex } from 'node:stream'
import { setImmediate as turn } from 'node:timers/promises'
import type { Logger } from 'pino'
import { Connect } from '../api/connect.js'
import { sessionOf } from '../api/session.js'
import { failFrom, messageOf } from '../error.js'
import { joinDuplex } from '../tunnel/join.js'
import { Messages } from '../tunnel/messages.js'
import type { ChannelRequest } from '../tunnel/requests.js'
import type { Tunnel } from '../tunnel/tunnel.js'
import { packageVersion } from '../util/package.js'
import { callNamed, calls, domainOf, type PlainOperation } from './calls.js'
import { EventFeed } from './event-feed.js'
import { CONSOLE, CONSOLE_PATIENCE, CONTROL, EVENTS, MIGRATION, PROTOCOL_VERSION } from './protocol.js'
import type { Opened } from './protocol.js'
import type { SharedDriver } from './shared-driver.js'

const fail = failFrom('VIR_FROM_REMOTE')

/** requests of one client that are being answered at a time; ours has fewer on their way */
const IN_FLIGHT = 256
/** consoles of one client that wait for their channels */
const CONSOLES = 16

interface Waiting {
  console: Duplex
  timer: NodeJS.Timeout
}

/** One client: a connection of its own to the daemon's driver, which ends with the client's channel. */
class Client {
  readonly #connect: Connect
  readonly #pki: string | undefined
  readonly #logger: Logger
  readonly #consoles = new Map<string, Waiting>()
  #messages: Messages | undefined

  constructor(connect: Connect, pki: string | undefined, logger: Logger) {
    this.#connect = connect
    this.#pki = pki
    this.#logger = logger
  }

  /** Ends it as if the client had. */
  close(): void {
    this.#messages?.close()
  }

  /** Answers requests until the channel ends. */
  async serve(channel: Duplex): Promise<void> {
    const messages = new Messages(channel, {
      onRequest: (method, params, signal) => this.#answer(method, params, signal),
      maxInFlight: IN_FLIGHT,
    })
    this.#messages = messages
    const feed = new EventFeed(this.#connect.domainEvents(), (events) => messages.request(EVENTS, events))
    const error = await messages.closed
    this.#logger.debug({ error: error?.message }, 'a client has gone')
    await feed.close()
    for (const id of [...this.#consoles.keys()]) this.takeConsole(id)?.destroy()
    await this.#connect.close()
  }

  /** A console that was opened, once. */
  takeConsole(id: string): Duplex | undefined {
    const waiting = this.#consoles.get(id)
    this.#consoles.delete(id)
    clearTimeout(waiting?.timer)
    return waiting?.console
  }

  async #answer(method: string, params: unknown, signal: AbortSignal): Promise<unknown> {
    if (!Array.isArray(params)) throw fail('VIR_ERR_RPC', `the arguments of '${method}' are a list`)
    // JSON has no undefined, and nothing that we take is null
    const args = params.map((value: unknown) => value ?? undefined)
    const on = { connect: this.#connect, session: sessionOf(this.#connect), signal, pki: this.#pki }
    try {
      if (method === 'domainOpenConsole') return await this.#openConsole(args)
      const call = callNamed(method)
      if (call === undefined) throw fail('VIR_ERR_RPC', `there is no procedure '${method}'`)
      return (await call(on, ...args)) ?? null
    } finally {
      // what happened by the call is told before its answer
      await turn()
    }
  }

  async #openConsole([ref, device, flags]: unknown[]): Promise<string> {
    if (this.#consoles.size >= CONSOLES) throw fail('VIR_ERR_OPERATION_FAILED', 'too many consoles wait to be read')
    const domain = domainOf({ session: sessionOf(this.#connect) }, ref)
    const console = await domain.openConsole(device as string | undefined, flags as number)
    const id = randomUUID()
    const timer = setTimeout(() => this.takeConsole(id)?.destroy(), CONSOLE_PATIENCE)
    this.#consoles.set(id, { console, timer })
    console.once('close', () => this.takeConsole(id))
    // that it broke is seen by its 'close'
    console.on('error', () => undefined)
    return id
  }
}

/** Serves the tunnels of a daemon. */
export class Dispatch {
  readonly #shared: SharedDriver
  readonly #pki: string | undefined
  readonly #logger: Logger
  readonly #clients = new Set<Client>()

  /** `pki`: folder of the certificates by which this host is known to others; undefined: where libvirt keeps them */
  constructor(shared: SharedDriver, pki: string | undefined, logger: Logger) {
    this.#shared = shared
    this.#pki = pki
    this.#logger = logger
  }

  /** Clients are told that the connection is closed. */
  close(): void {
    for (const client of this.#clients) client.close()
  }

  /** Takes the channels that come on `tunnel`. */
  serve(tunnel: Tunnel): void {
    const clients = new Set<Client>()
    tunnel.onOpen = (request) => this.#open(request, tunnel, clients)
  }

  /** `clients`: those of the same tunnel. */
  async #open(request: ChannelRequest, tunnel: Tunnel, clients: Set<Client>): Promise<void> {
    const { service } = request
    if (service === CONTROL) await this.#control(request, clients)
    else if (service === CONSOLE) this.#console(request, clients)
    else if (service.startsWith(MIGRATION)) await this.#migration(request, tunnel)
    else throw fail('VIR_ERR_RPC', `there is no service '${service}' here`)
  }

  async #control(request: ChannelRequest, clients: Set<Client>): Promise<void> {
    const { version, readOnly } = request.params
    if (version !== PROTOCOL_VERSION)
      throw fail(
        'VIR_ERR_RPC',
        `version ${String(version)} of the protocol is not spoken here, only ${PROTOCOL_VERSION}`,
      )
    const { driver, uri } = this.#shared
    const connect = await Connect.open(uri.href, {
      drivers: [driver],
      readOnly: readOnly !== false,
      logger: this.#logger,
    })
    const session = sessionOf(connect)
    const operations = (Object.keys(calls) as PlainOperation[]).filter((name) => session.has(name))
    const opened: Opened = {
      version: PROTOCOL_VERSION,
      program: packageVersion,
      operations: [...operations, ...(session.has('domainOpenConsole') ? ['domainOpenConsole'] : [])],
    }
    const client = new Client(connect, this.#pki, this.#logger)
    clients.add(client)
    this.#clients.add(client)
    try {
      await client.serve(request.accept({ ...opened }))
    } finally {
      await connect.close()
      clients.delete(client)
      this.#clients.delete(client)
    }
  }

  #console(request: ChannelRequest, clients: ReadonlySet<Client>): void {
    const { id } = request.params
    for (const client of clients) {
      const console = typeof id === 'string' ? client.takeConsole(id) : undefined
      if (console === undefined) continue
      // whoever reads it hears of its end by that of the channel
      joinDuplex(request.accept(), console).catch((error: unknown) => {
        this.#logger.debug({ err: error }, `a console broke off: ${messageOf(error)}`)
      })
      return
    }
    throw fail('VIR_ERR_RPC', 'there is no such console')
  }

  async #migration(request: ChannelRequest, tunnel: Tunnel): Promise<void> {
    const take = this.#shared.operations.migrationChannel
    if (take === undefined) throw fail('VIR_ERR_NO_SUPPORT', 'domains cannot be migrated to this hypervisor')
    await take(request, tunnel)
  }
}
