/** The medium of a drive. What it is to be is written down first, so that a later process can bring the drive to that. */
import type { DiskDef, StorageSource } from '../../conf/domain-def.js'
import { failFrom, messageOf } from '../../error.js'
import { diskNodes } from '../../machine/blockdev.js'
import { resolveBackingChain } from '../../storage/chain.js'
import { Undo } from '../../util/undo.js'
import { settleBaseTimeout } from '../streams/base-timeout.js'
import { chainOf, isDeviceOf, nextIndex } from '../blocks/block-graph.js'
import { addDiskNodes, deleteDiskNodes } from '../core/disk-nodes.js'
import type { BlockDevice } from '../monitor/types.js'
import type { Qemu } from '../core/qemu.js'
import { saveStatus, saveStatusOrSay } from '../core/status.js'
import { checkLinks } from '../streams/checks.js'
import type { Live, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

export const isRemovable = ({ device }: DiskDef): boolean => device === 'cdrom' || device === 'floppy'

/** Under the domain's job: `next` comes into the drive, or nothing. When a step fails the former medium is in it. */
export async function changeMedium(
  qemu: Qemu,
  vm: Vm,
  live: Live,
  disk: DiskDef,
  { next, force }: { next: StorageSource | undefined; force: boolean },
): Promise<void> {
  const warn = (text: string): void => qemu.warn(`domain '${vm.name}': ${text}`)
  const former = { ...disk }
  const wanted = withSource(disk, next)
  const guard = live.guards.get(disk.target)
  await using undo = new Undo()
  undo.add(() => setGuard(live, disk, guard))
  if (next !== undefined) await prepare(qemu, live, wanted)
  for (const image of chainOf(wanted)) {
    await live.access.grantImage(wanted, image)
    undo.add(() => live.access.revokeImages(wanted, [image]))
  }
  if (next !== undefined) await addDiskNodes(qemu, live, wanted, undo)
  vm.requireSame(live)
  undo.add(() => {
    setSource(disk, former.source)
    if (vm.live === live) saveStatusOrSay(vm, live, warn)
  })
  setSource(disk, next)
  saveStatus(vm, live)
  undo.add(() => fill(live, former, true))
  await fill(live, disk, force)
  undo.commit()
  const fresh = live.guards.get(disk.target)
  setGuard(live, disk, guard)
  await deleteDiskNodes(qemu, live, former, warn)
  setGuard(live, disk, next === undefined ? undefined : fresh)
  await live.access.revokeImages(former, chainOf(former))
  if (vm.live === live) saveStatusOrSay(vm, live, warn)
}

function withSource(disk: DiskDef, source: StorageSource | undefined): DiskDef {
  const copy = { ...disk }
  setSource(copy, source)
  return copy
}

function setGuard({ guards }: Live, { target }: DiskDef, number: number | undefined): void {
  if (number === undefined) guards.delete(target)
  else guards.set(target, number)
}

async function prepare(qemu: Qemu, live: Live, wanted: DiskDef): Promise<void> {
  if (wanted.source !== undefined) await resolveBackingChain(wanted.source)
  await checkLinks(wanted)
  settleBaseTimeout(wanted, qemu.baseTimeout)
  let index = nextIndex(live.def, live.guards)
  for (const image of chainOf(wanted)) image.index = index++
}

function setSource(disk: DiskDef, source: StorageSource | undefined): void {
  if (source === undefined) delete disk.source
  else disk.source = source
}

/** Brings the drive to what `disk` says; nothing where that is in it. */
async function fill(live: Live, disk: DiskDef, force: boolean): Promise<void> {
  const { monitor } = live
  const drive = await driveOf(live, disk)
  const node = disk.source && diskNodes(disk).device
  if (drive.inserted?.['node-name'] === node && (node !== undefined || drive.inserted === undefined)) return
  const id = drive.qdev ?? ''
  await monitor.blockdevOpenTray(id, force)
  if (drive.inserted !== undefined) await monitor.blockdevRemoveMedium(id)
  if (node !== undefined) await monitor.blockdevInsertMedium(id, node)
  await monitor.blockdevCloseTray(id)
}

async function driveOf(live: Live, disk: DiskDef): Promise<BlockDevice> {
  const drive = (await live.monitor.queryBlock()).find(({ qdev }) => isDeviceOf(disk, qdev))
  if (drive === undefined) throw fail('VIR_ERR_INTERNAL_ERROR', `QEMU has no drive '${disk.target}'`)
  return drive
}

/** A process that finds a running domain: a drive whose medium another one was about to change. */
export async function settleMedia(qemu: Qemu, vm: Vm, live: Live): Promise<void> {
  for (const disk of live.def.disks.filter(isRemovable)) {
    try {
      await fill(live, disk, true)
    } catch (error) {
      qemu.warn(`domain '${vm.name}': the medium of '${disk.target}' does not come into its drive: ${messageOf(error)}`)
      const drive = await driveOf(live, disk).catch(() => undefined)
      if (drive !== undefined && drive.inserted === undefined) setSource(disk, undefined)
    }
  }
}
