/** How far a migration is, and how it went (virDomainGetJobStats). */
import * as c from '../../constants.gen.js'
import type { DomainJobStats } from '../../driver.js'
import { messageOf, VirError } from '../../error.js'
import type { MemoryWay } from '../../migration/memory-way.js'
import type { MigrationCommands, MigrationInfo } from '../monitor/migration-commands.js'
import type { MigrationRecord } from './record.js'

export class JobStats {
  readonly #operation: number
  readonly #record: MigrationRecord
  #commands: MigrationCommands | undefined
  /** the last one is in use */
  readonly #ways: MemoryWay[] = []
  #memory: MigrationInfo = {}
  #disks: DomainJobStats['disks']
  #type: number = c.VIR_DOMAIN_JOB_UNBOUNDED
  #endedAt: number | undefined
  #error: string | undefined

  constructor(operation: number, record: MigrationRecord) {
    this.#operation = operation
    this.#record = record
    this.#disks = record.disks.map(({ disk, size }) => ({ disk, offset: 0, size }))
  }

  follow(commands: MigrationCommands): void {
    this.#commands = commands
  }
  /** Memory goes this way from now on. */
  goBy(way: MemoryWay): void {
    this.#ways.push(way)
  }
  async memoryDone(commands: MigrationCommands): Promise<void> {
    this.#memory = await commands.query()
    this.#commands = undefined
  }
  /** What the other side tells of disks; what is no such thing is left out. */
  takeDisks(told: unknown): void {
    const list = (told as { disks?: unknown } | null)?.disks
    if (!Array.isArray(list)) return
    for (const each of list as Partial<DomainJobStats['disks'][number]>[]) {
      const known = this.#disks.find(({ disk }) => disk === each.disk)
      if (known !== undefined && Number.isSafeInteger(each.offset))
        known.offset = Math.min(known.size, Math.max(known.offset, each.offset ?? 0))
    }
  }
  fail(error: unknown): void {
    const aborted = error instanceof VirError && error.code === 'VIR_ERR_OPERATION_ABORTED'
    this.#end(aborted ? c.VIR_DOMAIN_JOB_CANCELLED : c.VIR_DOMAIN_JOB_FAILED)
    this.#error = messageOf(error)
  }
  complete(): void {
    for (const disk of this.#disks) disk.offset = disk.size
    this.#end(c.VIR_DOMAIN_JOB_COMPLETED)
  }
  #end(type: number): void {
    this.#type = type
    this.#endedAt = Date.now()
    this.#commands = undefined
  }

  #onLink(): Pick<DomainJobStats, 'transport' | 'transportBytes'> {
    const transport = this.#ways.at(-1)?.transport
    const transportBytes = this.#ways.reduce((sum, { channel }) => sum + channel.bytesWritten, 0)
    return transport === undefined ? {} : { transport, transportBytes }
  }

  #compressed(): Partial<DomainJobStats> {
    const cache = this.#memory['xbzrle-cache']
    return cache === undefined
      ? {}
      : {
          compressionCache: cache['cache-size'],
          compressionBytes: cache.bytes,
          compressionPages: cache.pages,
          compressionCacheMisses: cache['cache-miss'],
          compressionOverflow: cache.overflow,
        }
  }

  /** Asks QEMU, while memory goes over. */
  async look(): Promise<DomainJobStats> {
    if (this.#commands !== undefined) this.#memory = await this.#commands.query()
    return this.now
  }

  get now(): DomainJobStats {
    const { ram, downtime, 'expected-downtime': expected } = this.#memory
    const disks = this.#disks.map((each) => ({ ...each }))
    const sum = (pick: (disk: (typeof disks)[number]) => number): number =>
      disks.reduce((total, disk) => total + pick(disk), 0)
    const [diskTotal, diskProcessed] = [sum(({ size }) => size), sum(({ offset }) => offset)]
    const [memTotal, memProcessed, memRemaining] = [ram?.total ?? 0, ram?.transferred ?? 0, ram?.remaining ?? 0]
    const still = downtime ?? expected
    return {
      type: this.#type,
      operation: this.#operation,
      timeElapsed: (this.#endedAt ?? Date.now()) - this.#record.startedAt,
      ...(still !== undefined && { downtime: still }),
      ...{ dataTotal: memTotal + diskTotal, dataProcessed: memProcessed + diskProcessed },
      dataRemaining: memRemaining + diskTotal - diskProcessed,
      ...{ memTotal, memProcessed, memRemaining },
      ...(ram && { memBps: Math.round((ram.mbps * 1e6) / 8), memIteration: ram['dirty-sync-count'] }),
      ...(ram?.['postcopy-requests'] !== undefined && { memPostcopyRequests: ram['postcopy-requests'] }),
      ...this.#onLink(),
      ...this.#compressed(),
      ...{ diskTotal, diskProcessed, diskRemaining: diskTotal - diskProcessed, disks },
      ...(this.#error !== undefined && { error: this.#error }),
    }
  }
}
