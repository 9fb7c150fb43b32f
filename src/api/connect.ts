import { hostname } from 'node:os'
import { pino } from 'pino'
import type { Logger } from 'pino'
import * as c from '../constants.gen.js'
import type {
  Credential,
  DriverHost,
  DomainRef,
  HypervisorDriver,
  HypervisorOps,
  LockDriver,
  MigrationTransport,
  SecurityDriver,
} from '../driver.js'
import { failFrom, messageOf, VirError } from '../error.js'
import { Domain, savedPaused, savedRunning, saveFlags, startFlags } from './domain.js'
import { EventHub } from './event-hub.js'
import type { DomainEvents, EventFilter, EventKind, EventOfKind } from './event-hub.js'
import { bindSession, Session } from './session.js'

const fail = failFrom('VIR_FROM_NONE')

export interface OpenOptions {
  /** only what changes nothing; anything else is VIR_ERR_OPERATION_DENIED */
  readOnly?: boolean
  /** name of the driver to use, whatever the URI's scheme says */
  driver?: string
  /** the drivers to choose from; default: all that come with virstream */
  drivers?: readonly HypervisorDriver[]
  /** default: silent */
  logger?: Logger
  /** set in this order, undone in reverse; handed to the driver */
  security?: readonly SecurityDriver[]
  /** handed to the driver */
  lockManager?: LockDriver
  /** ways for the memory of guests that move, besides those that are there; both hosts need the one that is used */
  transports?: readonly MigrationTransport[]
  /** virConnectAuthCallback: answers what a server wants to know (a name, a password), in order; undefined refuses */
  authenticate?: (asked: readonly Credential[]) => Promise<readonly (string | undefined)[]>
  /** for a daemon: it listens for tunnels itself and hands on what belongs to migrations */
  tunnels?: boolean
}

const listFlags = c.VIR_CONNECT_LIST_DOMAINS_NO_CHECKPOINT * 2 - 1

/** A connection to a hypervisor: libvirt's virConnectPtr. Methods are libvirt's functions without `virConnect` or `vir`. */
export class Connect implements AsyncDisposable {
  readonly #session: Session

  private constructor(session: Session) {
    this.#session = session
    bindSession(this, session)
  }

  /**
   * virConnectOpenAuth: finds the driver for a URI ('qemu:///embed?root=/abs/dir', 'test:///default') and opens it.
   * VIR_ERR_INVALID_ARG for what is no URI, VIR_ERR_NO_CONNECT when no driver takes it, or the driver's own error.
   */
  static async open(uri: string, options: OpenOptions = {}): Promise<Connect> {
    const url = parseUri(uri)
    const readOnly = options.readOnly ?? false
    const logger = options.logger ?? pino({ enabled: false })
    const events: EventHub = new EventHub(logger, (ref: DomainRef): Domain => new Domain(session, ref))
    const host: DriverHost = {
      logger,
      readOnly,
      emit: (event) => events.emit(event),
      ...(options.security && { security: options.security }),
      ...(options.lockManager && { lockManager: options.lockManager }),
      ...(options.transports && { transports: options.transports }),
      ...(options.authenticate && { authenticate: options.authenticate }),
      ...(options.tunnels && { tunnels: true }),
    }
    const operations = await openDriver(url, uri, host, options)
    const session = new Session(uri, readOnly, logger, events, operations)
    return new Connect(session)
  }

  /** virConnectOpenReadOnly */
  static async openReadOnly(uri: string, options: Omit<OpenOptions, 'readOnly'> = {}): Promise<Connect> {
    return Connect.open(uri, { ...options, readOnly: true })
  }

  /** virConnectGetURI */
  getURI(): Promise<string> {
    return this.#answer(this.#session.uri)
  }

  /** virConnectGetType: 'QEMU', 'TEST', … */
  async getType(): Promise<string> {
    return this.#session.call('connectGetType', () => [])
  }

  /** virConnectGetHostname */
  getHostname(): Promise<string> {
    return this.#session.has('connectGetHostname')
      ? this.#session.call('connectGetHostname', () => [])
      : this.#answer(hostname())
  }

  /** virConnectGetVersion of the hypervisor: 1000000 * major + 1000 * minor + release. */
  async getVersion(): Promise<number> {
    return this.#session.call('connectGetVersion', () => [])
  }

  /** virConnectGetLibVersion, of virstream where this process does the work; counted as getVersion() does. */
  async getLibVersion(): Promise<number> {
    return this.#session.call('connectGetLibVersion', () => [])
  }

  /** virConnectGetCapabilities: XML. */
  async getCapabilities(): Promise<string> {
    return this.#session.call('connectGetCapabilities', () => [])
  }

  /** virConnectGetDomainCapabilities: XML; what is absent is the driver's default. */
  async getDomainCapabilities(
    emulator?: string,
    arch?: string,
    machine?: string,
    virtType?: string,
    flags = 0,
  ): Promise<string> {
    return this.#session.call('connectGetDomainCapabilities', (check) => [
      check.optionalText('emulatorbin', emulator),
      check.optionalText('arch', arch),
      check.optionalText('machine', machine),
      check.optionalText('virttype', virtType),
      check.flags(flags),
    ])
  }

  /** virConnectListAllDomains: `flags` VIR_CONNECT_LIST_DOMAINS_*; 0: all. */
  async listAllDomains(flags = 0): Promise<Domain[]> {
    const refs = await this.#session.call('connectListAllDomains', (check) => [check.flags(flags, listFlags)])
    return refs.map((ref) => this.#domain(ref))
  }

  /** virDomainLookupByName: VIR_ERR_NO_DOMAIN when there is none. */
  async domainLookupByName(name: string): Promise<Domain> {
    return this.#domain(await this.#session.call('domainLookupByName', (check) => [check.text('name', name)]))
  }

  /** virDomainLookupByUUIDString: with or without dashes, in any case. */
  async domainLookupByUUIDString(uuid: string): Promise<Domain> {
    return this.#domain(
      await this.#session.call('domainLookupByUUID', (check) => {
        const hex = check.text('uuidstr', uuid).replaceAll('-', '').toLowerCase()
        const parts = /^([0-9a-f]{8})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{4})([0-9a-f]{12})$/.exec(hex)
        if (parts === null)
          throw fail(
            'VIR_ERR_INVALID_ARG',
            `uuidstr in virDomainLookupByUUIDString must be a valid UUID, not '${uuid}'`,
          )
        return [parts.slice(1).join('-')]
      }),
    )
  }

  /** virDomainLookupByID: of a domain that runs. */
  async domainLookupByID(id: number): Promise<Domain> {
    return this.#domain(await this.#session.call('domainLookupByID', (check) => [check.count('id', id)]))
  }

  /** virDomainDefineXMLFlags: defines a domain, or redefines one; `flags` VIR_DOMAIN_DEFINE_VALIDATE. */
  async domainDefineXML(xml: string, flags = 0): Promise<Domain> {
    return this.#domain(
      await this.#session.call('domainDefineXML', (check) => [
        check.text('xml', xml),
        check.flags(flags, c.VIR_DOMAIN_DEFINE_VALIDATE),
      ]),
    )
  }

  /** virDomainCreateXML: starts a domain that is gone when it stops, unless it is defined too; `flags` VIR_DOMAIN_START_*. */
  async domainCreateXML(xml: string, flags = 0): Promise<Domain> {
    return this.#domain(
      await this.#session.call('domainCreateXML', (check) => [
        check.text('xmlDesc', xml),
        check.flags(flags, startFlags),
      ]),
    )
  }

  /** virDomainRestoreFlags: goes on from a file of `Domain.save()`; `flags` VIR_DOMAIN_SAVE_*. */
  async domainRestore(from: string, xml?: string, flags = 0): Promise<Domain> {
    return this.#domain(
      await this.#session.call('domainRestore', (check) => {
        check.exclusive(check.flags(flags, saveFlags), savedRunning, savedPaused)
        return [check.text('from', from), check.optionalText('dxml', xml), flags]
      }),
    )
  }

  /**
   * What happens to the domains, as async iteration: `for await (const e of conn.domainEvents())`. It is live when this
   * returns, and waits for nobody: past `bound` (1000) unread events the listener gets an `overflow` event in place of
   * what was dropped: positions of streams go first, lifecycle and block job events last.
   */
  domainEvents<Kind extends EventKind = EventKind>(filter: EventFilter<Kind> = {}): DomainEvents<Kind> {
    this.#session.requireOpen()
    return this.#session.events.listen(filter)
  }

  /**
   * Calls `listener` with every event of one kind, one at a time: a promise that it answers is awaited before the next.
   * It has a queue of its own as in domainEvents(); what was dropped is told to the listeners of 'overflow'. What it
   * throws is logged.
   */
  on<Kind extends EventKind>(kind: Kind, listener: (event: EventOfKind<Kind>) => unknown): this {
    this.#session.requireOpen()
    this.#session.events.on(kind, listener)
    return this
  }

  off<Kind extends EventKind>(kind: Kind, listener: (event: EventOfKind<Kind>) => unknown): this {
    this.#session.events.off(kind, listener)
    return this
  }

  /** virConnectClose: ends listeners and gives everything back; running domains go on. May be called more than once. */
  async close(): Promise<void> {
    await this.#session.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #domain(ref: DomainRef): Domain {
    return new Domain(this.#session, ref)
  }

  async #answer<T>(value: T): Promise<T> {
    await Promise.resolve()
    this.#session.requireOpen()
    return value
  }
}

function parseUri(uri: unknown): URL {
  if (typeof uri !== 'string' || !URL.canParse(uri))
    throw fail('VIR_ERR_INVALID_ARG', `'${String(uri)}' is not a connection URI`)
  return new URL(uri)
}

async function openDriver(
  url: URL,
  uri: string,
  host: DriverHost,
  options: OpenOptions,
): Promise<Partial<HypervisorOps>> {
  const drivers = options.drivers ?? (await import('../drivers.js')).drivers
  const scheme = url.protocol.slice(0, -1)
  const forced = options.driver
  const candidates = drivers.filter((driver) =>
    forced === undefined
      ? driver.uriSchemes.includes(scheme) || driver.uriSchemes.includes('*')
      : driver.name === forced,
  )
  if (forced !== undefined && candidates.length === 0)
    throw fail('VIR_ERR_INVALID_ARG', `there is no driver '${forced}', only ${quoted(drivers.map(({ name }) => name))}`)
  for (const driver of candidates) {
    try {
      const operations = await driver.open(url, host)
      if (operations !== undefined) return operations
    } catch (error) {
      if (error instanceof VirError) throw error
      throw fail('VIR_ERR_INTERNAL_ERROR', messageOf(error), error)
    }
  }
  throw fail('VIR_ERR_NO_CONNECT', `no connection driver available for '${uri}'`)
}

function quoted(names: readonly string[]): string {
  return names.map((name) => `'${name}'`).join(', ')
}
