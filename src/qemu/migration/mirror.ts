/** Disks that are copied before the guest goes: QEMU mirrors them to the waiting QEMU at the destination, until the switch. */
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { DiskDef } from '../../conf/domain-def.js'
import * as c from '../../constants.gen.js'
import { failFrom, messageOf } from '../../error.js'
import { UnixRelay } from '../../tunnel/relay.js'
import { formatNodeName } from '../../machine/blockdev.js'
import { FOREVER } from '../../machine/blockdev-storage.js'
import type { SourceStorage } from './disks.js'
import { SERVICE } from '../../migration/link.js'
import { letReach, listenerFor } from './reach.js'
import { migrationDir } from './record.js'
import type { Monitor } from '../monitor/monitor.js'
import type { JobInfo } from '../monitor/types.js'
import { exportName } from '../blocks/nbd-exports.js'
import type { Outgoing } from './outgoing.js'
import type { Qemu } from '../core/qemu.js'
import type { Live } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms between two looks at mirrors */
const POLL = 100

/** The job, and the node of its target. */
export const mirrorName = ({ target }: Pick<DiskDef, 'target'>): string => `mirror-${target}`

export interface MirrorOptions {
  /** unix socket where the target's export is */
  socket: string
  /** 'full': all of it; 'top': what the disk's own image holds; 'none': what the guest writes from now on */
  sync: 'full' | 'top' | 'none'
  /** every write of the guest waits for the target, so that the mirror cannot fall behind */
  synchronous?: boolean
  /** of the export; default: as the disk's own is called */
  name?: string
  /** while the export is away writes wait for it, instead of ending the mirror */
  lasting?: boolean
}

/** Begins to mirror a disk to the export of the same name. */
export async function beginMirror(monitor: Monitor, disk: DiskDef, options: MirrorOptions): Promise<void> {
  const { source, target } = disk
  if (source === undefined) throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' has no medium`)
  const name = mirrorName(disk)
  // of a mirror whose job took long to end
  if ((await monitor.queryNodeNames()).includes(name)) await monitor.blockdevDel(name)
  await monitor.blockdevAdd({
    ...{ driver: 'nbd', 'node-name': name, server: { type: 'unix', path: options.socket } },
    ...{ export: options.name ?? exportName(target), discard: 'unmap' },
    ...(options.lasting === true && { 'reconnect-delay': FOREVER }),
  })
  try {
    await monitor.run('blockdev-mirror', {
      ...{ 'job-id': name, device: formatNodeName(source), target: name, sync: options.sync },
      ...{ 'on-source-error': 'report', 'on-target-error': 'report', 'auto-dismiss': false },
      'filter-node-name': `${name}-filter`,
      'copy-mode': options.synchronous === true ? 'write-blocking' : 'background',
    })
  } catch (error) {
    await monitor.blockdevDel(name).catch(() => undefined)
    throw error
  }
}

export async function jobsOf(monitor: Monitor, disks: readonly DiskDef[]): Promise<Map<DiskDef, JobInfo | undefined>> {
  const all = await monitor.queryJobs()
  return new Map(disks.map((disk) => [disk, all.find(({ id }) => id === mirrorName(disk))]))
}

/** Until every mirror has copied all. VIR_ERR_OPERATION_FAILED when one fails, or as `check` throws. */
export async function mirrorsReady(
  monitor: Monitor,
  disks: readonly DiskDef[],
  check: (positions: { disk: string; offset: number }[]) => void,
): Promise<void> {
  for (;;) {
    const jobs = await jobsOf(monitor, disks)
    for (const [{ target }, job] of jobs)
      if (job === undefined || job.status === 'concluded' || job.error !== undefined)
        throw fail(
          'VIR_ERR_OPERATION_FAILED',
          `disk '${target}' could not be mirrored: ${job?.error ?? 'its job is gone'}`,
        )
    check([...jobs].map(([{ target }, job]) => ({ disk: target, offset: job?.['current-progress'] ?? 0 })))
    if ([...jobs.values()].every((job) => job?.status === 'ready')) return
    await delay(POLL)
  }
}

/** Ends mirrors: when they are ready the targets are what the disks are now; by `force`, at once. Nodes go too. */
export async function endMirrors(monitor: Monitor, disks: readonly DiskDef[], force: boolean): Promise<void> {
  for (const [disk, job] of await jobsOf(monitor, disks))
    if (job !== undefined && job.status !== 'concluded')
      await monitor.run('block-job-cancel', { device: mirrorName(disk), force })
  for (;;) {
    const jobs = [...(await jobsOf(monitor, disks))]
    if (jobs.every(([, job]) => job === undefined || job.status === 'concluded')) {
      for (const [disk, job] of jobs) await forgetMirror(monitor, disk, job, force)
      return
    }
    await delay(POLL / 10)
  }
}

async function forgetMirror(monitor: Monitor, disk: DiskDef, job: JobInfo | undefined, force: boolean): Promise<void> {
  if (job !== undefined) await monitor.jobDismiss(mirrorName(disk))
  await monitor.blockdevDel(mirrorName(disk)).catch((error: unknown) => {
    if (!force) throw error
  })
  if (job?.error !== undefined && !force)
    throw fail('VIR_ERR_OPERATION_FAILED', `disk '${disk.target}' could not be mirrored: ${job.error}`)
}

/** The source's side of VIR_MIGRATE_NON_SHARED_DISK and _INC. */
export function mirrored(qemu: Qemu, outgoing: Outgoing, live: Live | undefined): SourceStorage {
  const { record, migrated } = outgoing
  let relay: UnixRelay | undefined
  const closeRelay = async (): Promise<void> => {
    await relay?.close()
    relay = undefined
  }
  return {
    async before() {
      if (live === undefined || outgoing.link === undefined) return
      const socket = join(migrationDir(qemu.root, record.id), 'mirror.sock')
      const { id, key } = record
      const listen = listenerFor(qemu, live.def)
      relay = await UnixRelay.listen({ path: socket, service: SERVICE.disks, params: { id, key }, listen })
      await letReach(qemu, live.def, id, socket)
      relay.setTunnel(outgoing.link.tunnel)
      const sync = (record.flags & c.VIR_MIGRATE_NON_SHARED_INC) !== 0 ? 'top' : 'full'
      const synchronous = (record.flags & c.VIR_MIGRATE_NON_SHARED_SYNCHRONOUS_WRITES) !== 0
      for (const disk of migrated) await beginMirror(live.monitor, disk, { socket, sync, synchronous })
      await mirrorsReady(live.monitor, migrated, (disks) => {
        outgoing.stats.takeDisks({ disks })
        if (outgoing.aborted)
          throw fail('VIR_ERR_OPERATION_ABORTED', `migration of domain '${record.name}' was canceled`)
      })
    },
    async atSwitch() {
      if (live === undefined) return
      await endMirrors(live.monitor, migrated, false)
      await closeRelay()
      await live.access.setDiskLocks(migrated, 'released')
    },
    switched: () => Promise.resolve(),
    async undo() {
      if (live === undefined) return
      await endMirrors(live.monitor, migrated, true).catch((error: unknown) => qemu.warn(messageOf(error)))
      await closeRelay()
      await live.access.setDiskLocks(migrated, 'held')
    },
    serve(request) {
      request.refuse('nothing is served: the disks are mirrored')
      return Promise.resolve()
    },
  }
}
