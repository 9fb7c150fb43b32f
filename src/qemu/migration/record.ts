/** What a later process must know of a migration: one file for each, at either side, in `ROOT/run/migration/ID`. */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { MigrateParams } from '../../driver.js'
import type { DomainDef } from '../../conf/domain-def.js'
import { messageOf } from '../../error.js'
import type { LockCookie } from '../../locking/lock-driver.js'
import type { MigratedDisk } from '../../migration/cookie.js'
import type { FinalImage } from '../streams/final-image.js'
import { type Root, writeFileAtomically } from '../core/root.js'

/**
 * At the source: 'begun', 'memory' while it goes over, 'switched' once it has and neither guest runs, 'serving' while the
 * destination pulls the disks, 'released' when it has them all;
 * 'returning' while the guest comes back, 'returned' when it has; 'abandoning' while a lost destination is given up,
 * 'abandoned' until it has heard of that. At the destination: 'incoming' until all memory is there, 'loaded' until the guest may run,
 * 'streaming' while disks are pulled, 'abandoned' when the source has given it up.
 */
export type MigrationPhase =
  | 'begun'
  | 'memory'
  | 'switched'
  | 'serving'
  | 'returning'
  | 'returned'
  | 'released'
  | 'abandoning'
  | 'abandoned'
  | 'incoming'
  | 'loaded'
  | 'streaming'

export interface MigrationRecord {
  version: 1
  role: 'source' | 'destination'
  id: string
  key: string
  phase: MigrationPhase
  name: string
  uuid: string
  flags: number
  params: MigrateParams
  /** those that move, target devs and sizes */
  disks: MigratedDisk[]
  /** name of the other host; '' when not known yet */
  peer: string
  /** where the source finds the destination */
  uri?: string
  /** at the source, 'released': its QEMU has ended */
  ended?: boolean
  /** at the source, 'abandoning': the guest goes on here */
  goesOn?: boolean
  /** post-copy: the guest has moved, or is about to run there, and memory of it has still to go over */
  memoryFollows?: boolean
  /** at the destination: names the monitor that QEMU keeps for the case that the connection breaks */
  recovery?: number
  /** the guest ran when it began */
  running: boolean
  /** ms since 1970 */
  startedAt: number
  /** at the source: what the other side needs to have the locks of shared images */
  locks?: LockCookie
  /** at the destination: the domain was not defined there before */
  defined?: boolean
  /**
   * with the parameter of that name, since the switch. 'on': the images of the source have every write of the guest that it
   * has been told is done; 'over': not any more, the disks have moved, or one could not be written
   */
  writeBack?: 'on' | 'over'
  /** the live definition: at the source once the guest has gone, at the destination while disks are pulled */
  def?: DomainDef
  /** at the destination: the definition to keep there */
  persistentXml?: string
  /** disks that end as raw images */
  finals?: FinalImage[]
  /** images that were made for it at the destination */
  made?: string[]
}

export const migrationDir = (root: Root, id: string): string => join(root.migrationDir, id)
/** where the QEMU at the destination finds the disks of the source */
export const disksSocket = (root: Root, id: string): string => join(migrationDir(root, id), 'nbd.sock')

const file = (root: Root, id: string): string => join(migrationDir(root, id), 'record.json')

export function saveRecord(root: Root, record: MigrationRecord): void {
  mkdirSync(migrationDir(root, record.id), { recursive: true, mode: 0o700 })
  writeFileAtomically(file(root, record.id), JSON.stringify(record))
}

/** The record first: what is left when we are killed in the middle is a directory that means nothing. */
export function removeRecord(root: Root, id: string): void {
  rmSync(file(root, id), { force: true })
  rmSync(migrationDir(root, id), { recursive: true, force: true })
}

/** Every record of a root; what cannot be read is reported and left where it is. */
export function loadRecords(root: Root, warn: (text: string) => void): MigrationRecord[] {
  const found: MigrationRecord[] = []
  for (const id of readdirSync(root.migrationDir)) {
    const path = file(root, id)
    if (!existsSync(path)) {
      // what a killed process had not yet filled, or not yet removed
      if (/^[0-9a-f]{16}$/.test(id)) removeRecord(root, id)
      continue
    }
    try {
      const record = JSON.parse(readFileSync(path, 'utf8')) as Partial<MigrationRecord> | null
      if (record?.version !== 1 || record.id !== id || typeof record.uuid !== 'string' || !Array.isArray(record.disks))
        throw new Error('not a record of this version')
      found.push(record as MigrationRecord)
    } catch (error) {
      warn(`cannot read '${path}', the migration is left as it is: ${messageOf(error)}`)
    }
  }
  return found
}
