/**
 * A disk as block nodes: from a `DiskDef` whose backing chain is known to its end to `blockdev-add` objects (QAPI
 * `BlockdevOptions`, QEMU's block-core.json). Every image is two nodes, as with libvirt: one that reaches the bytes
 * (`node-<index>-storage`) and one that understands the format (`node-<index>-format`, also for raw).
 */
import { statSync } from 'node:fs'
import type { DiskDef, DiskDriverDef, StorageSource } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { storageProtocol, type StorageProtocolOptions } from './blockdev-storage.js'

const fail = failFrom('VIR_FROM_QEMU')

export type Json = string | number | boolean | null | Json[] | { [key: string]: Json }
/** One node as `blockdev-add` takes it. */
export type BlockdevOptions = Record<string, Json> & { driver: string; 'node-name': string }

/** A secret that nodes refer to by id: an `-object secret` whose data must not stand on a command line. */
export interface BlockSecret {
  id: string
  data: string
}

export interface DiskNodes {
  /** in the order to add them, bottom first */
  nodes: BlockdevOptions[]
  /** the node that the guest's device uses: the copy-on-read filter, or else the format node */
  device: string
  /** the format node of the disk's own image */
  format: string
  /** to be added as objects before the nodes */
  secrets: BlockSecret[]
}

export interface DiskNodeOptions {
  /** which block drivers the binary has; without it all are taken to be there */
  caps?: { hasBlockDriver(name: string): boolean }
  /** id of the `tls-creds-x509` object for images with tls='yes' */
  tlsCreds?: string
}

/** What the nodes of one image take over from its disk. */
export interface ImageOptions {
  readOnly: boolean
  cache?: DiskDriverDef['cache']
  io?: DiskDriverDef['io']
  discard?: DiskDriverDef['discard']
  detectZeroes?: DiskDriverDef['detectZeroes']
  /** bytes */
  metadataCacheSize?: number
  /** the block device is a CD-ROM drive of the host */
  hostCdrom?: boolean
  tlsCreds?: string
  /** seconds until requests to an NBD server that is away fail; absent: never */
  reconnectDelay?: number
}

/** `ImageOptions` and where the image's data continues: a node's name, null for nowhere. */
export interface FormatOptions extends ImageOptions {
  backing: string | null
}

type Depth = 'own' | 'backing'

function indexOf(source: StorageSource): number {
  if (source.index === undefined) throw fail('VIR_ERR_INTERNAL_ERROR', `image ${describeSource(source)} has no index`)
  return source.index
}

function describeSource(source: StorageSource): string {
  return source.type === 'network' ? `'${source.protocol}:${source.name ?? ''}'` : `'${source.path}'`
}

export const storageNodeName = (source: StorageSource): string => `node-${indexOf(source)}-storage`
export const formatNodeName = (source: StorageSource): string => `node-${indexOf(source)}-format`
/** The node between an image and its backing image that turns errors of block status into "data": see `guardNode`. */
export const guardNodeName = (source: StorageSource): string => `node-${indexOf(source)}-guard`
export const sliceNodeName = (source: StorageSource): string => `node-${indexOf(source)}-slice`
/** The copy-on-read filter of a disk; `disk.target` is its target dev. */
export const copyOnReadNodeName = (disk: Pick<DiskDef, 'target'>): string => `cor-${disk.target}`

/** Cache modes as QEMU sees them: two options of every node, and whether the guest's device has a write cache. */
const cacheModes = {
  none: { direct: true, noFlush: false, writeCache: true },
  writethrough: { direct: false, noFlush: false, writeCache: false },
  writeback: { direct: false, noFlush: false, writeCache: true },
  directsync: { direct: true, noFlush: false, writeCache: false },
  unsafe: { direct: false, noFlush: true, writeCache: true },
} as const

/** The cache mode of a disk; one that several guests write to must not lie in the host's cache. */
function cacheModeOf(disk: DiskDef): DiskDriverDef['cache'] {
  const { cache } = disk.driver
  if (cache !== undefined && cache !== 'default') return cache
  return disk.shareable && !isReadOnly(disk) ? 'none' : undefined
}

/** `write-cache` of the disk's device, undefined where the cache mode leaves it to QEMU. */
export function writeCacheOf(disk: DiskDef): 'on' | 'off' | undefined {
  const mode = cacheModeOf(disk)
  if (mode === undefined || mode === 'default') return undefined
  return cacheModes[mode].writeCache ? 'on' : 'off'
}

function cacheOption(mode: DiskDriverDef['cache']): { cache?: { direct: boolean; 'no-flush': boolean } } {
  if (mode === undefined || mode === 'default') return {}
  const { direct, noFlush } = cacheModes[mode]
  return { cache: { direct, 'no-flush': noFlush } }
}

/** What the nodes of `source` take over from `disk`: of the images of a chain only the disk's own may be written to. */
export function imageOptions(disk: DiskDef, source: StorageSource, options: DiskNodeOptions = {}): ImageOptions {
  const { driver } = disk
  const own = source === disk.source || source.index === disk.source?.index
  const cache = cacheModeOf(disk)
  return {
    readOnly: !own || isReadOnly(disk),
    ...(cache && { cache }),
    ...(driver.io && { io: driver.io }),
    ...(driver.discard && { discard: driver.discard }),
    ...(own && driver.detectZeroes && { detectZeroes: driver.detectZeroes }),
    ...(own && driver.metadataCacheSize !== undefined && { metadataCacheSize: driver.metadataCacheSize }),
    ...(disk.device === 'cdrom' && source.type === 'block' && isHostCdrom(source.path) && { hostCdrom: true }),
    ...(options.tlsCreds !== undefined && { tlsCreds: options.tlsCreds }),
    ...(disk.baseTimeout !== undefined && { reconnectDelay: disk.baseTimeout }),
  }
}

const isReadOnly = (disk: DiskDef): boolean => disk.readonly || disk.device === 'cdrom'

/** Whether `path` is a CD-ROM drive (major 11 of Linux's devices.txt), which QEMU drives by `host_cdrom`. */
function isHostCdrom(path: string): boolean {
  const rdev = statSync(path, { throwIfNoEntry: false })?.rdev ?? 0
  return ((rdev >> 8) & 0xfff) === 11
}

/** The node that reaches the bytes of one image. */
export function storageNode(source: StorageSource, options: ImageOptions): BlockdevOptions {
  const protocol: StorageProtocolOptions = {
    ...options,
    ...(hasCookies(source) && { cookieSecret: cookieSecretId(source) }),
  }
  return {
    ...storageProtocol(source, protocol),
    'node-name': storageNodeName(source),
    ...cacheOption(options.cache),
    'auto-read-only': true,
    discard: 'unmap',
  }
}

const backedFormats = new Set(['qcow2', 'qcow', 'qed', 'vmdk'])
const formatDrivers: Record<string, string> = {
  ...{ raw: 'raw', iso: 'raw', qcow2: 'qcow2', qcow: 'qcow', qed: 'qed', vmdk: 'vmdk', vdi: 'vdi', vpc: 'vpc' },
  ...{ vhdx: 'vhdx', ploop: 'parallels', dmg: 'dmg', bochs: 'bochs', cloop: 'cloop' },
}

/**
 * The node that understands the format of one image, complete: `blockdev-reopen` wants all options of a node again, also
 * those that stay. VIR_ERR_CONFIG_UNSUPPORTED for a format that QEMU does not have or that cannot have a backing image.
 */
export function formatNode(source: StorageSource, options: FormatOptions): BlockdevOptions {
  const format = source.format ?? 'raw'
  const driver = Object.hasOwn(formatDrivers, format) ? formatDrivers[format] : undefined
  if (driver === undefined) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `image ${describeSource(source)} has the unsupported format '${format}'`)
  }
  const backed = backedFormats.has(format)
  if (!backed && options.backing !== null) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `format '${format}' of ${describeSource(source)} has no backing images`)
  }
  return {
    'node-name': formatNodeName(source),
    'read-only': options.readOnly,
    ...(options.discard && { discard: options.discard }),
    ...(options.detectZeroes && { 'detect-zeroes': detectZeroes(options) }),
    ...cacheOption(options.cache),
    driver,
    ...(driver === 'raw' && sliceOption(source)),
    file: driver !== 'raw' && source.slice ? sliceNodeName(source) : storageNodeName(source),
    ...(options.metadataCacheSize !== undefined && format === 'qcow2' && { 'cache-size': options.metadataCacheSize }),
    ...(backed && { backing: options.backing }),
  }
}

/** QEMU refuses `unmap` on a node that ignores discards; libvirt turns it into `on` there. */
function detectZeroes({ detectZeroes, discard }: ImageOptions): string {
  return detectZeroes === 'unmap' && discard !== 'unmap' ? 'on' : (detectZeroes ?? 'off')
}

function sliceOption({ slice }: StorageSource): Record<string, number> {
  return slice ? { offset: slice.offset, size: slice.size } : {}
}

/** Whether an image has a third node: for the part of a file that it lies in. */
export const hasSliceNode = (source: StorageSource): boolean =>
  source.slice !== undefined && formatDrivers[source.format ?? 'raw'] !== 'raw'

/** Part of a file as a file of its own, for formats that cannot begin in the middle themselves. */
function sliceNode(source: StorageSource, options: ImageOptions): BlockdevOptions | undefined {
  if (!hasSliceNode(source)) return undefined
  return {
    driver: 'raw',
    'node-name': sliceNodeName(source),
    ...sliceOption(source),
    file: storageNodeName(source),
    ...cacheOption(options.cache),
    'auto-read-only': true,
    discard: 'unmap',
  }
}

/**
 * The guard above a backing image: a quorum of one child. A `block-stream` job reads through a filter that takes a failed
 * block status of the backing image for success and hands out garbage; quorum answers "data" instead, and the read that
 * follows fails as it should.
 */
export function guardNode(backing: StorageSource): BlockdevOptions {
  return {
    driver: 'quorum',
    'node-name': guardNodeName(backing),
    'read-only': true,
    children: [formatNodeName(backing)],
    'vote-threshold': 1,
    'read-pattern': 'fifo',
  }
}

/** The filter that keeps what the guest reads from backing images in the disk's own image. Discards are left to the latter. */
export function copyOnReadNode(disk: DiskDef, source: StorageSource): BlockdevOptions {
  return {
    driver: 'copy-on-read',
    'node-name': copyOnReadNodeName(disk),
    discard: 'unmap',
    file: formatNodeName(source),
  }
}

/** The images of a disk from its own down to the last backing image. VIR_ERR_INTERNAL_ERROR when the end is not known. */
export function imageChain(disk: DiskDef): StorageSource[] {
  const chain: StorageSource[] = []
  for (let source: StorageSource | null | undefined = disk.source; source; source = source.backingStore) {
    chain.push(source)
    if (source.backingStore === undefined && backedFormats.has(source.format ?? 'raw')) {
      throw fail('VIR_ERR_INTERNAL_ERROR', `the backing chain of ${describeSource(source)} is not known to its end`)
    }
  }
  return chain
}

/** The name of the node that an image of the chain reads its missing parts from: the guard below the disk's own image. */
export function backingNodeName(source: StorageSource, depth: Depth, options: DiskNodeOptions = {}): string | null {
  if (!source.backingStore) return null
  return depth === 'own' && hasGuard(options) ? guardNodeName(source.backingStore) : formatNodeName(source.backingStore)
}

const hasGuard = (options: DiskNodeOptions): boolean => options.caps?.hasBlockDriver('quorum') ?? true

/**
 * All nodes of a disk. `disk.source` and its backing images must have an index and a format, and the chain must end in null.
 * VIR_ERR_CONFIG_UNSUPPORTED for what QEMU cannot do, VIR_ERR_OPERATION_INVALID for an empty drive.
 */
export function diskNodes(disk: DiskDef, options: DiskNodeOptions = {}): DiskNodes {
  if (!disk.source) throw fail('VIR_ERR_OPERATION_INVALID', `there is no medium in drive '${disk.target}'`)
  const chain = imageChain(disk)
  const nodes: BlockdevOptions[] = []
  for (const source of chain.toReversed()) {
    const own = source === disk.source
    nodes.push(...imageNodes(source, own ? 'own' : 'backing', imageOptions(disk, source, options), options))
  }
  const format = formatNodeName(disk.source)
  const secrets = chain.filter(hasCookies).map((source) => ({ id: cookieSecretId(source), data: cookieData(source) }))
  if (disk.driver.copyOnRead !== 'on' || isReadOnly(disk)) return { nodes, device: format, format, secrets }
  nodes.push(copyOnReadNode(disk, disk.source))
  return { nodes, device: copyOnReadNodeName(disk), format, secrets }
}

/** The nodes of one image, in the order to add them; for a disk's own image the guard below it comes first. */
export function imageNodes(
  source: StorageSource,
  depth: Depth,
  image: ImageOptions,
  options: DiskNodeOptions = {},
): BlockdevOptions[] {
  const slice = sliceNode(source, image)
  return [
    ...(depth === 'own' && source.backingStore && hasGuard(options) ? [guardNode(source.backingStore)] : []),
    storageNode(source, image),
    ...(slice ? [slice] : []),
    formatNode(source, { ...image, backing: backingNodeName(source, depth, options) }),
  ]
}

type CookieSource = StorageSource & { type: 'network'; cookies: { name: string; value: string }[] }

function hasCookies(source: StorageSource): source is CookieSource {
  return source.type === 'network' && (source.cookies?.length ?? 0) > 0
}

const cookieSecretId = (source: StorageSource): string => `node-${indexOf(source)}-cookies`
const cookieData = (source: CookieSource): string => source.cookies.map((c) => `${c.name}=${c.value}`).join('; ')
