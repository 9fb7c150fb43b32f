/** The backing chain of a running disk, in the definition and in QEMU's block graph, kept telling the same. */
import type { DiskDef, DomainDef, StorageSource } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { formatNode, formatNodeName, guardNode, guardNodeName, imageOptions, storageNodeName } from './blockdev.js'
import { sourceName } from './disk-names.js'
import type { Monitor, NamedBlockNode } from './monitor.js'

const fail = failFrom('VIR_FROM_QEMU')

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

/** Where the guard of a disk stands now: directly above which image, and below which. */
interface GuardPlace {
  above: StorageSource
  below: StorageSource
}

function findGuard(disk: DiskDef, nodes: ReadonlySet<string>): GuardPlace | undefined {
  const chain = chainOf(disk)
  for (const [i, above] of chain.slice(1).entries()) {
    const below = chain[i]
    if (below !== undefined && nodes.has(guardNodeName(above))) return { above, below }
  }
  return undefined
}

const namesOf = (nodes: NamedBlockNode[]): Set<string> => new Set(nodes.map((node) => node['node-name']))

/**
 * Puts the guard of a disk directly above `target`, an image of its chain below the disk's own; `block-stream` can only see
 * the images above it. Does nothing when it stands there. The images between are read without guard while it is not at
 * the top, so they must be local.
 */
export async function placeGuard(monitor: Monitor, disk: DiskDef, target: StorageSource): Promise<void> {
  const guard = findGuard(disk, namesOf(await monitor.queryNamedBlockNodes()))
  if (guard === undefined)
    throw fail(
      'VIR_ERR_OPERATION_UNSUPPORTED',
      `this QEMU has no 'quorum' block driver, without it disk '${disk.target}' cannot be streamed safely`,
    )
  if (guard.above === target) return
  const below = chainOf(disk).find((source) => source.backingStore === target)
  if (below === undefined) throw fail('VIR_ERR_INTERNAL_ERROR', `image is not in the backing chain of '${disk.target}'`)
  await monitor.blockdevAdd(guardNode(target))
  try {
    await monitor.blockdevReopenAll([
      formatNode(guard.below, { ...imageOptions(disk, guard.below), backing: formatNodeName(guard.above) }),
      formatNode(below, { ...imageOptions(disk, below), backing: guardNodeName(target) }),
    ])
  } catch (error) {
    await monitor.blockdevDel(guardNodeName(target))
    throw error
  }
  await monitor.blockdevDel(guardNodeName(guard.above))
}

/** Has the disk's own image really let go of everything above `base`? Asked of QEMU itself, before anything is forgotten. */
export async function isDetached(monitor: Monitor, disk: DiskDef, base: StorageSource | undefined): Promise<boolean> {
  if (disk.source === undefined) return false
  const own = formatNodeName(disk.source)
  const nodes = await monitor.queryNamedBlockNodes()
  const node = nodes.find((candidate) => candidate['node-name'] === own)
  if (node === undefined) return false
  // below the own image there is at most the guard, which is no backing image to QEMU's counting of depth
  return node.backing_file_depth <= (base === undefined ? 0 : 1)
}

/** Removes the nodes of images that the disk no longer reads. A node that is still in use is left, and reported. */
export async function deleteNodes(
  monitor: Monitor,
  images: readonly StorageSource[],
  warn: (text: string) => void,
): Promise<void> {
  const present = namesOf(await monitor.queryNamedBlockNodes())
  for (const image of images) {
    for (const name of [guardNodeName(image), formatNodeName(image), storageNodeName(image)]) {
      if (!present.has(name)) continue
      await monitor.blockdevDel(name).catch((error: unknown) => warn(`node '${name}' is left: ${String(error)}`))
    }
  }
}

/** The images between the disk's own and `base` (all below it without base) leave the chain; answers them. */
export function cutChain(disk: DiskDef, base: StorageSource | undefined): StorageSource[] {
  const dropped = chainOf(disk)
    .slice(1)
    .filter((image) => image !== base && !chainBelow(base).includes(image))
  if (disk.source !== undefined) disk.source.backingStore = base ?? null
  return dropped
}

const chainBelow = (image: StorageSource | undefined): StorageSource[] => {
  const below: StorageSource[] = []
  for (let next = image?.backingStore; next; next = next.backingStore) below.push(next)
  return below
}

/**
 * The same cut in the persistent definition, which may name the chain or leave it to the image's header. Answers whether
 * anything changed there.
 */
export function cutConfigChain(config: DomainDef | undefined, disk: DiskDef, base: StorageSource | undefined): boolean {
  const own = config?.disks.find((candidate) => candidate.target === disk.target)?.source
  if (own?.backingStore == null || sourcePath(own) !== sourcePath(disk.source)) return false
  own.backingStore = base === undefined ? null : withoutIndex(base)
  return true
}

function withoutIndex(source: StorageSource): StorageSource {
  const copy = structuredClone(source)
  for (let image: StorageSource | null | undefined = copy; image; image = image.backingStore) delete image.index
  return copy
}
