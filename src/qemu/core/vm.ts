import type { DiskDef, DomainDef, StorageSource } from '../../conf/domain-def.js'
import { VIR_DOMAIN_SHUTOFF, VIR_DOMAIN_SHUTOFF_UNKNOWN } from '../../constants.gen.js'
import type { DomainRef, DomainState } from '../../driver.js'
import { failFrom } from '../../error.js'
import type { ProcessWatch } from '../../native.js'
import type { Access } from '../access/access.js'
import type { Guards } from '../blocks/block-graph.js'
import type { BlockJobs } from '../blocks/blockjob.js'
import { JobQueue } from './jobs.js'
import type { Monitor } from '../monitor/monitor.js'
import type { NbdExports } from '../blocks/nbd-exports.js'

const fail = failFrom('VIR_FROM_QEMU')

/** How a running domain came to its end: a VIR_DOMAIN_SHUTOFF_* reason and a VIR_DOMAIN_EVENT_STOPPED_* detail. */
export interface ExitCause {
  reason: number
  detail: number
}

/** A base whose place is being taken by another image, as long as QEMU may still read from it: how all was before. */
export interface Replacing {
  /** of the disk */
  target: string
  /** the disk's own image, with its chain */
  source: StorageSource
  /** see `DiskDef` */
  baseTimeout?: number
  /** see `staleHeaders` */
  stale: boolean
  /** what the persistent definition named below the same image; absent: it does not change */
  persistent?: Pick<StorageSource, 'backingStore'>
}

/** What streams need of a process that has images of a domain open. */
interface ImageHolder {
  readonly id: number
  /** aliases, indexes and whole chains filled in */
  readonly def: DomainDef
  readonly runDir: string
  readonly pid: number
  /** of /proc/PID/stat: with the pid it names the process for good */
  readonly startTime: string
  readonly process: ProcessWatch
  monitor: Monitor
  /** what it was let have */
  readonly access: Access
  readonly blockJobs: BlockJobs
  readonly exports: NbdExports
  guards: Guards
  /** targets of disks whose image's header does not name its base any more, which the definition does */
  readonly staleHeaders: Set<string>
  /** written down before QEMU hears of it */
  replacing?: Replacing
  /** path of a socket on which we answer in the place of a base that is away; who dies leaves it there */
  standIn?: string
  /** resolves when the process is gone and everything of it is undone */
  readonly ended: Promise<void>
  readonly markEnded: () => void
}

/** What exists only while a domain runs: its QEMU. `id` is the domain's. */
export interface Live extends ImageHolder {
  readonly mode: 'full'
  /** a reboot was asked for: when the guest has powered down it comes up again in the same QEMU */
  rebooting?: boolean
  /** streams that its definition asks for have still to be begun */
  booting?: boolean
  /** its state is being written to `path`; when that is not finished the file is worth nothing, and the guest may go on */
  saving?: { path: string; resume: boolean }
  /** the guest stands still for a moment, and is to run again whoever dies, see halt.ts */
  halted?: boolean
  /** who ends the domain says so here before the process is told to go */
  exitCause?: ExitCause
  /** the reason that the next STOP event gets, set by who causes it */
  pauseReason?: number
  /** it is looked after, so that the guest goes on when its base is back */
  awaitsBase?: boolean
  /** it did not answer when it was taken over: until what happened before is known */
  catchingUp?: Promise<void>
  /** the guest was paused by an I/O error */
  onIoPause?: () => void
  /** of QEMU's MIGRATION events */
  onMigration?: (status: string) => void
}

/** What exists only while disks of a domain that does not run are streamed: a qemu-storage-daemon. `id` is its number. */
export interface Daemon extends ImageHolder {
  readonly mode: 'offline'
  /** its streams are about to go on elsewhere: their end here is no end */
  moving?: boolean
  /** Under the domain's job: `disk` is not streamed any more. The last one ends the daemon. */
  readonly release: (disk: DiskDef) => Promise<void>
}

/** Where streams of a domain are: in its QEMU, or in a daemon while it does not run. */
export type StreamHost = Live | Daemon

/** One domain: its persistent definition, its running self, or both. */
export class Vm {
  readonly name: string
  readonly uuid: string
  /** the persistent definition, shown by dumpxml --inactive; absent: the domain is transient */
  config: DomainDef | undefined
  /** what came with a migration, as long as disks of it are on their way: until then the domain does not go */
  remains: DomainDef | undefined
  live: Live | undefined
  /** streams the disks of a domain that does not run; never there together with `live` */
  offline: Daemon | undefined
  autostart = false
  /** bytes/s that the memory of a migration may take which is not told itself; undefined: no limit */
  migrationSpeed: number | undefined
  state: DomainState = { state: VIR_DOMAIN_SHUTOFF, reason: VIR_DOMAIN_SHUTOFF_UNKNOWN }
  readonly jobs = new JobQueue()

  constructor(name: string, uuid: string) {
    this.name = name
    this.uuid = uuid
  }

  get ref(): DomainRef {
    return { name: this.name, uuid: this.uuid, id: this.live?.id ?? -1 }
  }

  /** The definition that calls on the domain are about: the live one while it runs. */
  get def(): DomainDef {
    const def = this.live?.def ?? this.config ?? this.remains
    if (def === undefined) throw fail('VIR_ERR_NO_DOMAIN', `no domain with matching uuid '${this.uuid}' (${this.name})`)
    return def
  }

  /** Who has the images of the domain's streams open. */
  get host(): StreamHost | undefined {
    return this.live ?? this.offline
  }

  requireLive(): Live {
    if (this.live === undefined) throw fail('VIR_ERR_OPERATION_INVALID', 'domain is not running')
    return this.live
  }

  /** After something was awaited: is it still the same run of the domain? */
  requireSame(host: StreamHost): void {
    if (this.host !== host) throw fail('VIR_ERR_OPERATION_FAILED', `domain '${this.name}' stopped meanwhile`)
  }

  requireConfig(): DomainDef {
    if (this.config === undefined) throw fail('VIR_ERR_OPERATION_INVALID', `domain '${this.name}' is transient`)
    return this.config
  }
}
