/**
 * A base that another image was taking the place of when our process was killed. QEMU may read from either of them, or, below
 * a guard, from the former one first and from the new one where that fails. Where it has not heard of the new one all is put
 * back as it was, since whoever asked for it has got no answer; otherwise it lets go of the former one.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { DiskDef, DomainDef, StorageSource } from '../../conf/domain-def.js'
import { failFrom, messageOf } from '../../error.js'
import { formatNodeName } from '../../machine/blockdev.js'
import { formatBackingString } from '../../storage/backing-string.js'
import {
  chainBelow,
  chainOf,
  deleteNodes,
  guardName,
  persistentImage,
  putChainBack,
  writeConfigChain,
} from '../blocks/block-graph.js'
import { isNbd, linkProblem } from '../blocks/link-watch.js'
import { saveConfig } from '../core/config.js'
import type { Qemu } from '../core/qemu.js'
import { isTimeout, untilAnswers } from '../core/standing-still.js'
import { saveStatus } from '../core/status.js'
import type { Replacing, StreamHost, Vm } from '../core/vm.js'
import { makePassable } from './passable.js'
import { releaseFormer, removeOldest, replaceBase, type Replacement } from './replace-base.js'
import { removeLeftSocket, StandIn } from './stand-in.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms until a QEMU that could not let go of a former base is asked again */
const RETRY = 5_000

interface Halves {
  disk: DiskDef
  old: StorageSource
  fresh: StorageSource
}

/** The two images; undefined where the disk has neither any more, as after a stream. */
function halvesOf({ def, replacing }: Pick<StreamHost, 'def' | 'replacing'>): Halves | undefined {
  const disk = def.disks.find(({ target }) => target === replacing?.target)
  if (replacing === undefined || disk === undefined) return undefined
  const former = chainOf({ ...disk, source: replacing.source })
  const chain = chainOf(disk)
  const at = chain.findIndex(({ index }, nth) => index !== former[nth]?.index)
  const [old, fresh] = [former[at], chain[at]]
  return old === undefined || fresh === undefined ? undefined : { disk, old, fresh }
}

/** The disk as QEMU may still have it: what is known of its images is not taken away. */
export function formerDisk({ def, replacing }: StreamHost): DiskDef | undefined {
  const disk = def.disks.find(({ target }) => target === replacing?.target)
  return disk === undefined || replacing === undefined ? undefined : { ...disk, source: replacing.source }
}

/** `replaceBase`; a QEMU that did not answer in the middle of it is looked after until it has one of the two images. */
export async function exchangeBase(qemu: Qemu, vm: Vm, host: StreamHost, replacement: Replacement): Promise<void> {
  try {
    await replaceBase(qemu, vm, host, replacement)
  } catch (error) {
    if (isTimeout(error) && host.replacing !== undefined) finishLater(qemu, vm, host, { silent: true })
    throw error
  }
}

/** Under the domain's job, when a process is taken over; no stream may be concluded and not dismissed. */
export async function settleReplacing(qemu: Qemu, vm: Vm, host: StreamHost): Promise<void> {
  const { standIn } = host
  if (standIn !== undefined) {
    await host.access.revokeRuntime(standIn)
    await removeLeftSocket(standIn)
    delete host.standIn
  }
  if (await hasBoth(qemu, vm, host)) finishLater(qemu, vm, host, { silent: false })
}

/** Does QEMU read from both images? If only from one, that one is the base, and what is left of the other one is taken away. */
async function hasBoth(qemu: Qemu, vm: Vm, host: StreamHost): Promise<boolean> {
  const [former, halves] = [formerDisk(host), halvesOf(host)]
  if (former === undefined) {
    // the disk was unplugged
    delete host.replacing
    return false
  }
  const indexes = host.def.disks.flatMap(chainOf).map(({ index }) => index)
  let leaving = chainOf(former).filter(({ index }) => !indexes.includes(index))
  if (halves !== undefined && (await isUsed(host, halves.old))) {
    if (await isUsed(host, halves.fresh)) return true
    leaving = [halves.fresh, ...chainBelow(halves.fresh)]
    putBack(qemu, vm, host, halves)
  }
  delete host.replacing
  saveStatus(vm, host)
  await deleteNodes(host.monitor, new Map(), former, leaving, () => undefined)
  await host.access.revokeImages(former, leaving)
  return false
}

/** QEMU deletes no node that is in use. */
async function isUsed({ monitor }: StreamHost, image: StorageSource): Promise<boolean> {
  try {
    await monitor.blockdevDel(formatNodeName(image))
    return false
  } catch (error) {
    if (/in use/.test(messageOf(error))) return true
    if (/Failed to find node/.test(messageOf(error))) return false
    throw error
  }
}

/** Both definitions, and what is known of the image's header, are as they were. */
function putBack(qemu: Qemu, vm: Vm, host: StreamHost, { disk, fresh }: Halves): void {
  const { replacing } = host
  if (replacing === undefined) return
  const own = persistentImage(vm.config, disk)
  // it may not have been written yet, or be another one by now
  const isWritten = chainBelow(own).some((image) => formatBackingString(image) === formatBackingString(fresh))
  if (own !== undefined && vm.config !== undefined && replacing.persistent !== undefined && isWritten) {
    putChainBack(own, replacing.persistent)
    saveConfig(qemu.root, vm.config)
  }
  disk.source = replacing.source
  if (replacing.baseTimeout === undefined) delete disk.baseTimeout
  else disk.baseTimeout = replacing.baseTimeout
  if (!replacing.stale) host.staleHeaders.delete(disk.target)
}

/**
 * As jobs of their own, until it is done: the former base may be away, on a host where nobody can stand in for it. `silent`:
 * QEMU answers nothing at all.
 */
function finishLater(qemu: Qemu, vm: Vm, host: StreamHost, { silent }: { silent: boolean }): void {
  const isOver = (): boolean =>
    qemu.closing || vm.host !== host || host.replacing === undefined || host.monitor.isClosed
  const attempt = async (): Promise<void> => {
    if (!isOver()) await finishReplacing(qemu, vm, host)
  }
  qemu.inBackground(`the former base of a disk of domain '${vm.name}'`, async () => {
    // a storage daemon cannot be asked whether it answers, and has no guest that waits
    if (silent && host.mode === 'full') await standingInForFormer(qemu, vm, host, () => untilAnswers(host, isOver))
    while (!isOver()) {
      await vm.jobs.run('settle', attempt, Infinity).catch((error: unknown) => qemu.warn(messageOf(error)))
      if (!isOver()) await delay(RETRY, undefined, { ref: false })
    }
  })
}

/** Under the domain's job: when QEMU still reads from a former base too, it lets go of that. Otherwise does nothing. */
export async function finishReplacing(qemu: Qemu, vm: Vm, host: StreamHost): Promise<void> {
  const halves = halvesOf(host)
  if (!(await hasBoth(qemu, vm, host)) || halves === undefined) return
  const guard = host.guards.get(halves.disk.target)
  if (guard === undefined) throw fail('VIR_ERR_INTERNAL_ERROR', `disk '${halves.disk.target}' has no guard`)
  await host.blockJobs.hold(async () => {
    await using standIn = await makePassable(vm, host, halves)
    await standIn?.answered()
    vm.requireSame(host)
    await removeOldest(host.monitor, guardName(guard))
    await releaseFormer(qemu, vm, host, halves.disk, [halves.old, ...chainBelow(halves.old)])
  })
}

/**
 * Does `work` while a base that was being replaced is answered for, if it is away and that can be done: a QEMU that was told of
 * the new one while requests waited for the former one answers nothing until they are answered.
 */
export async function standingInForFormer<T>(qemu: Qemu, vm: Vm, host: StreamHost, work: () => Promise<T>): Promise<T> {
  const halves = halvesOf(host)
  if (halves === undefined || !isNbd(halves.old) || (await linkProblem(halves.old)) === undefined) return work()
  const standIn = await StandIn.open(vm, host, halves.old, halves.fresh).catch((error: unknown) => {
    qemu.warn(messageOf(error))
  })
  try {
    return await work()
  } finally {
    await standIn?.[Symbol.asyncDispose]()
  }
}

/** Under nobody's job: no process has the images any more, and both definitions name the new base, as the header will. */
export async function settleWithout(qemu: Qemu, vm: Vm, left: Left): Promise<void> {
  const { standIn, def, replacing } = left
  if (standIn !== undefined) await removeLeftSocket(standIn)
  const disk = def.disks.find(({ target }) => target === replacing?.target)
  if (disk === undefined || replacing?.persistent === undefined || vm.config === undefined) return
  if (writeConfigChain(vm.config, disk) !== undefined) saveConfig(qemu.root, vm.config)
}

/** What a process that was killed has written down of a QEMU that is gone as well. */
export interface Left {
  def: DomainDef
  replacing?: Replacing
  standIn?: string
}
