/** What QEMU is told and asked about its migrations (QMP reference, "Migration"). */
import type { Monitor } from './monitor.js'

/** ms for commands that only look */
const QUERY = 10_000

/** query-migrate (MigrationInfo), what we read of it; bytes and milliseconds. */
export interface MigrationInfo {
  status?: MigrationStatus
  'error-desc'?: string
  'total-time'?: number
  downtime?: number
  'expected-downtime'?: number
  ram?: {
    transferred: number
    remaining: number
    total: number
    /** megabits per second */
    mbps: number
    'dirty-sync-count': number
    'postcopy-requests'?: number
  }
  /** while the capability 'xbzrle' is set */
  'xbzrle-cache'?: {
    'cache-size': number
    bytes: number
    pages: number
    'cache-miss': number
    overflow: number
  }
}
/** What of query-migrate-parameters can be set by itself: ms, bytes/s, bytes. */
export type MigrationLimits = Record<
  'downtime-limit' | 'max-bandwidth' | 'max-postcopy-bandwidth' | 'xbzrle-cache-size',
  number
>
export type MigrationStatus =
  | 'none'
  | 'setup'
  | 'active'
  | 'postcopy-active'
  | 'postcopy-paused'
  | 'postcopy-recover'
  | 'pre-switchover'
  | 'device'
  | 'wait-unplug'
  | 'cancelling'
  | 'cancelled'
  | 'failed'
  | 'completed'

export class MigrationCommands {
  readonly #monitor: Monitor

  constructor(monitor: Monitor) {
    this.#monitor = monitor
  }

  /** e.g. { 'return-path': true } */
  setCapabilities(capabilities: Readonly<Record<string, boolean>>): Promise<unknown> {
    const list = Object.entries(capabilities).map(([capability, state]) => ({ capability, state }))
    return this.#monitor.run('migrate-set-capabilities', { capabilities: list }, QUERY)
  }
  /** MigrateSetParameters: bandwidths in bytes/s, 'downtime-limit' in ms */
  setParameters(parameters: Readonly<Record<string, number | string | boolean>>): Promise<unknown> {
    return this.#monitor.run('migrate-set-parameters', parameters, QUERY)
  }
  queryParameters(): Promise<MigrationLimits> {
    return this.#monitor.run('query-migrate-parameters', undefined, QUERY) as Promise<MigrationLimits>
  }
  setUnlimited(): Promise<unknown> {
    return this.setParameters({ 'max-bandwidth': 2 ** 53 - 1 })
  }
  /** Begins to send the guest's state to the descriptor; QEMU gets a copy of it. */
  async send(fd: number): Promise<void> {
    await this.#monitor.getfd('vs-migrate', fd)
    await this.#monitor.run('migrate', { uri: 'fd:vs-migrate' })
  }
  /** Begins to read the guest's state from the descriptor; QEMU gets a copy of it. */
  async receive(fd: number): Promise<void> {
    await this.#monitor.getfd('vs-incoming', fd)
    await this.#monitor.run('migrate-incoming', { uri: 'fd:vs-incoming' })
  }
  /** Goes on sending over another descriptor what was cut off in the post-copy phase; QEMU gets a copy of it. */
  async resume(fd: number): Promise<void> {
    await this.#monitor.getfd('vs-migrate', fd)
    await this.#monitor.run('migrate', { uri: 'fd:vs-migrate', resume: true })
  }
  cancel(): Promise<unknown> {
    return this.#monitor.run('migrate_cancel', undefined)
  }
  /** From the pause before the switch on. */
  continueFrom(state: 'pre-switchover'): Promise<unknown> {
    return this.#monitor.run('migrate-continue', { state }, QUERY)
  }
  startPostcopy(): Promise<unknown> {
    return this.#monitor.run('migrate-start-postcopy', undefined, QUERY)
  }
  query(): Promise<MigrationInfo> {
    return this.#monitor.run('query-migrate', undefined, QUERY) as Promise<MigrationInfo>
  }
}
