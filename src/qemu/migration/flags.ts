/** The flags and parameters of a migration: what is heeded, and what QEMU is told of them. */
import * as c from '../../constants.gen.js'
import type { MigrateParams } from '../../driver.js'
import { failFrom } from '../../error.js'
import { VIR_MIGRATE_STREAM_DISKS } from '../../stream-flags.js'
import { parseTunnelUri } from '../../tunnel/address.js'

const fail = failFrom('VIR_FROM_QEMU')

/** bytes of a page */
const LEAST_CACHE = 4096

/** How the disks of a domain get to the other host: streamed afterwards, mirrored before, or they are there already. */
export type StorageMode = 'stream' | 'mirror' | 'shared'

export function storageOf(flags: number): StorageMode {
  if ((flags & VIR_MIGRATE_STREAM_DISKS) !== 0) return 'stream'
  return (flags & (c.VIR_MIGRATE_NON_SHARED_DISK | c.VIR_MIGRATE_NON_SHARED_INC)) !== 0 ? 'mirror' : 'shared'
}

export const isOffline = (flags: number): boolean => (flags & c.VIR_MIGRATE_OFFLINE) !== 0

/** Flags that would be ignored, with what they are called. */
const UNSUPPORTED = {
  VIR_MIGRATE_RDMA_PIN_ALL: c.VIR_MIGRATE_RDMA_PIN_ALL,
  VIR_MIGRATE_PARALLEL: c.VIR_MIGRATE_PARALLEL,
  VIR_MIGRATE_ZEROCOPY: c.VIR_MIGRATE_ZEROCOPY,
} as const

const compresses = ({ compression }: MigrateParams, flags: number): boolean =>
  compression === 'xbzrle' || (flags & c.VIR_MIGRATE_COMPRESSED) !== 0

/** Bytes that can be kept; VIR_ERR_INVALID_ARG for what QEMU would not take. */
export function checkCompressionCache(size: number): number {
  if (size < LEAST_CACHE || !Number.isInteger(Math.log2(size)))
    throw fail(
      'VIR_ERR_INVALID_ARG',
      `compression cache must be a power of two of at least ${LEAST_CACHE}, not '${size}'`,
    )
  return size
}

/** VIR_ERR_ARGUMENT_UNSUPPORTED for what cannot be had, VIR_ERR_INVALID_ARG for parameters without their flag. */
export function checkMigrationFlags(params: MigrateParams, flags: number): void {
  if (isOffline(flags)) checkOfflineFlags(flags)
  for (const [name, flag] of Object.entries(UNSUPPORTED))
    if ((flags & flag) !== 0) throw fail('VIR_ERR_ARGUMENT_UNSUPPORTED', `this driver does not offer ${name}`)
  const streams = (flags & VIR_MIGRATE_STREAM_DISKS) !== 0
  for (const key of ['diskStreamBandwidth', 'diskStreamEngine', 'writeBack', 'serve'] as const)
    if (params[key] !== undefined && !streams)
      throw fail('VIR_ERR_INVALID_ARG', `parameter '${key}' needs the flag VIR_MIGRATE_STREAM_DISKS`)
  if (params.writeBack === true && params.diskStreamEngine === 'job')
    throw fail(
      'VIR_ERR_INVALID_ARG',
      "parameter 'writeBack' needs diskStreamEngine 'pull': QEMU has no two jobs on a disk",
    )
  const postcopy = (flags & c.VIR_MIGRATE_POSTCOPY) !== 0
  if (postcopy && params.writeBack === true)
    throw fail('VIR_ERR_ARGUMENT_UNSUPPORTED', "'writeBack' does not go with VIR_MIGRATE_POSTCOPY")
  if (params.listenAddress !== undefined)
    throw fail(
      'VIR_ERR_ARGUMENT_UNSUPPORTED',
      "this driver does not offer the parameter 'listenAddress': a destination listens where its daemon does",
    )
  if (params.compression !== undefined && params.compression !== 'xbzrle')
    throw fail('VIR_ERR_ARGUMENT_UNSUPPORTED', `compression is 'xbzrle', not '${params.compression}'`)
  if (params.compressionXbzrleCache !== undefined) {
    if (!compresses(params, flags))
      throw fail('VIR_ERR_INVALID_ARG', "parameter 'compressionXbzrleCache' needs the flag VIR_MIGRATE_COMPRESSED")
    checkCompressionCache(params.compressionXbzrleCache)
  }
  for (const key of ['releaseRam', 'bandwidthPostcopy'] as const)
    if (params[key] !== undefined && !postcopy)
      throw fail('VIR_ERR_INVALID_ARG', `parameter '${key}' needs the flag VIR_MIGRATE_POSTCOPY`)
}

/** What makes no sense with a definition that moves alone; in libvirt's words where it has some. */
function checkOfflineFlags(flags: number): void {
  if (storageOf(flags) === 'stream')
    throw fail('VIR_ERR_OPERATION_INVALID', 'offline migration cannot handle VIR_MIGRATE_STREAM_DISKS')
  if (storageOf(flags) === 'mirror')
    throw fail('VIR_ERR_OPERATION_INVALID', 'offline migration cannot handle non-shared storage')
  if ((flags & c.VIR_MIGRATE_PERSIST_DEST) === 0)
    throw fail('VIR_ERR_OPERATION_INVALID', 'offline migration must be specified with the persistent flag set')
  if ((flags & c.VIR_MIGRATE_TUNNELLED) !== 0)
    throw fail('VIR_ERR_OPERATION_INVALID', 'tunnelled offline migration does not make sense')
}

/** VIR_ERR_OPERATION_UNSUPPORTED: with VIR_MIGRATE_TLS nothing goes over a connection that is not encrypted. */
export function requireEncrypted(uri: string, flags: number): void {
  if ((flags & c.VIR_MIGRATE_TLS) === 0 || parseTunnelUri(uri).kind === 'tls') return
  throw fail(
    'VIR_ERR_OPERATION_UNSUPPORTED',
    `the connection to '${uri}' is not encrypted, as VIR_MIGRATE_TLS wants it`,
  )
}

/** QEMU's MigrationCapability, alike on both sides. */
export function capabilitiesFor(flags: number, params: MigrateParams): Record<string, boolean> {
  return {
    events: true,
    'return-path': true,
    xbzrle: compresses(params, flags),
    'auto-converge': (flags & c.VIR_MIGRATE_AUTO_CONVERGE) !== 0,
    'postcopy-ram': (flags & c.VIR_MIGRATE_POSTCOPY) !== 0,
    'release-ram': params.releaseRam === true,
  }
}

/** Of a guest that comes back: whatever it went by, all of its memory comes before it does. */
export const RETURN_CAPABILITIES = {
  events: true,
  'return-path': true,
  'postcopy-ram': false,
  'release-ram': false,
} as const

/** QEMU's MigrateSetParameters; `usual`: bytes/s where the migration says nothing of it. */
export function parametersFor(
  { bandwidth = 0, bandwidthPostcopy, downtime, compressionXbzrleCache }: MigrateParams,
  usual = 2 ** 53 - 1,
): Record<string, number> {
  return {
    'max-bandwidth': bandwidth === 0 ? usual : bandwidth,
    ...(bandwidthPostcopy !== undefined && { 'max-postcopy-bandwidth': bandwidthPostcopy }),
    ...(downtime !== undefined && { 'downtime-limit': downtime }),
    ...(compressionXbzrleCache !== undefined && { 'xbzrle-cache-size': compressionXbzrleCache }),
  }
}
