/** The backing chain of a running disk, in the definition and in QEMU's block graph, kept telling the same. */
import type { DiskDef, DomainDef, StorageSource } from '../../conf/domain-def.js'
import { messageOf } from '../../error.js'
import {
  copyOnReadNodeName,
  formatNode,
  formatNodeName,
  guardNode,
  guardNodeName,
  hasSliceNode,
  imageOptions,
  sliceNodeName,
  storageNodeName,
} from '../../machine/blockdev.js'
import { sourceName } from './disk-names.js'
import type { Monitor } from '../monitor/monitor.js'
import type { BlockDevice } from '../monitor/types.js'

/** of qcow2, in bytes */
const SMALLEST_CLUSTER = 512

/** The images of a disk, its own first. */
export function chainOf(disk: DiskDef): StorageSource[] {
  const chain: StorageSource[] = []
  for (let source: StorageSource | null | undefined = disk.source; source; source = source.backingStore)
    chain.push(source)
  return chain
}

/** What an application calls an image: its path, or its name on the server; '' for an empty drive. */
export function sourcePath(source: StorageSource | undefined): string {
  return (source && sourceName(source)) ?? ''
}

/**
 * For each disk with a guard (by target) the number in the guard's name: the `index` of the image that was directly below it
 * when it was made.
 */
export type Guards = Map<string, number>

/** A number for an image that no node of this run has had. */
export function nextIndex(def: DomainDef, guards: Guards): number {
  const used = def.disks.flatMap((disk) => chainOf(disk).map((image) => image.index ?? 0))
  return Math.max(0, ...used, ...guards.values()) + 1
}

export const guardName = (number: number): string => `node-${number}-guard`

/** Where the guards stand when a domain starts: see `diskNodes`. */
export function initialGuards(def: DomainDef, caps: { hasBlockDriver(name: string): boolean }): Guards {
  const guards: Guards = new Map()
  for (const { target, source } of def.disks) {
    const index = source?.backingStore?.index
    if (index !== undefined && caps.hasBlockDriver('quorum')) guards.set(target, index)
  }
  return guards
}

/**
 * Where the guards stand in a QEMU that another process left, `known` to it; no stream may be concluded and not dismissed.
 */
export async function readGuards(monitor: Monitor, def: DomainDef, known: Guards): Promise<Guards> {
  const names = new Set(await monitor.queryNodeNames())
  const guards: Guards = new Map()
  for (const disk of def.disks) {
    const numbers = [known.get(disk.target), ...chainOf(disk).map((image) => image.index)]
    const number = numbers.findLast((candidate) => candidate !== undefined && names.has(guardName(candidate)))
    if (number !== undefined && !(await dropLoose(monitor, number))) guards.set(disk.target, number)
  }
  return guards
}

/**
 * A process that was killed may have made a guard and not yet put it in its place, or have taken it from there: such a one
 * guards nothing. QEMU deletes no node that is in use.
 */
async function dropLoose(monitor: Monitor, number: number): Promise<boolean> {
  return monitor.blockdevDel(guardName(number)).then(
    () => true,
    () => false,
  )
}

/** Puts the guard between a disk's own image and its backing image; does nothing when it is there. */
export async function addGuard(monitor: Monitor, guards: Guards, disk: DiskDef): Promise<void> {
  const own = disk.source
  const backing = own?.backingStore
  if (own === undefined || backing?.index === undefined || guards.has(disk.target)) return
  await monitor.blockdevAdd(guardNode(backing))
  try {
    await monitor.blockdevReopen(formatNode(own, { ...imageOptions(disk, own), backing: guardNodeName(backing) }))
  } catch (error) {
    await monitor.blockdevDel(guardNodeName(backing))
    throw error
  }
  guards.set(disk.target, backing.index)
}

/**
 * Takes the guard away: block-stream down to a base sees only images above it, and would write 'quorum' into the image's
 * header as the format of a base that is a guard. The images between are read without guard then, so they must be local.
 */
export async function removeGuard(monitor: Monitor, guards: Guards, disk: DiskDef): Promise<void> {
  const own = disk.source
  const backing = own?.backingStore
  const guard = guards.get(disk.target)
  if (own === undefined || backing == null || guard === undefined) return
  await monitor.blockdevReopen(formatNode(own, { ...imageOptions(disk, own), backing: formatNodeName(backing) }))
  guards.delete(disk.target)
  await monitor.blockdevDel(guardName(guard))
}

/** QEMU names a device by its alias, sometimes as a path of its object tree. */
export function isDeviceOf(disk: DiskDef, qdev: string | undefined): boolean {
  const own = qdev?.replace('/machine/peripheral/', '').split('/')[0]
  return own !== undefined && own === disk.alias
}

/**
 * Has the disk's own image really let go of everything above `base`? Asked of QEMU itself, before anything is forgotten.
 * By query-block: QEMU 7.2 crashes in query-named-block-nodes while a stream is concluded but not dismissed, since its
 * filter is then still there with nothing below it.
 */
export function isDetached(monitor: Monitor, disk: DiskDef, base: StorageSource | undefined): Promise<boolean> {
  return hasDepth(monitor, disk, base === undefined ? 0 : 1 + chainBelow(base).length)
}

/** Are there at most so many images below the one that the disk's device uses? No guard stands above one that is to stay. */
export async function hasDepth(monitor: Monitor, disk: DiskDef, depth: number): Promise<boolean> {
  const device = (await monitor.queryBlock()).find((candidate) => isDeviceOf(disk, candidate.qdev))
  if (device?.inserted === undefined) return false
  // filters count
  const filters = device.inserted['node-name'] === copyOnReadNodeName(disk) ? 1 : 0
  return device.inserted.backing_file_depth - filters <= depth
}

/** Bytes of a cluster of the disk's own image, the least that it takes over from its backing image. */
export async function clusterSize(monitor: Monitor, disk: DiskDef): Promise<number> {
  return (await ownImage(monitor, disk))?.['cluster-size'] ?? SMALLEST_CLUSTER
}

/** Bytes of a disk that a running guest has. */
export async function diskSize(monitor: Monitor, disk: DiskDef): Promise<number> {
  return (await ownImage(monitor, disk))?.['virtual-size'] ?? 0
}

async function ownImage(monitor: Monitor, disk: DiskDef): Promise<OwnImage> {
  return (await monitor.queryBlock()).find((candidate) => isDeviceOf(disk, candidate.qdev))?.inserted?.image
}
type OwnImage = NonNullable<BlockDevice['inserted']>['image'] | undefined

/**
 * Removes the nodes of images that the disk no longer reads, with the guard above them. A node that is still in use is
 * left, and reported.
 */
export async function deleteNodes(
  monitor: Monitor,
  guards: Guards,
  disk: DiskDef,
  images: readonly StorageSource[],
  warn: (text: string) => void,
): Promise<void> {
  const guard = images.length === 0 ? undefined : guards.get(disk.target)
  if (guard !== undefined) guards.delete(disk.target)
  const names = images.flatMap((image) => [
    formatNodeName(image),
    ...(hasSliceNode(image) ? [sliceNodeName(image)] : []),
    storageNodeName(image),
  ])
  for (const name of guard === undefined ? names : [guardName(guard), ...names])
    await monitor.blockdevDel(name).catch((error: unknown) => warn(`node '${name}' is left: ${messageOf(error)}`))
}

/** The images between the disk's own and `base` (all below it without base) leave the chain; answers them. */
export function cutChain(disk: DiskDef, base: StorageSource | undefined): StorageSource[] {
  const dropped = chainOf(disk)
    .slice(1)
    .filter((image) => image !== base && !chainBelow(base).includes(image))
  if (disk.source !== undefined) disk.source.backingStore = base ?? null
  return dropped
}

/** The images below `image`. */
export const chainBelow = (image: StorageSource | undefined): StorageSource[] => {
  const below: StorageSource[] = []
  for (let next = image?.backingStore; next; next = next.backingStore) below.push(next)
  return below
}

/** A disk's own image in the persistent definition, unless that names another one. */
export function persistentImage(config: DomainDef | undefined, disk: DiskDef): StorageSource | undefined {
  const own = config?.disks.find((candidate) => candidate.target === disk.target)?.source
  return sourcePath(own) === sourcePath(disk.source) ? own : undefined
}

/** What stands below `own` becomes what stood below it before. */
export function putChainBack(own: StorageSource, { backingStore }: Pick<StorageSource, 'backingStore'>): void {
  if (backingStore === undefined) delete own.backingStore
  else own.backingStore = backingStore
}

/**
 * The same cut in the persistent definition, which may name the chain or leave it to the image's header. Answers whether
 * anything changed there.
 */
export function cutConfigChain(config: DomainDef | undefined, disk: DiskDef, base: StorageSource | undefined): boolean {
  const own = persistentImage(config, disk)
  if (own?.backingStore == null) return false
  own.backingStore = base === undefined ? null : withoutIndex(base)
  return true
}

/**
 * The chain below a disk's own image goes into the persistent definition, where it is the same image. Answers what takes
 * that back; undefined: nothing changed.
 */
export function writeConfigChain(config: DomainDef | undefined, disk: DiskDef): (() => void) | undefined {
  const own = persistentImage(config, disk)
  const { source } = disk
  if (own === undefined || !source?.backingStore) return undefined
  const before = { ...own }
  own.backingStore = withoutIndex(source.backingStore)
  return () => putChainBack(own, before)
}

export function withoutIndex(source: StorageSource): StorageSource {
  const copy = structuredClone(source)
  for (let image: StorageSource | null | undefined = copy; image; image = image.backingStore) delete image.index
  return copy
}
