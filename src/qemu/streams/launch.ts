/** From a registered stream to one that moves, when its disk can be exported and the budget of the root has a slot for it. */
import { messageOf } from '../../error.js'
import { addGuard, removeGuard } from '../blocks/block-graph.js'
import type { BlockJob } from '../blocks/blockjob.js'
import { findDisk } from '../blocks/disk-names.js'
import { beginJob, beginPull } from './engines.js'
import { watchIdleness } from './idle.js'
import { NotInThread } from '../blocks/nbd-exports.js'
import type { Qemu } from '../core/qemu.js'
import { endPull } from './settle.js'
import { saveStatus } from '../core/status.js'
import { restAtFirst, tellSpeed } from './speed.js'
import { jobMembers } from './turn.js'
import type { StreamHost, Vm } from '../core/vm.js'

/** ms between two looks for a guest that uses its disk */
const LOOK_INTERVAL = 100

/** A stream that goes on elsewhere brings its slot with it. */
export function askForSlot(qemu: Qemu, job: BlockJob): boolean {
  job.allotment.slot = false
  qemu.budget.letGo(job.record.arrival ?? 0)
  qemu.budget.update()
  const may = hasSlot(job)
  if (!may) job.record.queued = true
  return may
}

const hasSlot = ({ allotment }: BlockJob): boolean => allotment.slot

/** Under the domain's job: a registered stream begins to move. */
export async function launch(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): Promise<void> {
  const { disk: target, baseIndex, engine } = job.record
  const disk = findDisk(host.def, target)
  if (baseIndex === undefined) await addGuard(host.monitor, host.guards, disk)
  else await removeGuard(host.monitor, host.guards, disk)
  const client = await host.exports.open(disk)
  vm.requireSame(host)
  delete job.record.queued
  saveStatus(vm, host)
  restAtFirst(host, job)
  if (engine === 'pull') beginPull(qemu, vm, host, job, client)
  else await beginJob(qemu, vm, host, job)
  watchIdleness(qemu, vm, host)
}

/** Has it still to begin? */
const waits = (qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): boolean =>
  qemu.budget.isOpen && vm.host === host && host.blockJobs.ofDisk(job.record.disk) === job && job.record.queued === true

/** Under the domain's job: what brings a stream that waits further; it fails with it. */
async function tryOn(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob, work: () => Promise<void>): Promise<void> {
  if (!waits(qemu, vm, host, job)) return
  try {
    await work()
  } catch (error) {
    if (vm.host === host) await endPull(qemu, vm, host, job, { status: 'failed', error: messageOf(error) })
  }
}

/** A stream that waited has got a slot. */
function launchLater(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): void {
  // it has no use for it yet
  if (job.waiting !== undefined) return
  const attempt = (): Promise<void> => tryOn(qemu, vm, host, job, () => launch(qemu, vm, host, job))
  qemu.inBackground(`the stream of '${job.record.disk}', whose turn it is`, () =>
    vm.jobs.run('stream', attempt, Infinity),
  )
}

/** Under the domain's job: a registered stream begins when the guest uses its disk; see `NotInThread`. */
export function launchInThread(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob, refusal: NotInThread): void {
  job.record.queued = true
  job.waiting = refusal.message
  qemu.budget.update()
  watchThread(qemu, vm, host, job)
}

function watchThread(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): void {
  const attempt = (): Promise<void> =>
    tryOn(qemu, vm, host, job, async () => {
      if (!(await isExported(host, job))) return
      job.waiting = undefined
      if (askForSlot(qemu, job)) await launch(qemu, vm, host, job)
    })
  const next = (): void => {
    const timer = setTimeout(() => {
      if (!waits(qemu, vm, host, job) || job.waiting === undefined) return
      qemu.inBackground(`the stream of '${job.record.disk}', which the guest does not use yet`, () =>
        vm.jobs.run('stream', attempt, Infinity).finally(next),
      )
    }, LOOK_INTERVAL)
    timer.unref()
  }
  next()
}

async function isExported(host: StreamHost, job: BlockJob): Promise<boolean> {
  try {
    job.size = (await host.exports.open(findDisk(host.def, job.record.disk))).size
    return true
  } catch (error) {
    if (error instanceof NotInThread) return false
    throw error
  }
}

/** All streams of the root are known: from now on they share what its settings let them have. */
export function openBudget(qemu: Qemu): void {
  qemu.budget.open(() => jobMembers(qemu, (vm, host, job) => launchLater(qemu, vm, host, job)))
  for (const vm of qemu.vms)
    for (const job of vm.host?.blockJobs.all ?? [])
      if (vm.host !== undefined && job.waiting !== undefined) watchThread(qemu, vm, vm.host, job)
}

/** Other streams may get another share by it, and it less than it asks for. */
export async function setBandwidth(qemu: Qemu, host: StreamHost, job: BlockJob, bandwidth: number): Promise<void> {
  const before = job.record.bandwidth
  job.record.bandwidth = bandwidth
  if (!job.budgeted) job.allotment.share = bandwidth
  qemu.budget.update()
  try {
    await tellSpeed(host, job)
  } catch (error) {
    job.record.bandwidth = before
    if (!job.budgeted) job.allotment.share = before
    qemu.budget.update()
    throw error
  }
}
