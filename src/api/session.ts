import type { Logger } from 'pino'
import type { HypervisorOps } from '../driver.js'
import { failFrom, messageOf, VirError } from '../error.js'
import { Arguments } from './arguments.js'
import type { EventHub } from './event-hub.js'

const failConnect = failFrom('VIR_FROM_NONE')
const failDomain = failFrom('VIR_FROM_DOM')

/** What a connection that was opened for reading may do. */
const readOperations: ReadonlySet<keyof HypervisorOps> = new Set<keyof HypervisorOps>([
  'connectGetType',
  'connectGetHostname',
  'connectGetVersion',
  'connectGetLibVersion',
  'connectGetCapabilities',
  'connectGetDomainCapabilities',
  'connectListAllDomains',
  'domainLookupByName',
  'domainLookupByUUID',
  'domainLookupByID',
  'domainHasManagedSaveImage',
  'domainGetAutostart',
  'domainGetXMLDesc',
  'domainGetState',
  'domainGetInfo',
  'domainIsActive',
  'domainIsPersistent',
  'domainGetBlockInfo',
  'domainBlockStats',
  'domainGetBlockJobInfo',
  'domainStreamDiskInfo',
  'domainGetJobStats',
  'domainMigrateGetMaxDowntime',
  'domainMigrateGetMaxSpeed',
  'domainMigrateGetCompressionCache',
])

/** libvirt functions whose name is not that of the operation with `vir` before it. */
const otherNames: Partial<Record<keyof HypervisorOps, string>> = {
  domainLookupByUUID: 'virDomainLookupByUUIDString',
  domainBlockStats: 'virDomainBlockStatsFlags',
  domainAttachDevice: 'virDomainAttachDeviceFlags',
  domainDetachDevice: 'virDomainDetachDeviceFlags',
  domainRestore: 'virDomainRestoreFlags',
  domainMigrateBegin: 'virDomainMigrate3',
  qemuMonitorCommand: 'virDomainQemuMonitorCommand',
}

/** `virDomainBlockPull` for 'domainBlockPull'. */
export function functionName(operation: keyof HypervisorOps): string {
  return otherNames[operation] ?? `vir${operation.charAt(0).toUpperCase()}${operation.slice(1)}`
}

const sessions = new WeakMap<object, Session>()

/** The session of a connection that was opened here. */
export function sessionOf(connect: object): Session {
  const session = sessions.get(connect)
  if (session === undefined) throw failConnect('VIR_ERR_INVALID_CONN', 'this is no connection that was opened here')
  return session
}
export function bindSession(connect: object, session: Session): void {
  sessions.set(connect, session)
}

/** What the handles of one open connection share: the driver's operations and the one way to call them. */
export class Session {
  readonly uri: string
  readonly readOnly: boolean
  readonly logger: Logger
  readonly events: EventHub
  readonly #operations: Partial<HypervisorOps>
  #closing: Promise<void> | undefined

  constructor(uri: string, readOnly: boolean, logger: Logger, events: EventHub, operations: Partial<HypervisorOps>) {
    this.uri = uri
    this.readOnly = readOnly
    this.logger = logger
    this.events = events
    this.#operations = operations
  }

  has(name: keyof HypervisorOps): boolean {
    return this.#operations[name] !== undefined
  }

  requireOpen(): void {
    if (this.#closing !== undefined) throw failConnect('VIR_ERR_INVALID_CONN', 'the connection is closed')
  }

  /**
   * The way of every call: is the connection open, may it do that, are the arguments legal (`prepare` throws when not),
   * has the driver the operation. Then the driver's operation, once.
   */
  async call<Name extends keyof HypervisorOps>(
    name: Name,
    prepare: (check: Arguments) => Parameters<HypervisorOps[Name]>,
  ): Promise<Awaited<ReturnType<HypervisorOps[Name]>>> {
    this.requireOpen()
    const fail = name.startsWith('connect') ? failConnect : failDomain
    const called = functionName(name)
    if (this.readOnly && !readOperations.has(name))
      throw fail('VIR_ERR_OPERATION_DENIED', `operation ${called} forbidden for read only access`)
    const args = prepare(new Arguments(called))
    const operation = this.#operations[name] as ((...args: unknown[]) => Promise<unknown>) | undefined
    if (operation === undefined)
      throw fail('VIR_ERR_NO_SUPPORT', `this function is not supported by the connection driver: ${called}`)
    try {
      return (await operation.apply(this.#operations, args)) as Awaited<ReturnType<HypervisorOps[Name]>>
    } catch (error) {
      if (error instanceof VirError) throw error
      throw fail('VIR_ERR_INTERNAL_ERROR', messageOf(error), error)
    }
  }

  /** Listeners are ended, and the driver gives back all that it holds. A second call answers with the first. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    try {
      await this.#operations.connectClose?.()
    } catch (error) {
      if (error instanceof VirError) throw error
      throw failConnect('VIR_ERR_INTERNAL_ERROR', messageOf(error), error)
    } finally {
      this.events.close()
    }
  }
}
