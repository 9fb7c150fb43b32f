/** The QEMU of a guest that has moved on is gone before its disks were: a storage daemon serves them in its place. */
import * as c from '../../constants.gen.js'
import { messageOf } from '../../error.js'
import { storageOf } from './flags.js'
import { holdImages } from './image-hold.js'
import { openOffline } from '../streams/offline.js'
import type { Outgoing } from './outgoing.js'
import { terminate } from '../monitor/process.js'
import type { Qemu } from '../core/qemu.js'

/** ms until what could not be served is tried again */
const RETRY = 2_000

const isServing = ({ record }: Outgoing): boolean => record.phase === 'serving' || record.phase === 'switched'

/** Whatever ended the QEMU: the guest at the destination only waits for its blocks meanwhile. */
export function serveAgainLater(qemu: Qemu, outgoing: Outgoing): void {
  const { vm, record } = outgoing
  // the rest of the guest's memory went with it, and nothing else is served
  if (storageOf(record.flags) !== 'stream' && record.phase === 'serving') outgoing.forget()
  if (
    storageOf(record.flags) !== 'stream' ||
    !isServing(outgoing) ||
    record.def === undefined ||
    record.disks.length === 0
  )
    return
  const attempt = async (): Promise<void> => {
    if (isServing(outgoing) && vm.host === undefined) await serve(qemu, outgoing)
  }
  qemu.inBackground(`serving the disks of domain '${vm.name}'`, async () => {
    try {
      await outgoing.underJob(attempt)
    } catch (error) {
      setTimeout(() => serveAgainLater(qemu, outgoing), RETRY).unref()
      throw error
    }
  })
}

/**
 * Under the domain's job, the guest has gone: with `serve: 'external'` its QEMU ends as soon as it has no memory to give any
 * more, and a storage daemon is in its place from now on. Done already: nothing is done.
 */
export async function serveAside(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { vm, record } = outgoing
  if (record.params.serve !== 'external' || record.phase !== 'serving' || record.memoryFollows === true) return
  if (vm.live !== undefined) {
    vm.live.exitCause = { reason: c.VIR_DOMAIN_SHUTOFF_MIGRATED, detail: c.VIR_DOMAIN_EVENT_STOPPED_MIGRATED }
    await terminate(vm.live.process, vm.live.ended, false)
  }
  // what fails now is tried again until it succeeds: the end of QEMU has begun that
  if (vm.host === undefined) await serve(qemu, outgoing).catch((error: unknown) => qemu.warn(messageOf(error)))
}

/** Under the domain's job, nobody has the images open: a storage daemon serves them from now on. */
export async function serve(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { vm, record } = outgoing
  const def = structuredClone(record.def)
  if (def === undefined) return
  def.interfaces = []
  try {
    for (const { disk: target } of record.disks) {
      const disk = def.disks.find((candidate) => candidate.target === target)
      if (disk === undefined) continue
      const daemon = await openOffline(qemu, vm, def, disk)
      await daemon.exports.serve(disk)
      if (record.writeBack === 'on') await daemon.exports.serveBack(disk, { writethrough: true })
      // images of other formats are locked by being open
      else if (disk.source?.format === 'raw') await holdImages(daemon, [disk], (text) => qemu.warn(text))
    }
  } catch (error) {
    await stopServing(qemu, outgoing)
    throw error
  }
  if (record.params.serve !== 'external')
    qemu.warn(`the QEMU of domain '${vm.name}' is gone: a storage daemon serves its disks to '${record.peer}'`)
}

/** The disks have gone over, or are not to any more. */
export async function stopServing(qemu: Qemu, { vm }: Outgoing): Promise<void> {
  if (vm.offline === undefined) return
  await terminate(vm.offline.process, vm.offline.ended, false).catch((error: unknown) => qemu.warn(messageOf(error)))
  vm.state = { state: c.VIR_DOMAIN_SHUTOFF, reason: c.VIR_DOMAIN_SHUTOFF_MIGRATED }
}
