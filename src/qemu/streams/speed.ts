/** How fast a stream may go: its share of the budget, nothing while it rests; and telling that to whoever moves the data. */
import { type BlockJob, isMoving } from '../blocks/blockjob.js'
import type { StreamHost } from '../core/vm.js'

/** bytes/s of a QEMU job that rests: it copies one chunk, then sleeps until it is told another speed */
const RESTING = 1
/** ms after which a stream that does not move leaves its bandwidth and its slot to others */
const STILL = 1_000

/** The guest has something to do, or others have all slots. */
export const rests = ({ resting, allotment }: BlockJob): boolean => resting || !allotment.slot

/** bytes/s, 0: no limit */
export const speedOf = (job: BlockJob): number => (rests(job) ? RESTING : job.allotment.share)

/** Does something else than the budget keep it from moving (its base, a full disk, the guest, a pause)? */
export function isStill(job: BlockJob): boolean {
  if (job.waiting !== undefined) return true
  if (job.record.queued === true) return false
  const now = performance.now()
  if (job.resting) return now - job.restingSince >= STILL
  return job.status === 'paused' && now - job.movedAt >= STILL
}

/** A stream that is to leave the guest alone rests until the guest has been seen to be quiet; without a guest it need not. */
export function restAtFirst(host: StreamHost, job: BlockJob): void {
  setResting(job, job.record.policy === 'idle' && host.mode === 'full')
}

/** Policy 'idle'. */
export function setResting(job: BlockJob, resting: boolean): void {
  if (resting && !job.resting) job.restingSince = performance.now()
  job.resting = resting
}

/** Hands on what has changed. Rejects with what QEMU says, unless the stream has ended meanwhile. */
export async function tellSpeed(host: StreamHost, job: BlockJob): Promise<void> {
  const speed = speedOf(job)
  const { told, puller } = job
  if (told === undefined || told === speed) return
  if (puller !== undefined) {
    job.told = speed
    if (!rests(job)) puller.setBandwidth(speed)
    puller.rest(rests(job))
    return
  }
  if (job.record.phase !== 'job' || !isMoving(job)) return
  job.told = speed
  try {
    await host.monitor.blockJobSetSpeed(job.record.id, speed)
  } catch (error) {
    if (!isMoving(job) || host.blockJobs.ofDisk(job.record.disk) !== job) return
    job.told = NaN
    throw error
  }
}
