import { setTimeout as delay } from 'node:timers/promises'
import type { StorageSource } from '../../conf/domain-def.js'
import type { StreamEngine } from '../../driver.js'
import { failFrom } from '../../error.js'
import type { QmpEvent } from '../../qmp/framing.js'
import type { Allotment } from './budget.js'
import type { Waker } from './lost-requests.js'
import type { Puller } from './puller.js'

const fail = failFrom('VIR_FROM_QEMU')

/** The images from `top` down to above `base` are written into `base`. */
export interface CommitRecord {
  /** `index` of the images */
  top: number
  base: number
  /** `top` is the disk's own image, to which the guest writes */
  active?: true
  /** path of the image above `base` as its header says it; absent: not relative */
  relative?: string
  /** images that left the chain are deleted */
  delete?: true
  /** `base` holds all, and both definitions may say so: the guest writes to it from now on */
  pivoted?: true
  /** it has ended without any effect, and what was done for it is still to be taken back */
  over?: true
  /** it has ended well, and these images, the topmost first, are still to be taken away */
  dropped?: StorageSource[]
}

/** What a later process must know of a block job, written down before the job is begun. */
export interface BlockJobRecord {
  /** QEMU's name of the job, 'stream-vda' */
  id: string
  /** target dev of the disk */
  disk: string
  /** bytes/s, 0: no limit */
  bandwidth: number
  /** `index` of the image that stays as backing image; absent: none stays */
  baseIndex?: number
  /** 'idle': only in the gaps of the guest's I/O */
  policy?: 'full' | 'idle'
  /** 'continue': when the domain is shut off in good order the stream goes on without it */
  onShutdown?: 'stop' | 'continue'
  /** part of the bandwidth of all streams, against the others; absent: 1 */
  weight?: number
  /** place in the order of all streams of the root; absent: before all others */
  arrival?: number
  /** it has not begun: it waits for its turn */
  queued?: true
  /** seconds that the base may be away, see streams/base-timeout.ts */
  baseTimeout?: number
  /** it is no stream, but the other way round */
  commit?: CommitRecord
  engine: StreamEngine
  /** 'pull' as long as our own requests move the data; QEMU has a job only in phase 'job' */
  phase: StreamEngine
  /** bytes, `offset` when this was written down */
  reached?: number
}

/** What the job's own events have said so far. QEMU calls it concluded when nothing but its result is left. */
export class BlockJob {
  readonly record: BlockJobRecord
  /** JobStatus of QEMU; 'created' until the first event */
  status = 'created'
  /** QEMU said BLOCK_JOB_COMPLETED without an error */
  completed = false
  error: string | undefined
  /** bytes, as of the last look */
  offset: number
  size = 0
  /** when it began or `offset` was last seen to move (performance.now) */
  movedAt = performance.now()
  /** an earlier process began it */
  inherited = false
  /** its first position tells where it has come while nobody looked, not that it moves */
  #behind = false
  /** why it stands still; undefined while it moves */
  waiting: string | undefined
  /** an error has brought it to a halt, from which somebody has to wake it */
  stuck = false
  /** when the base was last seen to be away since `offset` moved (performance.now) */
  goneAt: number | undefined
  /** why we cancelled it ourselves */
  failure: string | undefined
  /** all is copied, and what is copied is being written down before the image lets go of its base */
  finalizing = false
  /** all is copied, and what the guest writes is copied as well, until somebody decides */
  ready = false
  /** somebody has decided */
  ending = false
  /** someone who holds the domain's job settles it when it ends */
  awaited = false
  /** policy 'idle': the guest has something to do */
  resting = false
  /** when that began (performance.now) */
  restingSince = 0
  /** what the budget of the root lets it have */
  readonly allotment: Allotment
  /** takes part in the budget; not: it copies nothing */
  budgeted: boolean
  /** bytes/s that whoever moves the data was told last, NaN: not known; undefined: nobody moves it yet */
  told: number | undefined
  /** moves the data in phase 'pull' */
  puller: Puller | undefined
  /** helps it over HTTP */
  waker: Waker | undefined
  concluded!: () => void
  readonly whenConcluded = new Promise<void>((resolve) => {
    this.concluded = resolve
  })

  constructor(record: BlockJobRecord) {
    this.record = record
    this.offset = record.reached ?? 0
    this.budgeted = record.commit === undefined
    this.allotment = { slot: true, share: record.bandwidth }
  }

  /** Takes in what QEMU said when it was asked for all jobs: an event that came since then knows better. */
  found(status: string): void {
    if (this.status === 'created') this.status = status
    this.told = NaN
    // what halted it nobody has seen; to wake one that needs it not is refused
    if (status === 'paused') this.stuck = true
    if (status === 'ready' || status === 'standby') this.ready = true
  }

  /** It is taken over from an earlier process: nobody has seen it move since. */
  inherit(): void {
    this.inherited = true
    this.#behind = true
    this.movedAt = -Infinity
  }

  /** Takes a new position in: `offset` only grows, whatever QEMU counts anew. */
  advance(offset: number, size: number): boolean {
    this.size = size
    const behind = this.#behind
    this.#behind = false
    if (offset <= this.offset) return false
    this.offset = offset
    if (behind) return true
    this.movedAt = performance.now()
    this.goneAt = undefined
    this.stuck = false
    return true
  }
}

/** Is there anything left of it that takes time? A job that waits for its last step takes no orders but to end. */
export const isMoving = (job: BlockJob): boolean => job.status !== 'pending' && job.status !== 'concluded'

export interface BlockJobListener {
  /** a job has nothing to do but to keep up with the guest, until it is told to take the disk over */
  ready(job: BlockJob): void
  /** a job has done its work and waits to be finalized */
  pending(job: BlockJob): void
  /** a job ended and nobody waits for it under the domain's job; whoever is called settles it */
  concluded(job: BlockJob): void
}

/** The block jobs of one running domain: at most one for each disk, registered before QEMU is told to begin it. */
export class BlockJobs {
  readonly #byDisk = new Map<string, BlockJob>()
  #holders = 0
  readonly #on: BlockJobListener

  constructor(on: BlockJobListener) {
    this.#on = on
  }

  get all(): BlockJob[] {
    return [...this.#byDisk.values()]
  }
  records(): BlockJobRecord[] {
    return this.all.map(({ record, offset }) => ({ ...record, ...(offset > 0 && { reached: offset }) }))
  }
  ofDisk(disk: string): BlockJob | undefined {
    return this.#byDisk.get(disk)
  }

  /** Before the command is sent: its first event can come before its reply. */
  register(record: BlockJobRecord): BlockJob {
    if (this.#byDisk.has(record.disk))
      throw fail('VIR_ERR_OPERATION_INVALID', `disk '${record.disk}' already in active block job`)
    const job = new BlockJob(record)
    this.#byDisk.set(record.disk, job)
    return job
  }

  forget(job: BlockJob): void {
    if (this.#byDisk.get(job.record.disk) === job) this.#byDisk.delete(job.record.disk)
  }

  /** Takes an event of QEMU in; false when it is about no job of ours. */
  take({ event, data }: QmpEvent): boolean {
    const id = data[event === 'JOB_STATUS_CHANGE' ? 'id' : 'device']
    const job = this.all.find((candidate) => candidate.record.id === id)
    if (job === undefined) return false
    switch (event) {
      case 'JOB_STATUS_CHANGE':
        this.#changeStatus(job, String(data['status']))
        return true
      case 'BLOCK_JOB_COMPLETED':
        job.completed = data['error'] === undefined && data['len'] === data['offset']
        if (typeof data['error'] === 'string') job.error = data['error']
        job.advance(Number(data['offset']), Number(data['len']))
        return true
      case 'BLOCK_JOB_ERROR':
        if (data['action'] === 'stop') job.stuck = true
        return true
      case 'BLOCK_JOB_READY':
        job.ready = true
        this.#on.ready(job)
        return true
      case 'BLOCK_JOB_CANCELLED':
      case 'BLOCK_JOB_PENDING':
        return true
      default:
        return false
    }
  }

  #changeStatus(job: BlockJob, status: string): void {
    job.status = status
    if (status === 'pending') this.#on.pending(job)
    if (status !== 'concluded') return
    job.concluded()
    if (!job.awaited) this.#on.concluded(job)
  }

  /** A job that was found concluded without an event, after a restart of our process. */
  conclude(job: BlockJob): void {
    this.#changeStatus(job, 'concluded')
  }

  /** Does somebody need all jobs to go no further than to their last step? Those that are there go on when they are looked at next. */
  get isHeld(): boolean {
    return this.#holders > 0
  }
  /** Until `work` is through no job is finalized. */
  async hold<T>(work: () => Promise<T>): Promise<T> {
    this.#holders++
    try {
      return await work()
    } finally {
      this.#holders--
    }
  }

  /**
   * The only way to wait for a job while holding the domain's job: takes the end of `job` directly, instead of through the
   * queue that waits for the domain. False when it has not ended within `timeout` ms; its end is then settled as usual.
   */
  async wait(job: BlockJob, timeout: number): Promise<boolean> {
    const stop = new AbortController()
    job.awaited = true
    try {
      const late = delay(timeout, false, { signal: stop.signal }).catch(() => false)
      const ended = await Promise.race([job.whenConcluded.then(() => true), late])
      job.awaited = ended
      return ended
    } finally {
      stop.abort()
    }
  }
}
