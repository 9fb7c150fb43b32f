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
import { ioProblems, type JobInfo } from '../monitor/types.js'
import { exportName } from '../blocks/nbd-exports.js'
import type { Outgoing } from './outgoing.js'
import type { Qemu } from '../core/qemu.js'
import { whileHalted } from '../core/halt.js'
import type { Live, Vm } from '../core/vm.js'

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
      // an error halts it, and `jobsOf` tells of that: see halt.ts
      ...{ 'on-source-error': 'stop', 'on-target-error': 'stop', 'auto-dismiss': false },
      'filter-node-name': `${name}-filter`,
      'copy-mode': options.synchronous === true ? 'write-blocking' : 'background',
    })
  } catch (error) {
    await monitor.blockdevDel(name).catch(() => undefined)
    throw error
  }
}

/** The mirrors of disks. `error` also of one that an error has brought to a halt. */
export async function jobsOf(monitor: Monitor, disks: readonly DiskDef[]): Promise<Map<DiskDef, JobInfo | undefined>> {
  const [all, infos] = [await monitor.queryJobs(), await monitor.queryBlockJobs()]
  const found = new Map<DiskDef, JobInfo | undefined>()
  for (const disk of disks) {
    const name = mirrorName(disk)
    const job = all.find(({ id }) => id === name)
    const info = infos.find(({ device }) => device === name)
    // a guest that is resumed has QEMU forget the error, and the job stays where it is; one that is paused otherwise takes no orders
    if (info?.paused === true && info['io-status'] === 'ok') await monitor.blockJobResume(name).catch(() => undefined)
    const error = job?.error ?? ioProblems[info?.['io-status'] ?? 'ok']
    found.set(disk, job && { ...job, ...(error !== undefined && { error }) })
  }
  return found
}

/** Until every mirror has copied all. VIR_ERR_OPERATION_FAILED when one fails, or as `check` throws. */
export async function mirrorsReady(
  monitor: Monitor,
  disks: readonly DiskDef[],
  check: (positions: { disk: string; offset: number }[]) => void,
): Promise<void> {
  for (;;) {
    const jobs = await jobsOf(monitor, disks)
    for (const [disk, job] of jobs)
      requireWell(disk, job === undefined || job.status === 'concluded' ? (job?.error ?? 'its job is gone') : job.error)
    check([...jobs].map(([{ target }, job]) => ({ disk: target, offset: job?.['current-progress'] ?? 0 })))
    if ([...jobs.values()].every((job) => job?.status === 'ready')) return
    await delay(POLL)
  }
}

/** Ends mirrors that are ready, while the guest stands still: the targets are what the disks are now. Nodes go too. */
export async function endMirrors(monitor: Monitor, disks: readonly DiskDef[]): Promise<void> {
  await cancelJobs(monitor, disks, false)
  await forgetMirrors(monitor, disks, false)
}

/** Under the domain's job: ends mirrors at once, whatever they have copied. Nodes go too. */
export async function dropMirrors(vm: Vm, live: Live, disks: readonly DiskDef[]): Promise<void> {
  const jobs = [...(await jobsOf(live.monitor, disks)).values()]
  if (jobs.some((job) => job !== undefined && job.status !== 'concluded'))
    await whileHalted(vm, live, () => cancelJobs(live.monitor, disks, true))
  await forgetMirrors(live.monitor, disks, true)
}

async function cancelJobs(monitor: Monitor, disks: readonly DiskDef[], force: boolean): Promise<void> {
  for (const [disk, job] of await jobsOf(monitor, disks))
    if (job !== undefined && job.status !== 'concluded')
      await monitor.run('block-job-cancel', { device: mirrorName(disk), force })
}

async function forgetMirrors(monitor: Monitor, disks: readonly DiskDef[], force: boolean): Promise<void> {
  for (;;) {
    const jobs = [...(await jobsOf(monitor, disks))]
    if (jobs.every(([, job]) => job === undefined || job.status === 'concluded')) {
      for (const [disk, job] of jobs) await forgetMirror(monitor, disk, job, force)
      return
    }
    if (!force) for (const [disk, job] of jobs) requireWell(disk, job?.error)
    await delay(POLL / 10)
  }
}

function requireWell({ target }: DiskDef, error: string | undefined): void {
  if (error !== undefined) throw fail('VIR_ERR_OPERATION_FAILED', `disk '${target}' could not be mirrored: ${error}`)
}

async function forgetMirror(monitor: Monitor, disk: DiskDef, job: JobInfo | undefined, force: boolean): Promise<void> {
  if (job !== undefined) await monitor.jobDismiss(mirrorName(disk))
  await monitor.blockdevDel(mirrorName(disk)).catch((error: unknown) => {
    if (!force) throw error
  })
  if (!force) requireWell(disk, job?.error)
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
      await endMirrors(live.monitor, migrated)
      await closeRelay()
      await live.access.setDiskLocks(migrated, 'released')
    },
    switched: () => Promise.resolve(),
    async undo() {
      if (live === undefined) return
      // writes that wait for a destination that is away fail at once then
      await closeRelay()
      await dropMirrors(outgoing.vm, live, migrated).catch((error: unknown) => qemu.warn(messageOf(error)))
      await live.access.setDiskLocks(migrated, 'held')
    },
    serve(request) {
      request.refuse('nothing is served: the disks are mirrored')
      return Promise.resolve()
    },
  }
}
