/** A disk leaves a running guest: because somebody asked for that, or because the guest let go of it by itself. */
import type { DiskDef } from '../../conf/domain-def.js'
import { failFrom, messageOf } from '../../error.js'
import { chainOf, isDeviceOf } from '../blocks/block-graph.js'
import type { BlockJob } from '../blocks/blockjob.js'
import { deleteDiskNodes } from '../core/disk-nodes.js'
import { stopPull } from '../streams/engines.js'
import type { Qemu } from '../core/qemu.js'
import { endPull, settle } from '../streams/settle.js'
import { writeHeaders } from '../streams/stale-headers.js'
import { saveStatusOrSay } from '../core/status.js'
import type { Live, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms that a guest gets to let go of a device, as with libvirt; when it does so later, that is noticed as well */
const GUEST_TIMEOUT = 5_000
/** ms for the stream of a disk that is gone to end; requests to a base that does not answer hold it up */
const STREAM_TIMEOUT = 10_000
const RETRY = 5_000

/** Of buses that a device can be put on and taken from while the guest runs. */
export const isPluggable = ({ bus }: DiskDef): boolean => bus === 'virtio' || bus === 'scsi' || bus === 'usb'

type Outcome = 'deleted' | 'rejected' | 'late'
/** who waits for a device to go, by its alias */
const waiting = new WeakMap<Live, Map<string, (outcome: Outcome) => void>>()

/**
 * Under the domain's job: takes a disk away from the guest (qemuDomainDetachDeviceDiskLive). A guest that takes its time
 * is no failure: the disk is gone when `device-removed` says so.
 */
export async function unplug(qemu: Qemu, vm: Vm, live: Live, target: string): Promise<void> {
  const disk = live.def.disks.find((candidate) => candidate.target === target)
  if (disk?.alias === undefined) throw fail('VIR_ERR_DEVICE_MISSING', `disk '${target}' not found`)
  if (!isPluggable(disk)) throw fail('VIR_ERR_OPERATION_UNSUPPORTED', 'This type of disk cannot be hot unplugged')
  if (live.blockJobs.ofDisk(target) !== undefined)
    throw fail('VIR_ERR_OPERATION_UNSUPPORTED', `disk '${target}' already in active block job`)
  const { alias } = disk
  const outcome = outcomeOf(live, alias)
  try {
    await live.monitor.passThrough('device_del', { id: alias })
  } catch (error) {
    settleOutcome(live, alias, 'late')
    throw error
  }
  const how = await outcome
  vm.requireSame(live)
  if (how === 'deleted') await forget(qemu, vm, live, disk)
  if (how === 'rejected')
    throw fail('VIR_ERR_OPERATION_FAILED', `unplug of device '${alias}' was rejected by the guest`)
}

/** Listens before the command is sent: the event can come before its reply. */
function outcomeOf(live: Live, alias: string): Promise<Outcome> {
  const waiters = waiting.get(live) ?? new Map<string, (outcome: Outcome) => void>()
  waiting.set(live, waiters)
  return new Promise((resolve) => {
    const timer = setTimeout(() => settleOutcome(live, alias, 'late'), GUEST_TIMEOUT)
    waiters.set(alias, (outcome) => {
      clearTimeout(timer)
      resolve(outcome)
    })
  })
}

/** False when nobody waits. */
function settleOutcome(live: Live, alias: string, outcome: Outcome): boolean {
  const waiter = waiting.get(live)?.get(alias)
  waiting.get(live)?.delete(alias)
  waiter?.(outcome)
  return waiter !== undefined
}

/** DEVICE_DELETED: the device with this alias is gone. */
export function onDeviceDeleted(qemu: Qemu, vm: Vm, live: Live, alias: string): void {
  if (settleOutcome(live, alias, 'deleted')) return
  const disk = live.def.disks.find((candidate) => candidate.alias === alias)
  if (disk !== undefined) forgetLater(qemu, vm, live, disk)
}

/** DEVICE_UNPLUG_GUEST_ERROR: the guest keeps it. */
export function onUnplugRejected(qemu: Qemu, vm: Vm, live: Live, alias: string): void {
  settleOutcome(live, alias, 'rejected')
  qemu.host.emit({ kind: 'device-removal-failed', domain: vm.ref, alias })
}

/** A process that finds a running domain: disks that left it while nobody watched, or never came. */
export async function forgetUnplugged(qemu: Qemu, vm: Vm, live: Live): Promise<void> {
  const devices = await live.monitor.queryBlock()
  for (const disk of live.def.disks)
    if (isPluggable(disk) && !devices.some(({ qdev }) => isDeviceOf(disk, qdev))) forgetLater(qemu, vm, live, disk)
}

function forgetLater(qemu: Qemu, vm: Vm, live: Live, disk: DiskDef): void {
  const work = async (): Promise<void> => {
    if (vm.live === live && live.def.disks.includes(disk)) await forget(qemu, vm, live, disk)
  }
  qemu.inBackground(`removing disk '${disk.target}'`, () => vm.jobs.run('settle', work, Infinity))
}

/** Under the domain's job: the guest has no such disk any more. Its stream ends, and what QEMU had for it goes. */
async function forget(qemu: Qemu, vm: Vm, live: Live, disk: DiskDef): Promise<void> {
  const warn = (text: string): void => qemu.warn(`domain '${vm.name}': ${text}`)
  const job = live.blockJobs.ofDisk(disk.target)
  if (job !== undefined && !(await endStream(qemu, vm, live, job))) {
    setTimeout(() => forgetLater(qemu, vm, live, disk), RETRY).unref()
    return
  }
  await live.exports.remove(disk.target).catch((error: unknown) => warn(messageOf(error)))
  await deleteDiskNodes(qemu, live, disk, warn)
  await live.access.revokeImages(disk, chainOf(disk))
  if (live.staleHeaders.delete(disk.target)) await writeHeaders(qemu, live.def, [disk.target])
  live.def.disks.splice(live.def.disks.indexOf(disk), 1)
  if (vm.live === live) saveStatusOrSay(vm, live, warn)
  qemu.host.emit({ kind: 'device-removed', domain: vm.ref, alias: disk.alias ?? '' })
}

/** False when it is held up. What was copied stays. */
async function endStream(qemu: Qemu, vm: Vm, live: Live, job: BlockJob): Promise<boolean> {
  job.failure = `disk '${job.record.disk}' was unplugged`
  if (job.record.queued === true) {
    await endPull(qemu, vm, live, job, { status: 'failed', error: job.failure })
    return true
  }
  if (job.record.phase === 'pull') {
    await stopPull(qemu, vm, live, job, { status: 'failed', error: job.failure })
    return true
  }
  const ended = live.blockJobs.wait(job, STREAM_TIMEOUT)
  // one that has just ended takes no orders
  await live.monitor.jobCancel(job.record.id).catch(() => undefined)
  if (!(await ended)) return false
  await settle(qemu, vm, live, job)
  return true
}
