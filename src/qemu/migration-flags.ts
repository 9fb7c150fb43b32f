/** The flags and parameters of a migration: what is heeded, and what QEMU is told of them. */
import * as c from '../constants.gen.js'
import type { MigrateParams } from '../driver.js'
import { failFrom } from '../error.js'
import { VIR_MIGRATE_STREAM_DISKS } from '../stream-flags.js'

const fail = failFrom('VIR_FROM_QEMU')

/** How the disks of a domain get to the other host: streamed afterwards, mirrored before, or they are there already. */
export type StorageMode = 'stream' | 'mirror' | 'shared'

export function storageOf(flags: number): StorageMode {
  if ((flags & VIR_MIGRATE_STREAM_DISKS) !== 0) return 'stream'
  return (flags & (c.VIR_MIGRATE_NON_SHARED_DISK | c.VIR_MIGRATE_NON_SHARED_INC)) !== 0 ? 'mirror' : 'shared'
}

/** Flags that would be ignored, with what they are called. */
const UNSUPPORTED = {
  VIR_MIGRATE_OFFLINE: c.VIR_MIGRATE_OFFLINE,
  VIR_MIGRATE_POSTCOPY: c.VIR_MIGRATE_POSTCOPY,
  VIR_MIGRATE_ABORT_ON_ERROR: c.VIR_MIGRATE_ABORT_ON_ERROR,
  VIR_MIGRATE_RDMA_PIN_ALL: c.VIR_MIGRATE_RDMA_PIN_ALL,
  VIR_MIGRATE_PARALLEL: c.VIR_MIGRATE_PARALLEL,
  VIR_MIGRATE_ZEROCOPY: c.VIR_MIGRATE_ZEROCOPY,
  VIR_MIGRATE_POSTCOPY_RESUME: c.VIR_MIGRATE_POSTCOPY_RESUME,
} as const

/** VIR_ERR_ARGUMENT_UNSUPPORTED for what cannot be had, VIR_ERR_INVALID_ARG for parameters without their flag. */
export function checkMigrationFlags(params: MigrateParams, flags: number): void {
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
  if (params.compression !== undefined && params.compression !== 'xbzrle')
    throw fail('VIR_ERR_ARGUMENT_UNSUPPORTED', `compression is 'xbzrle', not '${params.compression}'`)
  if (params.releaseRam === true && (flags & c.VIR_MIGRATE_POSTCOPY) === 0)
    throw fail('VIR_ERR_INVALID_ARG', "parameter 'releaseRam' needs the flag VIR_MIGRATE_POSTCOPY")
}

/** QEMU's MigrationCapability, alike on both sides. */
export function capabilitiesFor(flags: number, params: MigrateParams): Record<string, boolean> {
  const xbzrle = params.compression === 'xbzrle' || (flags & c.VIR_MIGRATE_COMPRESSED) !== 0
  return {
    events: true,
    'return-path': true,
    xbzrle,
    'auto-converge': (flags & c.VIR_MIGRATE_AUTO_CONVERGE) !== 0,
  }
}

/** QEMU's MigrateSetParameters. */
export function parametersFor({
  bandwidth = 0,
  bandwidthPostcopy = 0,
  downtime,
}: MigrateParams): Record<string, number> {
  return {
    'max-bandwidth': bandwidth === 0 ? 2 ** 53 - 1 : bandwidth,
    'max-postcopy-bandwidth': bandwidthPostcopy,
    ...(downtime !== undefined && { 'downtime-limit': downtime }),
  }
}
