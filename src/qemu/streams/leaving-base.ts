/**
 * A server that shuts down may answer each request with ESHUTDOWN until its clients have gone (nbdkit does), and QEMU, which
 * stays, takes that for an I/O error. Here it is an outage like any other: streams wait until they can go on, and a guest
 * that QEMU has paused goes on by itself.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { DiskDef } from '../../conf/domain-def.js'
import { NbdError } from '../../nbd/error.js'
import { isBroken, resumeGuest } from './base-timeout.js'
import { baseProblem, isNbd, remoteImages } from '../blocks/link-watch.js'
import type { Qemu } from '../core/qemu.js'
import { isServed } from './stand-in.js'
import type { Live, StreamHost, Vm } from '../core/vm.js'

/** what a stream says that waits for it */
export const BASE_LEAVES = 'the base does not answer: its server is shutting down'

/** strerror(ESHUTDOWN), as an event of QEMU has it */
const LEAVES = 'Cannot send after transport endpoint shutdown'
/** ms between two looks for a server that has gone, or is back */
const LOOK_INTERVAL = 1_000
/** bytes that are asked for to find out what the base says */
const PROBE_LENGTH = 4096

/** QEMU's job was stopped by an error at `offset`, and says of none which it was: the same is asked once more. */
export async function isBaseLeaving(host: StreamHost, disk: DiskDef | undefined, offset: number): Promise<boolean> {
  if (disk === undefined || remoteImages(disk).length === 0) return false
  try {
    const client = await host.exports.open(disk)
    await client.cache(offset, Math.min(PROBE_LENGTH, client.size - offset))
    return false
  } catch (error) {
    return error instanceof NbdError && error.code === 'ESHUTDOWN'
  }
}

/** The guest was paused by an I/O error of `disk`; `reason` is QEMU's word for it. */
export function resumeWhenBaseIsBack(qemu: Qemu, vm: Vm, live: Live, disk: DiskDef | undefined, reason: string): void {
  if (reason !== LEAVES || disk === undefined || live.awaitsBase === true) return
  if (remoteImages(disk).length === 0 || disk.baseTimeout !== undefined) return
  live.awaitsBase = true
  qemu.inBackground(`the guest of domain '${vm.name}', whose base was shutting down`, () =>
    waitAndResume(qemu, vm, live, disk).finally(() => {
      live.awaitsBase = false
    }),
  )
}

async function waitAndResume(qemu: Qemu, vm: Vm, live: Live, disk: DiskDef): Promise<void> {
  for (;;) {
    await delay(LOOK_INTERVAL, undefined, { ref: false })
    if (vm.live !== live || live.monitor.isClosed) return
    if (!isBroken(vm)) {
      if (live.pauseReason === undefined) return
      // QEMU waits for other requests before it says that the guest stands still
      continue
    }
    if (await isStillLeaving(disk)) continue
    const resume = async (): Promise<void> => {
      if (vm.live === live && isBroken(vm)) await resumeGuest(vm, live)
    }
    const refusal = await vm.jobs.run('settle', resume, Infinity).then(
      () => undefined,
      (error: unknown) => error,
    )
    if (refusal === undefined) return
    qemu.host.logger.debug({ err: refusal }, `domain '${vm.name}' cannot go on yet`)
  }
}

/** Once it is gone QEMU connects again as soon as it can, and requests wait for that. */
async function isStillLeaving(disk: DiskDef): Promise<boolean> {
  if ((await baseProblem(disk)) !== undefined) return false
  for (const image of remoteImages(disk)) if (isNbd(image) && !(await isServed(image))) return true
  return false
}
