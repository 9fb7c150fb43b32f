/**
 * The destination's side of `writeBack`: what the guest writes here goes to the source's images as well, before the guest
 * hears that it is done, until all of its disks are here. QEMU has one job on a disk at a time, so the blocks are pulled by
 * our own requests meanwhile, and the links to the source stay until the mirrors have ended.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { failFrom, messageOf } from '../../error.js'
import type { Incoming } from './incoming.js'
import { beginMirror, dropMirrors, endMirrors, jobsOf, mirrorsReady } from './mirror.js'
import { disksSocket } from './record.js'
import { disksLeft } from './target-disks.js'
import { backName } from '../blocks/nbd-exports.js'
import type { Qemu } from '../core/qemu.js'
import type { Live, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms between two looks whether all disks are here */
const POLL = 250

/** Under the domain's job, before the guest runs here. */
export async function beginWriteBack(qemu: Qemu, incoming: Incoming, live: Live): Promise<void> {
  const { record, migrated } = incoming
  if (record.params.writeBack !== true) return
  // QEMU would stand still until it is connected
  requireSource(incoming)
  const socket = disksSocket(qemu.root, record.id)
  for (const [disk, job] of await jobsOf(live.monitor, migrated))
    if (job === undefined)
      await beginMirror(live.monitor, disk, {
        ...{ socket, sync: 'none', synchronous: true, lasting: true },
        name: backName(disk.target),
      })
  await mirrorsReady(live.monitor, migrated, () => requireSource(incoming))
  record.writeBack = 'on'
}

function requireSource({ messages, record }: Incoming): NonNullable<Incoming['messages']> {
  if (messages === undefined)
    throw fail('VIR_ERR_OPERATION_FAILED', `the source of domain '${record.name}', '${record.peer}', cannot be reached`)
  return messages
}

/**
 * All of a disk has been pulled: it may let go of the source as soon as that is so of every disk, and their mirrors have
 * ended. Resolves at once where nothing is written back.
 */
export async function untilAllMoved(qemu: Qemu, vm: Vm, target: string, isAborted: () => boolean): Promise<void> {
  const incoming = qemu.incomingsOf(vm).find((incoming) => incoming.writesBack())
  if (incoming === undefined) return
  incoming.pulled.add(target)
  let problem: string | undefined
  while (incoming.writesBack() && !isAborted()) {
    try {
      const left = await disksLeft(incoming)
      if (left.every((disk) => incoming.pulled.has(disk)))
        await vm.jobs.run('migrate', () => endWriteBack(incoming), Infinity)
    } catch (error) {
      if (messageOf(error) !== problem) qemu.warn(`domain '${vm.name}' still writes to its source: ${messageOf(error)}`)
      problem = messageOf(error)
    }
    if (incoming.writesBack()) await delay(POLL, undefined, { ref: false })
  }
}

/** Under the domain's job. VIR_ERR_OPERATION_FAILED while the source cannot be told: its images would count as what they are not. */
async function endWriteBack(incoming: Incoming, broken = false): Promise<void> {
  const { vm, migrated } = incoming
  if (!incoming.writesBack()) return
  await requireSource(incoming).request('write-back-over', {}, { timeout: 10_000 })
  if (vm.live !== undefined) await (broken ? dropMirrors(vm, vm.live, migrated) : finishMirrors(vm, vm.live, migrated))
  incoming.endWriteBack()
}

/** Some may have been ended by a process that did not live to write it down. */
async function finishMirrors(vm: Vm, live: Live, disks: Incoming['migrated']): Promise<void> {
  const jobs = await jobsOf(live.monitor, disks)
  const [going, gone] = [disks.filter((disk) => jobs.get(disk)), disks.filter((disk) => !jobs.get(disk))]
  await endMirrors(live.monitor, going)
  await dropMirrors(vm, live, gone)
}

/** Once a second: a mirror that has failed is the end of it all, and the source has to hear of that. */
export async function watchWriteBack(qemu: Qemu, incoming: Incoming): Promise<void> {
  const { vm } = incoming
  if (!incoming.writesBack() || vm.live === undefined || (await areMirrored(vm.live, incoming))) return
  await vm.jobs.run('migrate', async () => {
    if (!incoming.writesBack() || vm.live === undefined || (await areMirrored(vm.live, incoming))) return
    await endWriteBack(incoming, true)
    qemu.warn(`domain '${vm.name}': what it writes does not go to its source any more, a write there failed`)
  })
}

async function areMirrored({ monitor }: Live, { migrated }: Incoming): Promise<boolean> {
  const jobs = [...(await jobsOf(monitor, migrated)).values()]
  return jobs.every((job) => job !== undefined && job.status !== 'concluded' && job.error === undefined)
}

/** Under the domain's job: a QEMU that is about to start here would write what its source does not get. */
export async function leaveWriteBack(qemu: Qemu, vm: Vm): Promise<void> {
  for (const incoming of qemu.incomingsOf(vm)) await endWriteBack(incoming)
}

/** Under the domain's job, the guest stands still: it stays here after all. What it writes goes on going to its source, or never again. */
export async function keepWriteBack(incoming: Incoming, live: Live): Promise<void> {
  const { record, migrated } = incoming
  if (record.writeBack === 'on' && (await areMirrored(live, incoming))) return
  if (record.writeBack === 'on') {
    await requireSource(incoming).request('write-back-over', {}, { timeout: 10_000 })
    incoming.endWriteBack()
  }
  await dropMirrors(incoming.vm, live, migrated)
}

/** Under the domain's job, the guest stands still: the source has given this side up, and knows what its images are. */
export async function stopWritingBack(incoming: Incoming, live: Live): Promise<void> {
  if (incoming.record.writeBack !== 'on') return
  await dropMirrors(incoming.vm, live, incoming.migrated)
  incoming.endWriteBack()
}
