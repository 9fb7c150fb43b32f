/** The source's side of moving disks: which of them, and what is done for them before, at and after the switch. */
import type { DiskDef } from '../../conf/domain-def.js'
import type { MigrateParams } from '../../driver.js'
import { failFrom, messageOf } from '../../error.js'
import { joinUnix } from '../../tunnel/join.js'
import type { ChannelRequest } from '../../tunnel/requests.js'
import { isDeviceOf } from '../blocks/block-graph.js'
import { findDisk } from '../blocks/disk-names.js'
import { closeBack, openBack, requireWhole } from './back-nodes.js'
import { releaseImages } from './image-hold.js'
import { keepImages, serveLeaving } from './inactive-images.js'
import { storageOf } from './flags.js'
import { mirrored } from './mirror.js'
import type { MigratedDisk } from '../../migration/cookie.js'
import { nbdSocket } from '../blocks/nbd-exports.js'
import type { Qemu } from '../core/qemu.js'
import type { Live } from '../core/vm.js'
import type { Outgoing } from './outgoing.js'

const fail = failFrom('VIR_FROM_QEMU')

/** What is done for the disks while memory goes over. Each step may fail, and `undo` takes back whatever was done. */
export interface SourceStorage {
  /** the guest runs, its memory has not begun to go over */
  before(): Promise<void>
  /** the guest stands still, and will run elsewhere next */
  atSwitch(): Promise<void>
  /** all of its state has gone over, it runs nowhere yet; may be called again */
  switched(): Promise<void>
  /** the guest stays */
  undo(): Promise<void>
  /** a reader of a disk has come from the destination */
  serve(request: ChannelRequest): Promise<void>
}

/** Whether a disk has something that the destination cannot have by itself. */
const movesAlong = ({ readonly, shareable, source, device }: DiskDef): boolean =>
  !readonly && !shareable && source !== undefined && (device === 'disk' || device === 'lun')

/** The disks that go with the domain. VIR_ERR_INVALID_ARG for a name that is none, VIR_ERR_OPERATION_INVALID for one that can't. */
export async function chooseDisks(live: Live, params: MigrateParams, flags: number): Promise<MigratedDisk[]> {
  if (storageOf(flags) === 'shared') return []
  const { migrateDisks } = params
  const chosen = migrateDisks?.map((name) => findDisk(live.def, name)) ?? live.def.disks.filter(movesAlong)
  const devices = await live.monitor.queryBlock()
  return chosen.map((disk) => {
    if (!movesAlong(disk))
      throw fail('VIR_ERR_OPERATION_INVALID', `disk '${disk.target}' is read-only, shared or empty and cannot be moved`)
    const size = devices.find(({ qdev }) => isDeviceOf(disk, qdev))?.inserted?.image['virtual-size']
    if (size === undefined)
      throw fail('VIR_ERR_OPERATION_INVALID', `QEMU does not say how large disk '${disk.target}' is`)
    return { disk: disk.target, size }
  })
}

/** `live` is undefined where the domain's QEMU is gone and a storage daemon serves in its place. */
export function sourceStorage(qemu: Qemu, outgoing: Outgoing, live: Live | undefined): SourceStorage {
  const makers = { stream: streamed, mirror: mirrored, shared }
  return makers[storageOf(outgoing.record.flags)](qemu, outgoing, live)
}

/** Its QEMU serves what the destination reads, and goes on with that when the guest is gone. */
function streamed(qemu: Qemu, outgoing: Outgoing, live: Live | undefined): SourceStorage {
  const { vm, migrated, record } = outgoing
  const warn = (text: string): void => qemu.warn(`domain '${vm.name}': ${text}`)
  return {
    async before() {
      if (record.params.writeBack === true) migrated.forEach(requireWhole)
      if (live !== undefined) await serveLeaving(live, migrated, await qemu.capabilities.get(live.def.emulator))
    },
    async atSwitch() {
      // what is written to from afar stays locked as it is
      if (record.params.writeBack !== true) await live?.access.setDiskLocks(migrated, 'shared')
    },
    async switched() {
      if (live === undefined) return
      if (record.params.writeBack === true) await openBack(live, migrated)
      else await keepImages(live, migrated, await qemu.capabilities.get(live.def.emulator), warn)
    },
    async undo() {
      if (live === undefined) return
      await releaseImages(live, migrated)
      await live.access.setDiskLocks(migrated, 'held')
      await closeBack(live, migrated, warn)
      for (const { target } of migrated)
        await live.exports.unserve(target).catch((error: unknown) => warn(messageOf(error)))
    },
    async serve(request) {
      const { host } = vm
      // one that is about to end would take the connection and break it; who is refused asks again soon
      if (host === undefined || (host.mode === 'full' && host.exitCause !== undefined))
        request.refuse(`the disks of domain '${vm.name}' are not served now`)
      else await joinUnix(request, nbdSocket(host.runDir))
    },
  }
}

/** The disks whose images both hosts write to, one after the other. */
export const sharedDisks = ({ def }: Live): DiskDef[] => def.disks.filter(movesAlong)

/** The other host sees the same images: only their locks go over. */
function shared(_qemu: Qemu, outgoing: Outgoing, live: Live | undefined): SourceStorage {
  return {
    before: () => Promise.resolve(),
    switched: () => Promise.resolve(),
    async atSwitch() {
      if (live !== undefined) outgoing.record.locks = await live.access.setDiskLocks(sharedDisks(live), 'released')
    },
    async undo() {
      await live?.access.setDiskLocks(sharedDisks(live), 'held')
    },
    serve(request) {
      request.refuse('nothing is served: the images are shared')
      return Promise.resolve()
    },
  }
}
