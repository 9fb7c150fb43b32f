/** What is said about a migration, and what it says about itself. */
import type { StreamEngine } from './driver.js'

/** How a domain is moved to another host: libvirt's typed parameters (VIR_MIGRATE_PARAM_*), and what we add to them. */
export interface MigrateParams {
  /** name at the destination; default: as here */
  destinationName?: string
  /** definition at the destination, as getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE) gave it, with other paths; same guest ABI */
  destinationXML?: string
  /** definition to keep there with VIR_MIGRATE_PERSIST_DEST; default: that of the source */
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
  /** address on which the destination listens; default: the one that it listens on anyway */
  listenAddress?: string
  /** 'xbzrle', with VIR_MIGRATE_COMPRESSED */
  compression?: string
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
  diskTotal: number
  diskProcessed: number
  diskRemaining: number
  /** where each disk is that moves with the domain */
  disks: { disk: string; offset: number; size: number }[]
  error?: string
}
