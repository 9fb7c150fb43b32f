/** Follows the streams of a running domain: where they are, what they wait for, what is safe on disk. */
import type { DiskDef } from '../../conf/domain-def.js'
import { type BlockJob, isMoving } from '../blocks/blockjob.js'
import { becomesRaw, cancelStream } from './final-image.js'
import { completeLater, finalizeLater } from './finalize.js'
import { BASE_LEAVES, isBaseLeaving } from './leaving-base.js'
import { baseProblem, isFromMigration, isOutage } from '../blocks/link-watch.js'
import { type BlockJobInfo, ioProblems } from '../monitor/types.js'
import type { Qemu } from '../core/qemu.js'
import type { StreamHost, Vm } from '../core/vm.js'

/** ms between two looks */
const INTERVAL = 1_000
/** ms between two flushes of a stream that moves: what a killed QEMU loses at most */
const FLUSH_INTERVAL = 3_000
/** ms without progress until the links are looked at */
const STALL = 1_000

const following = new WeakSet<StreamHost>()

/** Keeps looking, once a second, until the domain has no streams any more or has stopped. */
export function follow(qemu: Qemu, vm: Vm, host: StreamHost): void {
  if (following.has(host)) return
  following.add(host)
  const flushedAt = new Map<BlockJob, number>()
  const tick = async (): Promise<void> => {
    await look(qemu, vm, host)
    for (const job of host.blockJobs.all) await flushWhenDue(qemu, host, job, flushedAt)
  }
  const next = (): void => {
    const timer = setTimeout(() => {
      if (vm.host !== host || host.monitor.isClosed || host.blockJobs.all.length === 0) {
        following.delete(host)
        return
      }
      tick()
        .catch((error: unknown) => qemu.host.logger.debug({ err: error }, 'a look at the streams failed'))
        .finally(next)
    }, INTERVAL)
    timer.unref()
  }
  next()
}

/** Brings what we know of the domain's streams up to date, and tells listeners of those that moved. */
export async function look(qemu: Qemu, vm: Vm, host: StreamHost): Promise<void> {
  if (host.blockJobs.all.length === 0) return
  const infos = await host.monitor.queryBlockJobs()
  for (const job of host.blockJobs.all) {
    const place = placeOf(job, infos)
    if (place === undefined || job.status === 'concluded') continue
    if (job.advance(place.offset, place.size) && job.record.commit === undefined) {
      const { offset, size, record } = job
      qemu.host.emit({ kind: 'stream-progress', domain: vm.ref, disk: record.disk, offset, size })
    }
    if (job.status === 'pending') {
      finalizeLater(qemu, vm, host, job)
      continue
    }
    // an error ends a commit, and it reads what is on this host
    if (job.record.commit !== undefined) continue
    if (job.status === 'ready') {
      completeLater(qemu, host, job)
      continue
    }
    const reached = job.offset
    // it may have ended, and another one begun, or have gone on by itself, while its base was asked
    const isSame = (): boolean =>
      host.blockJobs.ofDisk(job.record.disk) === job && isMoving(job) && job.offset === reached
    const waiting = (await obstacle(host, job, place)) ?? sourceProblem(qemu, vm, host, job)
    if (!isSame()) continue
    job.waiting = waiting
    if (job.puller === undefined)
      await handleError(host, job, place, { isSame, cancel: () => cancel(qemu, vm, host, job) })
  }
  qemu.budget.update()
}

interface Place {
  offset: number
  size: number
  trouble: BlockJobInfo['io-status']
  /** QEMU's job stands still, also when a guest that was resumed has made QEMU forget why */
  halted?: boolean
}

/** Where a stream is, told by whoever moves its data now. */
function placeOf(job: BlockJob, infos: BlockJobInfo[]): Place | undefined {
  const { puller } = job
  if (puller !== undefined) {
    // the backing link is still there when all is pulled, so the stream is not complete yet
    const offset = Math.min(puller.position, puller.size - 1)
    return { offset, size: puller.size, trouble: puller.full ? 'nospace' : puller.stuck ? 'failed' : 'ok' }
  }
  const info = infos.find((candidate) => candidate.device === job.record.id)
  if (info === undefined) return undefined
  const halted = job.stuck && info.status === 'paused'
  return { offset: info.offset, size: info.len, trouble: info['io-status'], halted }
}

/** Why a stream does not move, if something outside holds it up. */
async function obstacle(host: StreamHost, job: BlockJob, { trouble, offset }: Place): Promise<string | undefined> {
  if (trouble === 'nospace') return ioProblems.nospace
  if (trouble === 'failed') job.stuck = true
  if (trouble === 'ok' && performance.now() - job.movedAt < STALL) return undefined
  const disk = diskOf(host, job)
  let problem = await baseProblem(disk)
  if (problem !== undefined) job.puller?.noticeOutage()
  else if (trouble === 'failed' && (job.puller?.leaving ?? (await isBaseLeaving(host, disk, offset))))
    problem = BASE_LEAVES
  if (problem !== undefined) job.goneAt = performance.now()
  return problem ?? ioProblems[trouble]
}

/** The socket that a migrated disk is read from is one of ours, and takes connections also while its source is away. */
function sourceProblem(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): string | undefined {
  const disk = diskOf(host, job)
  if (disk === undefined || !isFromMigration(disk) || performance.now() - job.movedAt < STALL) return undefined
  const source = qemu.incomingsOf(vm).find(({ relay }) => relay?.tunnel === undefined)
  if (source === undefined) return undefined
  return `the base does not answer: '${source.record.peer}', which has the disk, is not connected`
}

const diskOf = (host: StreamHost, { record }: BlockJob): DiskDef | undefined =>
  host.def.disks.find((candidate) => candidate.target === record.disk)

/** QEMU's job stands still after an error: it goes on where that can help, and fails where it cannot. */
async function handleError(
  host: StreamHost,
  job: BlockJob,
  { trouble, halted }: Place,
  { isSame, cancel }: { isSame: () => boolean; cancel: () => Promise<void> },
): Promise<void> {
  if (trouble === 'failed' && !(await isOutage(diskOf(host, job), job))) {
    if (job.failure !== undefined || !isSame()) return
    job.failure = ioProblems.failed
    await cancel()
  } else if (trouble !== 'ok' || halted) {
    // in vain, as long as there is no room or no base
    await host.monitor.blockJobResume(job.record.id).catch(() => undefined)
  }
}

/** Who looks may hold the domain's job, or not; a guest is only halted under it. */
async function cancel(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): Promise<void> {
  if (!becomesRaw(qemu, vm, job.record.disk)) {
    await host.monitor.jobCancel(job.record.id)
    return
  }
  const isStill = (): boolean => vm.host === host && host.blockJobs.ofDisk(job.record.disk) === job
  qemu.inBackground(`the end of the stream of '${job.record.disk}'`, () =>
    vm.jobs
      .run(
        'settle',
        async () => {
          if (isStill()) await cancelStream(qemu, vm, host, job)
        },
        Infinity,
      )
      .catch((error: unknown) => {
        // the next look tries again
        job.failure = undefined
        throw error
      }),
  )
}

async function flushWhenDue(
  qemu: Qemu,
  host: StreamHost,
  job: BlockJob,
  flushedAt: Map<BlockJob, number>,
): Promise<void> {
  const now = performance.now()
  // at the first look a stream has just begun, unless it was taken over; a short one is over before a flush is due
  const last = flushedAt.get(job) ?? (job.inherited ? -Infinity : now - INTERVAL)
  flushedAt.set(job, last)
  const hasNews = last === -Infinity || job.movedAt > last
  if (!hasNews || now - last < FLUSH_INTERVAL) return
  flushedAt.set(job, now)
  await host.exports
    .flush(job.record.disk)
    .catch((error: unknown) => qemu.host.logger.warn({ err: error }, `flush of '${job.record.disk}' failed`))
}
