/** A base that is somewhere else now: the disk reads from there, and its stream goes on. */
import { stat } from 'node:fs/promises'
import type { DiskDef, DomainDef, StorageSource } from '../../conf/domain-def.js'
import { failFrom } from '../../error.js'
import { formatBackingString, MAX_BACKING_STRING, parseBackingString } from '../../storage/backing-string.js'
import { resolveBackingChain } from '../../storage/chain.js'
import { rebaseHeader } from '../../storage/overlay.js'
import { probeImage } from '../../storage/probe.js'
import { chainOf, writeConfigChain } from '../blocks/block-graph.js'
import { formatNodeName } from '../../machine/blockdev.js'
import { exchangeBase, finishReplacing } from './half-replaced.js'
import { saveConfig } from '../core/config.js'
import { findDisk } from '../blocks/disk-names.js'
import { isFromMigration, isRemote, linkProblem } from '../blocks/link-watch.js'
import { refuseSaved } from '../core/managed-save.js'
import { offlineDefinition, resolveOffline } from './offline.js'
import type { Qemu } from '../core/qemu.js'
import { makePassable } from './passable.js'
import { replacingOf } from './replace-base.js'
import { findBase } from './checks.js'
import { removeRunDir, saveAtRest } from '../core/status.js'
import type { StreamHost, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms that the new place may take to answer */
const PROBE_TIMEOUT = 10_000

/**
 * Under the domain's job: the image that `text` names (a path, a URI, as in an image's header) takes the place of
 * `image`, or else of the first remote image of the chain, or else of its last.
 */
export async function setBase(
  qemu: Qemu,
  vm: Vm,
  name: string,
  text: string,
  image: string | undefined,
): Promise<void> {
  const { host } = vm
  const def = host?.def ?? offlineDefinition(vm)
  const disk = findDisk(def, name)
  if (vm.live === undefined && vm.offline?.blockJobs.ofDisk(disk.target) === undefined) {
    await setBaseAtRest(qemu, vm, def, disk, text, image)
    return
  }
  if (host === undefined) return
  await finishReplacing(qemu, vm, host)
  const old = chooseImage(disk, image)
  if (isFromMigration(disk))
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${disk.target}' comes over from the host that the domain has left`)
  requireFree(host, disk)
  const fresh = await openNewBase(text, old)
  // one may have come to its end while the new place was asked
  vm.requireSame(host)
  requireFree(host, disk)
  // a stream that ended meanwhile would take away nodes that are looked at
  await host.blockJobs.hold(async () => {
    requireSize(fresh, await sizeOf(host, old), old)
    await using standIn = await makePassable(vm, host, { disk, old, fresh: fresh.image })
    await standIn?.answered()
    vm.requireSame(host)
    const timeoutBefore = disk.baseTimeout
    await exchangeBase(qemu, vm, host, { disk, old, fresh: fresh.image, moved: true, timeoutBefore })
  })
}

function chooseImage(disk: DiskDef, image: string | undefined): StorageSource {
  if (image !== undefined) return findBase(disk, image)
  const below = chainOf(disk).slice(1)
  const chosen = below.find(isRemote) ?? below.at(-1)
  if (chosen !== undefined) return chosen
  throw fail('VIR_ERR_OPERATION_INVALID', `disk '${disk.target}' has no backing image`)
}

/** QEMU's job of a stream down to a base has the chain in its hands, and one that ends is about to change it. */
function requireFree(host: StreamHost, disk: DiskDef): void {
  if (host.blockJobs.all.some(({ status }) => status === 'pending' || status === 'concluded'))
    throw fail('VIR_ERR_OPERATION_INVALID', 'a stream of the domain is just about to end')
  const record = host.blockJobs.ofDisk(disk.target)?.record
  if (record?.commit !== undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${disk.target}' already in active block job`)
  if (record?.baseIndex === undefined) return
  throw fail('VIR_ERR_OPERATION_INVALID', `disk '${disk.target}' is being streamed down to a base; stop that first`)
}

interface NewBase {
  image: StorageSource
  /** bytes */
  size: number
}

/** Has it been reached, is it of the same format, and where does its chain end? */
async function openNewBase(text: string, old: StorageSource): Promise<NewBase> {
  const parsed = parseBackingString(text)
  const { format = 'raw' } = old
  if (parsed.format !== undefined && parsed.format !== format)
    throw fail('VIR_ERR_INVALID_ARG', `base '${text}' has format '${parsed.format}', not '${format}' as the one before`)
  const image = await onThisHost({ ...parsed, format })
  if (Buffer.byteLength(formatBackingString(image)) > MAX_BACKING_STRING)
    throw fail('VIR_ERR_INVALID_ARG', `base '${text}' has a name that is too long for the header of an image`)
  if (image.type === 'network' && old.type === 'network' && old.reconnectDelay !== undefined)
    image.reconnectDelay = old.reconnectDelay
  const problem = await linkProblem(image)
  if (problem !== undefined) throw fail('VIR_ERR_OPERATION_FAILED', `base '${text}' does not answer: ${problem}`)
  const { virtualSize: size } = await probeImage(image, { timeout: PROBE_TIMEOUT })
  await resolveBackingChain(image, { timeout: PROBE_TIMEOUT })
  return { image, size }
}

async function onThisHost(image: StorageSource): Promise<StorageSource> {
  if (image.type !== 'file') return image
  const isDisk = await stat(image.path).then(
    (stats) => stats.isBlockDevice(),
    () => false,
  )
  return isDisk ? { ...image, type: 'block' } : image
}

function requireSize(fresh: NewBase, size: number | undefined, old: StorageSource): void {
  if (size === undefined || fresh.size === size) return
  const text = `base '${formatBackingString(fresh.image)}' has ${fresh.size} bytes, '${formatBackingString(old)}' has ${size}`
  throw fail('VIR_ERR_INVALID_ARG', text)
}

/** As QEMU knows it, which does not ask a base that is away. */
async function sizeOf(host: StreamHost, image: StorageSource): Promise<number | undefined> {
  const nodes = (await host.monitor.passThrough('query-named-block-nodes', { flat: true })) as {
    'node-name': string
    image: { 'virtual-size': number }
  }[]
  return nodes.find((node) => node['node-name'] === formatNodeName(image))?.image['virtual-size']
}

/** No process has the images open: the header and the definition are changed. */
async function setBaseAtRest(
  qemu: Qemu,
  vm: Vm,
  def: DomainDef,
  disk: DiskDef,
  text: string,
  image: string | undefined,
): Promise<void> {
  if (disk.source !== undefined && !disk.source.backingStore) await resolveOffline(def, disk)
  const old = chooseImage(disk, image)
  refuseSaved(qemu, vm, disk)
  const parent = chainOf(disk).find((candidate) => candidate.backingStore === old)
  const fresh = await openNewBase(text, old)
  const size = await probeImage(old, { timeout: PROBE_TIMEOUT }).then(
    ({ virtualSize }) => virtualSize,
    () => undefined,
  )
  requireSize(fresh, size, old)
  if (parent === undefined) return
  const replacing = replacingOf(vm, disk, { moved: true, timeoutBefore: disk.baseTimeout, stale: false })
  parent.backingStore = fresh.image
  // images further down may be below other disks as well: only the definition changes
  const own = parent === disk.source
  const runDir = own && replacing !== undefined ? saveAtRest(qemu.root, vm, def, replacing) : undefined
  const config = vm.requireConfig()
  const restore = writeConfigChain(config, disk)
  try {
    if (restore !== undefined) saveConfig(qemu.root, config)
    if (own) await rebaseHeader(parent, fresh.image)
  } catch (error) {
    restore?.()
    if (restore !== undefined) saveConfig(qemu.root, config)
    throw error
  } finally {
    if (runDir !== undefined) removeRunDir(runDir)
  }
}
