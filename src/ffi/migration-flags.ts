/** What a migration out of a libvirtd can heed. */
import * as c from '../constants.gen.js'
import type { MigrateParams } from '../driver.js'
import { failFrom } from '../error.js'
import { VIR_MIGRATE_STREAM_DISKS } from '../stream-flags.js'
import type { Connection } from './connection.js'

const fail = failFrom('VIR_FROM_QEMU')

/** flags that libvirtd is told of */
const TOLD = c.VIR_MIGRATE_LIVE | c.VIR_MIGRATE_UNDEFINE_SOURCE | c.VIR_MIGRATE_AUTO_CONVERGE | c.VIR_MIGRATE_COMPRESSED
/** flags that are the destination's affair, or mean nothing where one connection carries all */
const OTHERS =
  c.VIR_MIGRATE_PERSIST_DEST |
  c.VIR_MIGRATE_PAUSED |
  c.VIR_MIGRATE_UNSAFE |
  c.VIR_MIGRATE_CHANGE_PROTECTION |
  c.VIR_MIGRATE_PEER2PEER |
  c.VIR_MIGRATE_TUNNELLED

const DISKS = VIR_MIGRATE_STREAM_DISKS | c.VIR_MIGRATE_NON_SHARED_DISK | c.VIR_MIGRATE_NON_SHARED_INC

function namesOf(flags: number): string {
  const isMeant = ([name, value]: [string, number | string]): boolean =>
    name.startsWith('VIR_MIGRATE_') && typeof value === 'number' && (value & flags) !== 0
  const names = Object.entries<number | string>(c)
    .filter(isMeant)
    .map(([name]) => name)
  return names.length === 0 ? `the flags 0x${flags.toString(16)}` : names.join(' and ')
}

/** VIR_ERR_OPERATION_UNSUPPORTED and VIR_ERR_ARGUMENT_UNSUPPORTED for what cannot be had, with the reason. */
export function checkLeaving(conn: Connection, params: MigrateParams, flags: number): void {
  if (!conn.isOfThisHost)
    throw fail(
      'VIR_ERR_OPERATION_UNSUPPORTED',
      'a domain leaves a libvirtd by a process on its own host, which QEMU gives the memory to',
    )
  if ((flags & DISKS) !== 0)
    throw fail(
      'VIR_ERR_ARGUMENT_UNSUPPORTED',
      'libvirtd ends the QEMU that would serve the disks: migrate the domain to a root of its host first, without a flag for disks, and from there with it',
    )
  const unknown = flags & ~(TOLD | OTHERS)
  if (unknown !== 0)
    throw fail('VIR_ERR_ARGUMENT_UNSUPPORTED', `a domain of libvirt cannot be migrated with ${namesOf(unknown)}`)
  for (const key of ['downtime', 'bandwidthPostcopy', 'migrateDisks'] as const)
    if (params[key] !== undefined)
      throw fail('VIR_ERR_ARGUMENT_UNSUPPORTED', `a domain of libvirt cannot be migrated with the parameter '${key}'`)
}

/**
 * As libvirtd is to be told. It keeps others from changing the domain; whether both sides see the same images is looked at
 * by the destination, where libvirtd would ask for another libvirtd.
 */
export function libvirtFlags({ compression }: MigrateParams, flags: number): number {
  const compressed = compression === undefined ? 0 : c.VIR_MIGRATE_COMPRESSED
  return (flags & TOLD) | compressed | c.VIR_MIGRATE_CHANGE_PROTECTION | c.VIR_MIGRATE_UNSAFE
}
