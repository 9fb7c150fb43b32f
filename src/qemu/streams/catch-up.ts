/** The streams of a process that is taken over: those that ended while nobody watched, and those that go on. */
import { messageOf } from '../../error.js'
import { chainOf, readGuards } from '../blocks/block-graph.js'
import type { BlockJob } from '../blocks/blockjob.js'
import { beginCommit, showMirror } from './commit.js'
import { commitReady, settleCommit } from './commit-settle.js'
import { hasLetGo } from './detached.js'
import { findDisk } from '../blocks/disk-names.js'
import { beginJob, beginPull } from './engines.js'
import { completeLater, finalizeLater } from './finalize.js'
import { settleReplacing } from './half-replaced.js'
import { watchIdleness } from './idle.js'
import { follow, look } from './progress.js'
import type { Qemu } from '../core/qemu.js'
import { endPull, settle } from './settle.js'
import type { JobInfo } from '../monitor/types.js'
import { NotInThread } from '../blocks/nbd-exports.js'
import { saveStatus } from '../core/status.js'
import { restAtFirst } from './speed.js'
import { dropStrangers } from './strangers.js'
import type { StreamHost, Vm } from '../core/vm.js'

/** Streams that ended or went on while nobody watched. Who wants something of the domain waits until that is known. */
export function catchUpWithJobs(qemu: Qemu, vm: Vm, host: StreamHost): Promise<void> {
  const work = async (): Promise<void> => {
    if (vm.host === host) await catchUp(qemu, vm, host)
  }
  return vm.jobs.run('settle', work, Infinity)
}

async function catchUp(qemu: Qemu, vm: Vm, host: StreamHost): Promise<void> {
  const infos = await host.blockJobs.hold(() => takeStock(qemu, vm, host))
  // the end of its last stream ended a daemon
  if (vm.host !== host) return
  for (const job of host.blockJobs.all) {
    const status = infos.find(({ id }) => id === job.record.id)?.status
    job.inherit()
    restAtFirst(host, job)
    if (job.record.queued === true) await goOnWaiting(qemu, host, job)
    else if (status === undefined) await beginAgain(qemu, vm, host, job)
    else await resumeFollowing(qemu, vm, host, job, status)
  }
  if (host.blockJobs.all.length > 0) follow(qemu, vm, host)
  watchIdleness(qemu, vm, host)
  // how far they are is written down with them
  await look(qemu, vm, host).catch((error: unknown) => qemu.warn(messageOf(error)))
  saveStatus(vm, host)
}

/** What QEMU says of its jobs; those that have ended are settled. Asks for all nodes, so no other may end meanwhile. */
async function takeStock(qemu: Qemu, vm: Vm, host: StreamHost): Promise<JobInfo[]> {
  const infos = await host.monitor.queryJobs()
  const records = host.blockJobs.records()
  for (const job of host.blockJobs.all) {
    if (job.record.queued === true) continue
    const status = infos.find(({ id }) => id === job.record.id)?.status
    if (status !== 'concluded' && (status !== undefined || job.record.phase === 'pull')) continue
    // what has not ended is begun again
    if (status === undefined && !(await resolveLost(host, job))) continue
    await settle(qemu, vm, host, job)
  }
  // what has failed meanwhile
  for (const job of host.blockJobs.all) if (job.status === 'concluded') await settle(qemu, vm, host, job)
  if (vm.host !== host) return infos
  for (const { id, status } of infos)
    if (status === 'concluded' && /^(stream|commit)-/.test(id) && !records.some((record) => record.id === id))
      await host.monitor.jobDismiss(id)
  host.guards = await readGuards(host.monitor, host.def, host.guards)
  await settleReplacing(qemu, vm, host)
  await dropStrangers(qemu, vm, host)
  return infos
}

async function resumeFollowing(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob, status: string): Promise<void> {
  const told = job.ready
  job.found(status)
  const disk = host.def.disks.find((candidate) => candidate.target === job.record.disk)
  if (disk === undefined || host.blockJobs.ofDisk(disk.target) !== job) return
  if (job.record.commit !== undefined) {
    const known = told || disk.mirror?.ready === true
    showMirror(vm, host, disk, job)
    if (job.ready && !known) commitReady(qemu, vm, host, job)
    if (job.status === 'pending') finalizeLater(qemu, vm, host, job)
    return
  }
  await host.exports
    .open(disk)
    .catch((error: unknown) => qemu.warn(`progress of '${disk.target}' is not flushed: ${messageOf(error)}`))
  if (job.status === 'pending') finalizeLater(qemu, vm, host, job)
  else if (job.ready && !told) completeLater(qemu, host, job)
}

/** It has not begun; its export says how large the disk is. */
async function goOnWaiting(qemu: Qemu, host: StreamHost, job: BlockJob): Promise<void> {
  try {
    job.size = (await host.exports.open(findDisk(host.def, job.record.disk))).size
  } catch (error) {
    // it is looked after when the budget of the root is open
    if (error instanceof NotInThread) job.waiting = error.message
    else qemu.warn(`the size of '${job.record.disk}', which waits to be streamed, is not known: ${messageOf(error)}`)
  }
}

/** The process that pulled is gone, or never came to tell QEMU of the job; what was copied is there. */
async function beginAgain(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): Promise<void> {
  const disk = host.def.disks.find((candidate) => candidate.target === job.record.disk)
  if (disk === undefined) return
  if (job.record.commit !== undefined && host.mode === 'full') {
    await beginCommit(vm, host, job).catch((error: unknown) =>
      settleCommit(qemu, vm, host, job, { status: 'failed', error: messageOf(error) }),
    )
    return
  }
  job.record.phase = job.record.engine
  try {
    const client = await host.exports.open(disk)
    if (job.record.engine === 'pull') beginPull(qemu, vm, host, job, client)
    else await beginJob(qemu, vm, host, job)
  } catch (error) {
    await endPull(qemu, vm, host, job, { status: 'failed', error: messageOf(error) })
  }
}

/** A job that QEMU does not know (any more): it was never begun, or was dismissed just before we died. Had it ended well? */
async function resolveLost(host: StreamHost, job: BlockJob): Promise<boolean> {
  const { commit } = job.record
  if (commit !== undefined) {
    job.completed = commit.dropped !== undefined
    return job.completed || commit.over === true
  }
  const disk = host.def.disks.find((candidate) => candidate.target === job.record.disk)
  const base = disk && chainOf(disk).find((image) => image.index === job.record.baseIndex)
  job.completed = disk !== undefined && (await hasLetGo(host, disk, base))
  return job.completed
}
