/** What is said about a migration, and what it says about itself. */
import type { Duplex } from 'node:stream'
import type { DomainRef, StreamEngine } from './driver.js'
import type { ChannelRequest } from './tunnel/requests.js'
import type { Tunnel } from './tunnel/tunnel.js'

/** A way to bring a guest's memory to another host: what `encode` does to the bytes at the source, `decode` undoes. */
export interface MigrationTransport {
  /** that `MigrateParams.transport` names it by: small letters, digits and '-' */
  readonly name: string
  /**
   * QEMU's bytes go in, what is to go over the link comes out: at once, without waiting for more, to the end after the last.
   * `link.speed`: bytes a second that the link takes of late, Infinity while that is not known.
   */
  encode(link: { readonly speed: number }): Duplex
  /** The way back. Has to break ('error') where the bytes are not what `encode` made: what it hands on becomes memory. */
  decode(): Duplex
}

/** How a domain is moved to another host: libvirt's typed parameters (VIR_MIGRATE_PARAM_*), and what we add to them. */
export interface MigrateParams {
  /** name at the destination; default: as here */
  destinationName?: string
  /** definition at the destination, as getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE) gave it, with other paths; same guest ABI */
  destinationXML?: string
  /** definition to keep there with VIR_MIGRATE_PERSIST_DEST; default: that of the source, with the disks where they have moved to */
  persistXML?: string
  /** where the destination is found, 'virstream+tls://host[:port]/' or 'virstream+unix:///path'; default: it says so itself */
  uri?: string
  /** MiB/s that the guest's memory may take; 0 or absent: no limit */
  bandwidth?: number
  /** MiB/s in the post-copy phase of memory; 0 or absent: no limit */
  bandwidthPostcopy?: number
  /** ms that the guest may stand still; default 300 */
  downtime?: number
  /** target devs of the disks to move; default: all that are neither read-only nor shared nor empty */
  migrateDisks?: string[]
  /** refused by the drivers of this library: a destination listens where its daemon does */
  listenAddress?: string
  /** 'xbzrle', with VIR_MIGRATE_COMPRESSED */
  compression?: string
  /** with 'xbzrle': bytes of pages that QEMU keeps to compare with, a power of two; default: as it was set, 64 MiB else */
  compressionXbzrleCache?: number
  /**
   * how memory goes over: 'plain' (the default), 'zstd' (compressed), 'auto' (compressed while the link is slower than that,
   * where both sides can), 'xbzrle' (as VIR_MIGRATE_COMPRESSED), or one of `OpenOptions.transports` that both sides have.
   * 'zstd+tls://host/' as `uri` says the same
   */
  transport?: string
  /** with VIR_MIGRATE_STREAM_DISKS: bytes/s for each disk; 0 or absent: no limit */
  diskStreamBandwidth?: number
  /** with VIR_MIGRATE_STREAM_DISKS: who moves the blocks; default 'auto' */
  diskStreamEngine?: StreamEngine | 'auto'
  /**
   * with VIR_MIGRATE_STREAM_DISKS: whatever the guest writes at the destination goes to the source's image as well, until
   * the disk has moved: it survives the loss of the destination
   */
  writeBack?: boolean
  /** with VIR_MIGRATE_STREAM_DISKS: 'external' serves by a program of its own, for a QEMU that cannot stay; default 'embedded' */
  serve?: 'embedded' | 'external'
  /** with VIR_MIGRATE_POSTCOPY: memory that has gone over is given back at once; a broken link can't be mended then */
  releaseRam?: boolean
}

/** virDomainGetJobStats: bytes, milliseconds; what is not known is absent. */
export interface DomainJobStats {
  /** VIR_DOMAIN_JOB_NONE, _BOUNDED, _UNBOUNDED, _COMPLETED, _FAILED, _CANCELLED */
  type: number
  /** VIR_DOMAIN_JOB_OPERATION_* */
  operation: number
  timeElapsed: number
  /** how long the guest stands (stood) still */
  downtime?: number
  dataTotal: number
  dataProcessed: number
  dataRemaining: number
  memTotal: number
  memProcessed: number
  memRemaining: number
  /** bytes/s */
  memBps?: number
  memIteration?: number
  memPostcopyRequests?: number
  /** the transport that memory goes by, if it does not go as it is */
  transport?: string
  /** bytes of memory on the link, as `transport` makes them */
  transportBytes?: number
  /** with VIR_MIGRATE_COMPRESSED ('xbzrle'): bytes of pages that are kept to compare with */
  compressionCache?: number
  /** bytes that went over for what had changed of such pages */
  compressionBytes?: number
  /** how many pages went over so */
  compressionPages?: number
  /** pages that went over whole, since they were not kept */
  compressionCacheMisses?: number
  /** pages that went over whole, since more of them had changed than is worth telling */
  compressionOverflow?: number
  diskTotal: number
  diskProcessed: number
  diskRemaining: number
  /** where each disk is that moves with the domain */
  disks: { disk: string; offset: number; size: number }[]
  error?: string
}

/** The operations of a driver that are about migration. */
export interface MigrationOps {
  /**
   * The five phases of a migration (libvirt's protocol version 3), each with a cookie of the other side: begin, perform and
   * confirm at the source, prepare and finish at the destination. Whoever calls them may be anywhere. Cookies are opaque
   * text of at most 256 KiB. `params.bandwidth` is in bytes/s here.
   */
  domainMigrateBegin(domain: DomainRef, params: MigrateParams, flags: number): Promise<{ xml: string; cookie: string }>
  /**
   * Refuses what cannot be run there, else waits for the guest. `uri`: where `domainMigratePerform` finds it; '' means
   * the way that the caller has come (a daemon listens on one port for everything).
   */
  domainMigratePrepare(
    params: MigrateParams,
    flags: number,
    cookie: string,
    xml: string,
  ): Promise<{ cookie: string; uri: string }>
  /**
   * Resolves when the destination has the guest; it stands still on both sides then. When it rejects it runs on here.
   */
  domainMigratePerform(
    domain: DomainRef,
    params: MigrateParams,
    flags: number,
    cookie: string,
    uri: string,
    tunnel?: Tunnel,
  ): Promise<{ cookie: string }>
  /** Lets the guest run at the destination; `cancelled`: ends what was prepared there, and answers undefined. */
  domainMigrateFinish(
    params: MigrateParams,
    flags: number,
    cookie: string,
    cancelled: boolean,
  ): Promise<DomainRef | undefined>
  /** The source lets go of the guest, or of all but its disks; `cancelled`: it runs on here. */
  domainMigrateConfirm(
    domain: DomainRef,
    params: MigrateParams,
    flags: number,
    cookie: string,
    cancelled: boolean,
  ): Promise<void>
  /** A channel that a migration's source has opened on a tunnel that is not the driver's own (`DriverHost.tunnels`). */
  migrationChannel(request: ChannelRequest, tunnel: Tunnel): Promise<void>
  /** The tunnel that the connection goes through; of drivers whose hypervisor is elsewhere. */
  connectTunnel(): Promise<Tunnel>
  /** Memory of a domain that is on its way follows it from now on (virDomainMigrateStartPostCopy); `flags`: 0. */
  domainMigrateStartPostCopy(domain: DomainRef, flags: number): Promise<void>
  /** ms that the guest of a migration may stand still; also while one is under way */
  domainMigrateSetMaxDowntime(domain: DomainRef, downtime: number, flags: number): Promise<void>
  domainMigrateGetMaxDowntime(domain: DomainRef, flags: number): Promise<number>
  /** MiB/s that its memory may take, in the post-copy phase by VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY; also while one is under way */
  domainMigrateSetMaxSpeed(domain: DomainRef, speed: number, flags: number): Promise<void>
  domainMigrateGetMaxSpeed(domain: DomainRef, flags: number): Promise<number>
  /** bytes of the pages that 'xbzrle' keeps */
  domainMigrateSetCompressionCache(domain: DomainRef, size: number, flags: number): Promise<void>
  domainMigrateGetCompressionCache(domain: DomainRef, flags: number): Promise<number>
  /** Ends a migration: before the guest has moved it stays, afterwards it comes back (`flags` VIR_DOMAIN_ABORT_JOB_*). */
  domainAbortJob(domain: DomainRef, flags: number): Promise<void>
  /** `flags` VIR_DOMAIN_JOB_STATS_* */
  domainGetJobStats(domain: DomainRef, flags: number): Promise<DomainJobStats>
}
