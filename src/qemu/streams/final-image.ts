/**
 * Disks that are streamed and end as raw images. A raw image cannot lack blocks, so the guest runs on a temporary overlay
 * beside it, from which QEMU mirrors all into the raw image: what comes from the source and what the guest writes. When both
 * hold the same, the guest's writes stand still for a moment, it is written down that the raw image is the disk now, and QEMU
 * goes over to it.
 */
import { rmSync } from 'node:fs'
import type { DiskDef, DomainDef, StorageSource } from '../../conf/domain-def.js'
import { failFrom, messageOf } from '../../error.js'
import { formatNode, formatNodeName, imageNodes, imageOptions, storageNodeName } from '../../machine/blockdev.js'
import { Undo } from '../../util/undo.js'
import { chainBelow, deleteNodes, nextIndex } from '../blocks/block-graph.js'
import type { BlockJob } from '../blocks/blockjob.js'
import { saveConfig } from '../core/config.js'
import { whileHalted } from '../core/halt.js'
import type { Incoming } from '../migration/incoming.js'
import type { BlockStreamArguments } from '../monitor/types.js'
import type { Qemu } from '../core/qemu.js'
import { saveStatus } from '../core/status.js'
import type { StreamHost, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** At the destination of a migration: a disk that will be a raw image. */
export interface FinalImage {
  /** target dev */
  disk: string
  image: StorageSource
  /** path of the overlay that the guest runs on until then */
  overlay: string
  /** it is that image now, the overlay is worth nothing any more */
  done?: boolean
}

export const isRaw = (source: StorageSource): boolean => (source.format ?? 'raw') === 'raw'

interface Found {
  incoming: Incoming
  final: FinalImage
}

function find(qemu: Qemu, vm: Vm, target: string): Found | undefined {
  for (const incoming of qemu.incomingsOf(vm))
    for (const final of incoming.record.finals ?? []) if (final.disk === target) return { incoming, final }
  return undefined
}

function findPending(qemu: Qemu, vm: Vm, target: string): Found | undefined {
  const found = find(qemu, vm, target)
  return found?.final.done === true ? undefined : found
}

/** Is the disk to become a raw image that it is not yet? */
export function becomesRaw(qemu: Qemu, vm: Vm, target: string): boolean {
  return findPending(qemu, vm, target) !== undefined
}

/** Begins the job that fills the raw image, in the place of block-stream. False: the disk stays what it is. */
export async function beginFinal(
  qemu: Qemu,
  vm: Vm,
  host: StreamHost,
  disk: DiskDef,
  job: Pick<BlockStreamArguments, 'job-id' | 'speed' | 'filter-node-name'>,
): Promise<boolean> {
  const found = findPending(qemu, vm, disk.target)
  if (found === undefined || disk.source === undefined) return false
  const { image } = found.final
  image.index = nextIndex(host.def, host.guards)
  found.incoming.save()
  await using undo = new Undo()
  const as = { ...disk, source: image }
  await host.access.grantImage(as, image)
  undo.add(() => host.access.revokeImages(as, [image]))
  // what the source does not hold is not to take room here
  const options = { ...imageOptions(as, image), detectZeroes: 'unmap' as const, discard: 'unmap' as const }
  for (const node of imageNodes(image, 'own', options)) {
    await host.monitor.blockdevAdd(node)
    undo.add(() => host.monitor.blockdevDel(node['node-name']))
  }
  await host.monitor.run('blockdev-mirror', {
    ...{ ...job, device: formatNodeName(disk.source), target: formatNodeName(image), sync: 'full' },
    ...{ 'on-source-error': 'stop', 'on-target-error': 'stop', 'copy-mode': 'write-blocking' },
    ...{ 'auto-finalize': false, 'auto-dismiss': false },
  })
  undo.commit()
  return true
}

/**
 * Under the domain's job: tells QEMU to cancel the job of a stream. The guest's own writes go through one that fills a raw image.
 * VIR_ERR_OPERATION_FAILED when the guest would have to wait for a host that is away.
 */
export async function cancelStream(qemu: Qemu, vm: Vm, host: StreamHost, { record }: BlockJob): Promise<void> {
  const cancel = (): Promise<unknown> => host.monitor.jobCancel(record.id)
  const pending = findPending(qemu, vm, record.disk)
  if (host.mode !== 'full' || pending === undefined) {
    await cancel()
    return
  }
  const { incoming } = pending
  await whileHalted(vm, host, cancel, () => {
    if (incoming.relay?.tunnel !== undefined) return
    const text = `the stream of disk '${record.disk}' can be stopped when '${incoming.record.peer}', which has the disk, is connected again`
    throw fail('VIR_ERR_OPERATION_FAILED', text)
  })
}

/** The job has done its work and the guest's writes stand still: the raw image is the disk from here on. */
export function writeDownFinal(qemu: Qemu, vm: Vm, host: StreamHost, job: BlockJob): boolean {
  const found = find(qemu, vm, job.record.disk)
  if (found === undefined) return false
  const { incoming, final } = found
  if (final.done !== true) {
    const own = host.def.disks.find(({ target }) => target === final.disk)?.source
    if (own !== undefined) incoming.formers.set(final.disk, own)
    final.done = true
    try {
      incoming.save()
    } catch (error) {
      final.done = false
      throw error
    }
  }
  applyFinals(qemu, incoming)
  replaceIn(host.def, final, final.image)
  saveStatus(vm, host)
  return true
}

/** Definitions follow what has been written down. */
export function applyFinals(qemu: Qemu, { vm, record }: Incoming): void {
  for (const final of record.finals ?? []) {
    if (final.done !== true) continue
    const image = structuredClone(final.image)
    delete image.index
    if (record.def !== undefined) replaceIn(record.def, final, image)
    if (vm.config !== undefined && replaceIn(vm.config, final, image)) saveConfig(qemu.root, vm.config)
  }
}

function replaceIn(def: DomainDef, { disk: target, overlay }: FinalImage, image: StorageSource): boolean {
  const disk = def.disks.find((candidate) => candidate.target === target)
  if (disk?.source?.type !== 'file' || disk.source.path !== overlay) return false
  disk.source = structuredClone(image)
  return true
}

/** Under the domain's job, the job of the disk has ended: one of the two images is let go of. */
export async function settleFinal(qemu: Qemu, vm: Vm, host: StreamHost, disk: DiskDef): Promise<void> {
  const found = find(qemu, vm, disk.target)
  if (found === undefined) return
  const { incoming, final } = found
  const warn = (text: string): void => qemu.warn(`domain '${vm.name}': ${text}`)
  if (final.done !== true) {
    await letGo(host, { ...disk, source: final.image }, [final.image], warn)
    return
  }
  const former = incoming.formers.get(disk.target)
  if (former !== undefined) await letGo(host, { ...disk, source: former }, [former, ...chainBelow(former)], warn)
  rmSync(final.overlay, { force: true })
  const { source } = disk
  if (host.mode === 'full' && source !== undefined)
    await host.monitor
      .blockdevReopen(formatNode(source, { ...imageOptions(disk, source), backing: null }))
      .catch((error: unknown) => warn(messageOf(error)))
}

async function letGo(
  host: StreamHost,
  disk: DiskDef,
  [own, ...below]: StorageSource[],
  warn: (text: string) => void,
): Promise<void> {
  if (own?.index === undefined) return
  for (const name of [formatNodeName(own), storageNodeName(own)])
    await host.monitor.blockdevDel(name).catch((error: unknown) => warn(`node '${name}' is left: ${messageOf(error)}`))
  await deleteNodes(host.monitor, host.guards, disk, below, warn)
  await host.access.revokeImages(disk, [own, ...below])
}

/** Numbers of images that are the targets of jobs, and so belong to a host though no disk names them. */
export function finalIndexes(qemu: Qemu, vm: Vm): (number | undefined)[] {
  return qemu.incomingsOf(vm).flatMap(({ record }) => (record.finals ?? []).map(({ image }) => image.index))
}
