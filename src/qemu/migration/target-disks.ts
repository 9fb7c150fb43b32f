/** The destination's side of disks that are streamed after the guest has come. */
import { existsSync, statfsSync } from 'node:fs'
import type { DiskDef, DomainDef, StorageSource } from '../../conf/domain-def.js'
import { VIR_DOMAIN_BLOCK_JOB_FAILED, VIR_MIGRATE_NON_SHARED_INC, VIR_MIGRATE_UNSAFE } from '../../constants.gen.js'
import { failFrom, messageOf } from '../../error.js'
import { createImage, createOverlay, imageInfo } from '../../storage/overlay.js'
import { joinUnix } from '../../tunnel/join.js'
import type { ChannelRequest } from '../../tunnel/requests.js'
import { UnixRelay } from '../../tunnel/relay.js'
import { Undo } from '../../util/undo.js'
import { assignSourceIndexes } from '../../machine/alias.js'
import { addGuard, chainOf } from '../blocks/block-graph.js'
import { formatNode, formatNodeName, imageOptions, storageNode, storageNodeName } from '../../machine/blockdev.js'
import { headerEndsAt } from '../streams/detached.js'
import { emitPull } from '../core/emit.js'
import { type MigrationCookie, thisHost } from '../../migration/cookie.js'
import { isRaw } from '../streams/final-image.js'
import { isFromMigration } from '../blocks/link-watch.js'
import { makeFinal, refuseExisting } from './final.js'
import { storageOf } from './flags.js'
import { SERVICE } from '../../migration/link.js'
import { letReach, listenerFor } from './reach.js'
import { disksSocket, saveRecord } from './record.js'
import { exportName, nbdSocket } from '../blocks/nbd-exports.js'
import type { Qemu } from '../core/qemu.js'
import { isTimeout, untilAnswers } from '../core/standing-still.js'
import { startStream } from '../streams/stream.js'
import type { Live, Vm } from '../core/vm.js'
import type { Incoming } from './incoming.js'

const fail = failFrom('VIR_FROM_QEMU')

const OVERLAY_FORMATS = ['qcow2', 'qed'] as const

/** The disk as the source serves it, seen from here. */
function remoteSource(qemu: Qemu, incoming: Incoming, target: string): StorageSource {
  const socket = disksSocket(qemu.root, incoming.record.id)
  const hosts = [{ transport: 'unix' as const, socket }]
  return { type: 'network', protocol: 'nbd', name: exportName(target), hosts, format: 'raw', backingStore: null }
}

/**
 * Makes the images that will take the disks in. They say in their header what they lack and where that is: whoever opens
 * one before all is there gets it from the source, or an error, and never takes a hole for data.
 */
export async function makeDisks(qemu: Qemu, incoming: Incoming, def: DomainDef): Promise<void> {
  const { record } = incoming
  if (storageOf(record.flags) === 'mirror') await makeMirrors(qemu, incoming, def)
  if (storageOf(record.flags) !== 'stream') return
  const caps = await qemu.capabilities.get(def.emulator)
  if (!caps.hasBlockDriver('quorum'))
    throw fail(
      'VIR_ERR_CONFIG_UNSUPPORTED',
      `QEMU '${caps.emulator}' has no driver 'quorum': disks cannot be streamed safely`,
    )
  for (const { disk: target, size } of record.disks) {
    const disk = def.disks.find((candidate) => candidate.target === target)
    const { path, format } = await placeFor(qemu, record, disk, { target, size })
    refuseExisting(path, target)
    record.made?.push(path)
    saveRecord(qemu.root, record)
    await createOverlay({ path, format, size, backing: remoteSource(qemu, incoming, target), openBacking: false })
    if (disk?.source !== undefined) disk.source.backingStore = null
  }
}

/** Images that will take mirrored disks in; one that lies on top of others which both hosts have is there already. */
async function makeMirrors(qemu: Qemu, { record }: Incoming, def: DomainDef): Promise<void> {
  const incremental = (record.flags & VIR_MIGRATE_NON_SHARED_INC) !== 0
  for (const { disk: target, size } of record.disks) {
    const disk = def.disks.find((candidate) => candidate.target === target)
    const source = disk?.source
    if (source?.type !== 'file')
      throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `disk '${target}' must be a file at the destination`)
    if (incremental) {
      await checkSize(source, size, target)
      continue
    }
    refuseExisting(source.path, target)
    record.made?.push(source.path)
    saveRecord(qemu.root, record)
    await createImage({ path: source.path, format: source.format ?? 'raw', size })
    source.backingStore = null
  }
}

async function checkSize(source: StorageSource & { type: 'file' }, size: number, target: string): Promise<void> {
  if (!existsSync(source.path))
    throw fail(
      'VIR_ERR_OPERATION_FAILED',
      `image '${source.path}' for disk '${target}' has to be there, on its backing image`,
    )
  const { virtualSize } = await imageInfo(source.path, source.format ?? 'raw')
  if (virtualSize !== size)
    throw fail(
      'VIR_ERR_OPERATION_FAILED',
      `image '${source.path}' for disk '${target}' has ${virtualSize} bytes, not ${size}`,
    )
}

/** While QEMU waits for the guest: others may write its disks, which nobody else does yet. */
export async function openDisks(incoming: Incoming, live: Live): Promise<void> {
  if (storageOf(incoming.record.flags) !== 'mirror') return
  for (const disk of incoming.migrated) await live.exports.serve(disk, { writable: true })
}

/** Before the guest runs nobody else writes any more. */
export async function closeDisks(incoming: Incoming, live: Live): Promise<void> {
  if (storageOf(incoming.record.flags) !== 'mirror') return
  for (const { target } of incoming.migrated) await live.exports.unserve(target)
}

/** A mirror of the source wants to write a disk. */
export async function serveMirror({ record, vm }: Incoming, request: ChannelRequest): Promise<void> {
  const { live } = vm
  if (live === undefined || record.phase !== 'incoming')
    request.refuse(`domain '${record.name}' does not wait for its disks`)
  else await joinUnix(request, nbdSocket(live.runDir))
}

/** statfs(2): file systems that several hosts have at once */
const SHARED_FILE_SYSTEMS: ReadonlySet<number> = new Set([
  ...[0x6969, 0xff534d42, 0xfe534d42, 0x7461636f, 0x01161970, 0x00c36400, 0x47504653, 0x0bd00bd0, 0x65735546],
])

/**
 * Without a flag for disks both hosts must see the same images. VIR_ERR_MIGRATE_UNSAFE where they cannot, unless
 * VIR_MIGRATE_UNSAFE says that they do.
 */
export function requireShared(def: DomainDef, { host }: MigrationCookie, flags: number): void {
  if ((flags & VIR_MIGRATE_UNSAFE) !== 0 || host.machineId === thisHost().machineId) return
  for (const { source, readonly, target } of def.disks) {
    if (source?.type !== 'file' || readonly || !existsSync(source.path)) continue
    if (!SHARED_FILE_SYSTEMS.has(statfsSync(source.path).type))
      throw fail('VIR_ERR_MIGRATE_UNSAFE', `disk '${target}' is on a file system of this host alone: '${source.path}'`)
  }
}

async function placeFor(
  qemu: Qemu,
  record: Incoming['record'],
  disk: DiskDef | undefined,
  { target, size }: { target: string; size: number },
): Promise<{ path: string; format: 'qcow2' | 'qed' }> {
  const source = disk?.source
  if (source === undefined)
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `the definition for the destination has no disk '${target}' with a source`)
  if (disk !== undefined && isRaw(source))
    return { path: await makeFinal(qemu, record, disk, source, size), format: 'qcow2' }
  if (source.type !== 'file')
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `disk '${target}' must be a file at the destination, not '${source.type}'`)
  const format = OVERLAY_FORMATS.find((known) => known === source.format)
  if (format === undefined)
    throw fail(
      'VIR_ERR_CONFIG_UNSUPPORTED',
      `disk '${target}' has format '${source.format ?? 'raw'}' at the destination; a disk that is streamed ends as one of ${OVERLAY_FORMATS.join(', ')}, raw`,
    )
  return { path: source.path, format }
}

/** Where the QEMU of `def` finds the source's disks, whatever becomes of the connection. */
export async function openRelay(qemu: Qemu, { record, vm }: Incoming, def: DomainDef): Promise<UnixRelay | undefined> {
  if (storageOf(record.flags) !== 'stream') return undefined
  const { id, key } = record
  return UnixRelay.listen({
    path: disksSocket(qemu.root, id),
    listen: listenerFor(qemu, def),
    service: SERVICE.disks,
    params: { id, key },
    onBroken: (error) => qemu.host.logger.debug({ err: error, domain: vm.name }, 'a connection to a disk broke'),
  })
}

/** While QEMU waits for the guest: its disks get the source's below them. */
export async function attachDisks(qemu: Qemu, incoming: Incoming, live: Live): Promise<void> {
  if (storageOf(incoming.record.flags) !== 'stream') return
  for (const disk of incoming.migrated) {
    const { source } = disk
    if (source === undefined || source.backingStore !== null) continue
    const backing = remoteSource(qemu, incoming, disk.target)
    await using undo = new Undo()
    source.backingStore = backing
    undo.add(() => (source.backingStore = null))
    assignSourceIndexes(live.def, Math.max(...live.def.disks.flatMap((each) => chainOf(each).map((i) => i.index ?? 0))))
    const options = imageOptions(disk, backing)
    await letReach(qemu, live.def, incoming.record.id, disksSocket(qemu.root, incoming.record.id))
    await live.monitor.blockdevAdd(storageNode(backing, options))
    undo.add(() => live.monitor.blockdevDel(storageNodeName(backing)))
    await live.monitor.blockdevAdd(formatNode(backing, { ...options, backing: null }))
    undo.add(() => live.monitor.blockdevDel(formatNodeName(backing)))
    await addGuard(live.monitor, live.guards, disk)
    undo.commit()
  }
}

/** Each as a job of its own; one that fails is told of, and can be begun again by streamDisk(). */
export async function beginStreams(qemu: Qemu, incoming: Incoming): Promise<void> {
  for (const target of await disksLeft(incoming))
    qemu.inBackground(`the stream of '${target}' after a migration`, () => beginStream(qemu, incoming, target))
}

/** A QEMU that stands still meanwhile costs the time that it does: nobody would begin it again. */
async function beginStream(qemu: Qemu, incoming: Incoming, target: string): Promise<void> {
  const { vm, record } = incoming
  const { diskStreamBandwidth: bandwidth, diskStreamEngine: engine } = record.params
  const options = { ...(bandwidth !== undefined && { bandwidth }), ...(engine && { engine }) }
  const isOver = (): boolean => record.phase !== 'streaming' || !qemu.incoming.has(record.id)
  try {
    await vm.jobs.run('stream', async () => {
      if (isOver() || vm.host?.blockJobs.ofDisk(target) !== undefined) return
      if (!(await disksLeft(incoming)).includes(target)) return
      await startStream(qemu, vm, target, { ...options, onShutdown: 'continue' })
    })
  } catch (error) {
    if (isTimeout(error) && vm.live !== undefined && (await untilAnswers(vm.live, isOver)))
      return beginStream(qemu, incoming, target)
    const disk = incoming.migrated.find((candidate) => candidate.target === target)
    if (disk !== undefined) emitPull(qemu, vm, disk, VIR_DOMAIN_BLOCK_JOB_FAILED, messageOf(error))
    throw error
  }
}

/**
 * The disks that still need the source: by what QEMU reads, or else by what is written in the images themselves. Never by
 * a definition, which may be gone, or be another one by now.
 */
export async function disksLeft({ vm, record }: Incoming): Promise<string[]> {
  if (storageOf(record.flags) !== 'stream') return []
  const left: string[] = []
  for (const [index, { disk: target }] of record.disks.entries()) {
    if (record.finals?.some((final) => final.disk === target && final.done === true) === true) continue
    const path = record.made?.[index]
    const open = openDisk(vm, target)
    const isOpen = open?.source?.type === 'file' && open.source.path === path
    const reads = isOpen ? isFromMigration(open) : path === undefined || !(await isWhole(path))
    if (reads) left.push(target)
  }
  return left
}

/** A daemon that streams without a guest has only some of the disks open. */
function openDisk({ live, offline }: Vm, target: string): DiskDef | undefined {
  const host = live ?? (offline?.blockJobs.ofDisk(target) === undefined ? undefined : offline)
  return host?.def.disks.find((candidate) => candidate.target === target)
}

/** It has no backing image any more. */
async function isWhole(path: string): Promise<boolean> {
  for (const format of OVERLAY_FORMATS) if (await headerEndsAt({ type: 'file', path, format }, undefined)) return true
  return false
}
