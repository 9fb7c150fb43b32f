/** Another image takes the place of a backing image while everything above it is in use. */
import type { DiskDef, StorageSource } from '../../conf/domain-def.js'
import { failFrom, messageOf } from '../../error.js'
import { Undo } from '../../util/undo.js'
import {
  chainBelow,
  chainOf,
  deleteNodes,
  guardName,
  nextIndex,
  persistentImage,
  writeConfigChain,
} from '../blocks/block-graph.js'
import { formatNode, formatNodeName, imageNodes, imageOptions } from '../../machine/blockdev.js'
import { saveConfig } from '../core/config.js'
import type { Monitor } from '../monitor/monitor.js'
import type { Qemu } from '../core/qemu.js'
import { isTimeout } from '../core/standing-still.js'
import { saveStatus, saveStatusOrSay } from '../core/status.js'
import type { Replacing, StreamHost, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

export interface Replacement {
  disk: DiskDef
  /** an image below the disk's own; all that is below it goes as well */
  old: StorageSource
  /** with all that is below it */
  fresh: StorageSource
  /** it is another image, to be noted down in the definition; otherwise the same one, opened in another way */
  moved: boolean
  /** how long the disk waited for its base until now, see `DiskDef` */
  timeoutBefore: number | undefined
}

/**
 * Under the domain's job, when no request waits for `old`: QEMU waits for those before it changes anything, and the guest
 * with it. It is written down before it counts; when a step fails all is as it was. To be
 * called by `exchangeBase` only, which looks after a QEMU that did not answer.
 */
export async function replaceBase(qemu: Qemu, vm: Vm, host: StreamHost, replacement: Replacement): Promise<void> {
  const { disk, old, fresh } = replacement
  if (host.replacing !== undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${host.replacing.target}' has still to let go of its former base`)
  const parent = chainOf(disk).find((image) => image.backingStore === old)
  if (parent === undefined) throw fail('VIR_ERR_INTERNAL_ERROR', `the image is not below disk '${disk.target}'`)
  const leaving = [old, ...chainBelow(old)]
  let index = nextIndex(host.def, host.guards)
  for (const image of [fresh, ...chainBelow(fresh)]) image.index = index++
  await using undo = new Undo()
  for (const image of [fresh, ...chainBelow(fresh)]) {
    await host.access.grantImage(disk, image)
    undo.add(() => host.access.revokeImages(disk, [image]))
  }
  await addNodes(host, disk, fresh, undo)
  writeDown(qemu, vm, host, parent, replacement, undo)
  try {
    await link(host, disk, parent, fresh)
  } catch (error) {
    // QEMU does it all the same when it goes on, so `replacing` stays
    if (isTimeout(error)) undo.commit()
    throw error
  }
  undo.commit()
  await releaseFormer(qemu, vm, host, disk, leaving)
}

/** Nothing reads from `leaving`, the former base and what was below it, any more. */
export async function releaseFormer(
  qemu: Qemu,
  vm: Vm,
  host: StreamHost,
  disk: DiskDef,
  leaving: readonly StorageSource[],
): Promise<void> {
  const warn = (text: string): void => qemu.warn(`domain '${vm.name}': ${text}`)
  delete host.replacing
  saveStatusOrSay(vm, host, warn)
  await deleteNodes(host.monitor, new Map(), disk, leaving, warn)
  await host.access.revokeImages(disk, leaving)
}

async function addNodes(host: StreamHost, disk: DiskDef, fresh: StorageSource, undo: Undo): Promise<void> {
  const images = [fresh, ...chainBelow(fresh)].toReversed()
  for (const node of images.flatMap((image) => imageNodes(image, 'backing', imageOptions(disk, image)))) {
    // the whole guest would wait for a server that does not answer
    await host.monitor.blockdevAdd(node.driver === 'nbd' ? { ...node, 'open-timeout': 0 } : node)
    undo.add(() => host.monitor.blockdevDel(node['node-name']))
  }
}

function writeDown(
  qemu: Qemu,
  vm: Vm,
  host: StreamHost,
  parent: StorageSource,
  { disk, old, fresh, moved, timeoutBefore }: Replacement,
  undo: Undo,
): void {
  const stale = host.staleHeaders.has(disk.target)
  const replacing = replacingOf(vm, disk, { moved, timeoutBefore, stale })
  undo.add(() => {
    parent.backingStore = old
    if (!stale) host.staleHeaders.delete(disk.target)
    delete host.replacing
    if (vm.host === host) saveStatusOrSay(vm, host, (text) => qemu.warn(text))
  })
  if (replacing !== undefined) host.replacing = replacing
  parent.backingStore = fresh
  if (moved && parent === disk.source) host.staleHeaders.add(disk.target)
  saveStatus(vm, host)
  const restore = moved ? writeConfigChain(vm.config, disk) : undefined
  const { config } = vm
  if (restore === undefined || config === undefined) return
  undo.add(() => {
    restore()
    saveConfig(qemu.root, config)
  })
  saveConfig(qemu.root, config)
}

/** How all is before anything below `disk` is replaced; undefined for a disk without a medium. */
export function replacingOf(
  vm: Vm,
  disk: DiskDef,
  { moved, timeoutBefore, stale }: Pick<Replacement, 'moved' | 'timeoutBefore'> & Pick<Replacing, 'stale'>,
): Replacing | undefined {
  const { target, source } = disk
  if (source === undefined) return undefined
  const own = moved ? persistentImage(vm.config, disk) : undefined
  return structuredClone({
    target,
    source,
    ...(timeoutBefore !== undefined && { baseTimeout: timeoutBefore }),
    stale,
    ...(own !== undefined && { persistent: own.backingStore === undefined ? {} : { backingStore: own.backingStore } }),
  })
}

/** Below a guard QEMU lets us change images also while a job streams; elsewhere not. */
async function link(host: StreamHost, disk: DiskDef, parent: StorageSource, fresh: StorageSource): Promise<void> {
  const { monitor, guards } = host
  const guard = parent === disk.source ? guards.get(disk.target) : undefined
  if (guard === undefined) {
    const options = { ...imageOptions(disk, parent), backing: formatNodeName(fresh) }
    await monitor.blockdevReopen(formatNode(parent, options))
    return
  }
  const name = guardName(guard)
  await monitor.passThrough('x-blockdev-change', { parent: name, node: formatNodeName(fresh) })
  await removeOldest(monitor, name)
}

/** Children of a quorum are numbered in the order in which they come, and keep their numbers: the oldest has the lowest. */
export async function removeOldest(monitor: Monitor, parent: string): Promise<void> {
  for (let nth = 0; ; nth++) {
    try {
      await monitor.passThrough('x-blockdev-change', { parent, child: `children.${nth}` })
      return
    } catch (error) {
      if (/does not have child/.test(messageOf(error)) && nth < MOST_REPLACEMENTS) continue
      await monitor.passThrough('x-blockdev-change', { parent, child: `children.${nth + 1}` }).catch(() => undefined)
      throw error
    }
  }
}

/** of one guard, which is gone when the domain ends or its disk is streamed */
const MOST_REPLACEMENTS = 10_000
