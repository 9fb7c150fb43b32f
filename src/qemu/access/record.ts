/** What a domain's QEMU was let have, as it is written down in the domain's status, and what of it is of no use any more. */
import type { DiskDef } from '../../conf/domain-def.js'
import type { LabelTarget } from '../../security/security-driver.js'
import type { LabelEntry } from '../../security/security-stack.js'
import type { LeaseEntry, LockRecord } from './locks.js'
import { imageTarget, lockResource } from './targets.js'
import { chainOf } from '../blocks/block-graph.js'

/** What is to be taken back when the domain ends; part of its status. */
export interface AccessRecord extends LockRecord {
  labels: LabelEntry[]
  /** sockets outside the run directory that we made */
  sockets: string[]
  /** targets of disks whose images another host uses by now */
  keptLabels?: string[]
}

/** The labels of one use by a domain, but for those in `others`: another disk may have the same image below it. */
export function labelsOf(
  { labels }: AccessRecord,
  { path, kind }: LabelTarget,
  others: readonly LabelEntry[] = [],
): LabelEntry[] {
  const free = labels.filter(
    (entry) => entry.target.path === path && entry.target.kind === kind && !others.includes(entry),
  )
  return [...new Set(free.map(({ driver }) => driver))].flatMap(
    (driver) => free.find((entry) => entry.driver === driver) ?? [],
  )
}

/** What was given for backing images that none of `disks` reads. */
export function unusedBacking(
  record: AccessRecord,
  disks: readonly DiskDef[],
): { labels: LabelEntry[]; leases: LeaseEntry[] } {
  const uses = disks.flatMap((disk) =>
    chainOf(disk)
      .slice(1)
      .flatMap((image) => imageTarget(disk, image) ?? []),
  )
  const backing = record.labels.filter(({ target }) => target.kind === 'backing')
  const labels = [...new Set(backing.map(({ driver }) => driver))].flatMap((driver) => {
    const own = backing.filter((entry) => entry.driver === driver)
    return surplus(
      own,
      uses.map(({ path }) => path),
      ({ target }) => target.path,
    )
  })
  const leases = surplus(
    record.leases.filter(({ resources: [one] }) => one?.mode === 'read-only'),
    uses.map((use) => lockResource(use).path),
    ({ resources: [one] }) => one?.path,
  )
  return { labels, leases }
}

/** What is left of `entries` when each of `uses` has taken one of its path. */
function surplus<T>(entries: readonly T[], uses: readonly string[], pathOf: (entry: T) => string | undefined): T[] {
  const left = [...entries]
  for (const path of uses) {
    const at = left.findIndex((entry) => pathOf(entry) === path)
    if (at >= 0) left.splice(at, 1)
  }
  return left
}
