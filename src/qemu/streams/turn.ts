/** Block jobs as members of the budget: what they are there, whose turn it is, what they say of their wait. */
import type { BlockJob } from '../blocks/blockjob.js'
import type { Allotment, BudgetMember } from '../blocks/budget.js'
import type { Qemu } from '../core/qemu.js'
import { isStill, tellSpeed } from './speed.js'
import type { StreamHost, Vm } from '../core/vm.js'

type Begin = (vm: Vm, host: StreamHost, job: BlockJob) => void

class JobMember implements BudgetMember {
  readonly #vm: Vm
  readonly #host: StreamHost
  readonly #job: BlockJob
  readonly #begin: Begin
  constructor(vm: Vm, host: StreamHost, job: BlockJob, begin: Begin) {
    this.#vm = vm
    this.#host = host
    this.#job = job
    this.#begin = begin
  }
  get arrival(): number {
    return this.#job.record.arrival ?? 0
  }
  get weight(): number {
    return this.#job.record.weight ?? 1
  }
  get bandwidth(): number {
    return this.#job.record.bandwidth
  }
  get still(): boolean {
    return isStill(this.#job)
  }
  get allotment(): Allotment {
    return this.#job.allotment
  }
  async apply(): Promise<void> {
    const job = this.#job
    if (job.record.queued !== true) await tellSpeed(this.#host, job)
    else if (job.allotment.slot) this.#begin(this.#vm, this.#host, job)
  }
}

/** Streams of running domains and of storage daemons, whoever moves their data. `begin`: it is a waiting one's turn. */
export function jobMembers(qemu: Qemu, begin: Begin): BudgetMember[] {
  return qemu.vms.flatMap((vm) => {
    const { host } = vm
    const jobs = host?.blockJobs.all.filter((job) => job.budgeted) ?? []
    return host === undefined ? [] : jobs.map((job) => new JobMember(vm, host, job, begin))
  })
}

/** Why a stream waits for others, in words; undefined: it does not. */
export function turnProblem(qemu: Qemu, { allotment }: BlockJob): string | undefined {
  const place = qemu.budget.placeOf(allotment)
  if (place === undefined) return undefined
  const most = qemu.budget.maxStreams
  if (most === undefined) return 'it is about to begin'
  return `it is number ${place} in the queue: 'maxStreams' lets ${most} stream${most === 1 ? '' : 's'} move at once`
}
