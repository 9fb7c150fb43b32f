/**
 * Policy 'idle': a stream runs in the gaps of the guest's own I/O. The guest's requests are counted (query-blockstats, which
 * does not count the stream's); as soon as there are new ones the stream rests, after two quiet looks it goes on.
 */
import type { BlockJob } from '../blocks/blockjob.js'
import type { BlockStatsEntry } from '../monitor/types.js'
import type { Qemu } from '../core/qemu.js'
import { setResting, tellSpeed } from './speed.js'
import type { StreamHost, Vm } from '../core/vm.js'

/** ms between two looks; one costs QEMU less than a millisecond */
const INTERVAL = 50
const QUIET_LOOKS = 2
const watching = new WeakSet<StreamHost>()

const requests = (entries: BlockStatsEntry[]): number =>
  entries.reduce((sum, { stats: s }) => sum + s.rd_operations + s.wr_operations + s.flush_operations, 0)

const idleJobs = (host: StreamHost): BlockJob[] => host.blockJobs.all.filter((job) => job.record.policy === 'idle')

/** Lets the idle streams of a domain rest and run, until it has none any more. */
export function watchIdleness(qemu: Qemu, vm: Vm, host: StreamHost): void {
  // without a guest there is nothing to make way for
  if (host.mode === 'offline' || watching.has(host) || idleJobs(host).length === 0) return
  watching.add(host)
  let last: number | undefined
  let quiet = 0
  const look = async (): Promise<void> => {
    const now = requests(await host.monitor.queryBlockstats())
    quiet = last === undefined || now !== last ? 0 : quiet + 1
    last = now
    for (const job of idleJobs(host)) await letRest(qemu, host, job, quiet < QUIET_LOOKS)
  }
  const next = (): void => {
    const timer = setTimeout(() => {
      if (vm.host !== host || host.monitor.isClosed || idleJobs(host).length === 0) {
        watching.delete(host)
        return
      }
      look()
        .catch((error: unknown) =>
          qemu.host.logger.debug({ err: error }, 'a look at the guest for idle streams failed'),
        )
        .finally(next)
    }, INTERVAL)
    timer.unref()
  }
  next()
}

async function letRest(qemu: Qemu, host: StreamHost, job: BlockJob, resting: boolean): Promise<void> {
  if (job.resting === resting) return
  setResting(job, resting)
  // it may have left its slot and its share to others
  if (!resting) qemu.budget.update()
  await tellSpeed(host, job)
}
