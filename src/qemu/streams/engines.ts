/**
 * The two ways to move the data of a stream. QEMU's block-stream job does all of it, or our own parallel requests do (see
 * `Puller`), and the job, which finds nothing left to copy, only drops the backing link at the end.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { StorageSource } from '../../conf/domain-def.js'
import { DEFAULT_UNIT } from '../../nbd/allocation-depth.js'
import type { NbdClient } from '../../nbd/client.js'
import { NbdError } from '../../nbd/error.js'
import { formatBackingString } from '../../storage/backing-string.js'
import { messageOf } from '../../error.js'
import { chainOf } from '../blocks/block-graph.js'
import { formatNodeName } from '../../machine/blockdev.js'
import type { BlockJob } from '../blocks/blockjob.js'
import { beginFinal, isRaw } from './final-image.js'
import { hasLostRequests, Waker } from '../blocks/lost-requests.js'
import { BASE_LEAVES } from './leaving-base.js'
import { isNbd, isOutage, isRemote, linksOf } from '../blocks/link-watch.js'
import { Puller } from '../blocks/puller.js'
import type { Qemu } from '../core/qemu.js'
import { endPull, type JobEnd } from './settle.js'
import { saveStatus, saveStatusOrSay } from '../core/status.js'
import { rests, speedOf } from './speed.js'
import type { StreamHost, Vm } from '../core/vm.js'

/** Requests in flight and bytes of each: what did best in measurements. */
const LOAD = {
  local: { window: 8, unit: DEFAULT_UNIT },
  // QEMU has no more than 16 under way over one NBD connection
  nbd: { window: 16, unit: DEFAULT_UNIT },
  // QEMU has 8 under way over HTTP, the guest's among them, and reads 256 KiB further than asked each time: few large ones
  curl: { window: 6, unit: 2 * DEFAULT_UNIT },
}
/** ms that a QEMU may take to write down its caches and go */
const ENDING = 10_000
/** ms that the requests of a stopped pull get to be answered */
const LAST_ANSWERS = 1_000

/** Under the domain's job: hands a registered stream to QEMU. When it is refused the stream is forgotten. */
export async function beginJob(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): Promise<void> {
  const { id, disk: target, baseIndex } = job.record
  const disk = host.def.disks.find((candidate) => candidate.target === target)
  const base = disk && chainOf(disk).find((image) => image.index === baseIndex && image !== disk.source)
  try {
    job.record.phase = 'job'
    saveStatus(vm, host)
    if (disk?.source === undefined) throw new Error(`disk '${target}' is gone`)
    job.told = speedOf(job)
    // an outage of a remote base is no reason to end: see progress.ts
    const onError = chainOf(disk).some(isRemote) ? ('stop' as const) : ('enospc' as const)
    const args = { 'job-id': id, speed: job.told, 'filter-node-name': id }
    if (await beginFinal(qemu, vm, host, disk, args)) return
    await host.monitor.blockStream({
      ...args,
      'on-error': onError,
      device: formatNodeName(disk.source),
      ...(base && { 'base-node': formatNodeName(base), 'backing-file': formatBackingString(base) }),
    })
  } catch (error) {
    host.blockJobs.forget(job)
    if (vm.host === host) saveStatusOrSay(vm, host, () => undefined)
    throw error
  }
}

/** Begins to pull in the background; when all is there, QEMU's job ends the stream. */
export function beginPull(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob, client: NbdClient): void {
  const disk = host.def.disks.find((candidate) => candidate.target === job.record.disk)
  const chain = disk === undefined ? [] : chainOf(disk)
  const base = chain.findIndex((image) => image.index === job.record.baseIndex)
  const puller = new Puller(client, {
    ...LOAD[disk === undefined ? 'local' : linksOf(disk)],
    bandwidth: job.allotment.share,
    // depth 1 is the disk's own image; the images from the base on stay where they are
    ...(base > 0 && { maxDepth: base }),
    overLink: base <= 0 && isOverLink(chain),
    isOutage: () => isOutage(disk, job),
  })
  puller.rest(rests(job))
  job.told = speedOf(job)
  job.puller = puller
  job.waker = disk !== undefined && hasLostRequests(disk) ? new Waker(host.exports, disk, puller) : undefined
  job.status = 'running'
  job.size = client.size
  qemu.inBackground(`the stream of '${job.record.disk}'`, () => pull(qemu, vm, host, job, puller))
}

/** All that a disk lacks is in one raw image, which an NBD server has. */
const isOverLink = ([, base, ...others]: readonly StorageSource[]): boolean =>
  base !== undefined && isNbd(base) && isRaw(base) && others.length === 0

async function pull(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob, puller: Puller): Promise<void> {
  const isAborted = (): boolean => puller.aborted
  const work = async (): Promise<void> => {
    await job.waker?.watch()
    await puller.run()
  }
  const error: unknown = await work().then(
    () => undefined,
    (failure: unknown) => failure,
  )
  if (isAborted()) return
  // QEMU closes its NBD server when it ends, a while before it is gone: that is no failure of the stream
  if (isLost(error)) await Promise.race([host.ended, delay(ENDING, undefined, { ref: false })])
  if (isAborted()) return
  await job.waker?.stop()
  if (error === undefined) await qemu.migrations.diskPulled(vm, job.record.disk, isAborted)
  if (isAborted()) return
  const end = async (): Promise<void> => {
    if (vm.host !== host || job.puller !== puller || isAborted()) return
    job.puller = undefined
    const refusal =
      error === undefined || isOverload(error, job)
        ? await beginJob(qemu, vm, host, job).then(() => undefined, messageOf)
        : reasonOf(error)
    if (refusal !== undefined) await endPull(qemu, vm, host, job, { status: 'failed', error: refusal })
  }
  await vm.jobs.run('settle', end, Infinity)
}

/** QEMU gives an HTTP server 5 s for each request, which many at once over a slow link can miss: its job has one. */
const isOverload = (error: unknown, { waker }: BlockJob): boolean =>
  waker !== undefined && error instanceof NbdError && error.code === 'EIO'

const isLost = (error: unknown): boolean => error instanceof NbdError && error.code === 'ECONNRESET'

/** QEMU says over NBD only which errno it was. */
const WORDS: Record<string, string> = {
  EIO: 'Input/output error',
  EPERM: 'Operation not permitted',
  ESHUTDOWN: BASE_LEAVES,
}
export const reasonOf = (error: unknown): string =>
  (error instanceof NbdError ? WORDS[error.code] : undefined) ?? messageOf(error)

/** Stops a pull. True when every request was answered: only then may QEMU be asked for what would wait for them. */
async function quiesce(host: StreamHost, job: BlockJob): Promise<boolean> {
  const { puller } = job
  job.puller = undefined
  if (puller === undefined) return true
  puller.abort()
  const end = performance.now() + LAST_ANSWERS
  while (puller.isBusy && performance.now() < end) await delay(20)
  if (!puller.isBusy && (await job.waker?.stop()) !== false) return true
  host.exports.abandon(job.record.disk)
  return false
}

/**
 * Under the domain's job, when our process lets go of the root: QEMU goes on alone with its own job. Where the base does
 * not answer, or where a mirror has the disk, the stream rests until the root is opened again.
 */
export async function handOver(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): Promise<void> {
  job.resting = false // nobody would tell it when the guest is quiet
  if ((await quiesce(host, job)) && !qemu.incomingsOf(vm).some((incoming) => incoming.writesBack()))
    await beginJob(qemu, vm, host, job)
}

/** Under the domain's job: stops a pull; what was copied stays. A base that does not answer does not hold it up. */
export async function stopPull(
  qemu: Qemu,
  vm: Vm,
  host: StreamHost,
  job: BlockJob,
  end: JobEnd = { status: 'canceled' },
): Promise<void> {
  if (await quiesce(host, job))
    await host.exports.flush(job.record.disk).catch((error: unknown) => qemu.warn(messageOf(error)))
  await endPull(qemu, vm, host, job, end)
}
