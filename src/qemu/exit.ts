/** The end of a running domain, whoever brought it about. */
import { existsSync } from 'node:fs'
import * as c from '../constants.gen.js'
import type { ProcessExit } from '../native.js'
import { chainOf, cutConfigChain } from './block-graph.js'
import { saveConfig } from './config.js'
import { emitLifecycle, emitPull } from './emit.js'
import { pidFile } from './process.js'
import type { Qemu } from './qemu.js'
import { removeRunDir } from './status.js'
import { deleteTap } from './tap.js'
import type { ExitCause, Live, Vm } from './vm.js'

const CRASHED: ExitCause = { reason: c.VIR_DOMAIN_SHUTOFF_CRASHED, detail: c.VIR_DOMAIN_EVENT_STOPPED_CRASHED }
const SHUTDOWN: ExitCause = { reason: c.VIR_DOMAIN_SHUTOFF_SHUTDOWN, detail: c.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN }

/** Did QEMU end in good order? Its exit code tells where it was our child; it removes its pid file in any case. */
export function exitedCleanly(exit: ProcessExit, runDir: string): boolean {
  if (exit.signal !== null) return false
  return exit.code === null ? !existsSync(pidFile(runDir)) : exit.code === 0
}

/** The process of `live` is gone: the domain is shut off, its traces are removed, listeners are told. */
export function finishLive(qemu: Qemu, vm: Vm, live: Live, exit: ProcessExit): void {
  if (vm.live !== live) return
  live.monitor.close()
  if (live.access.isNothing) endLive(qemu, vm, live, exit)
  // the domain is there until its images are free again, so that nobody can start it with them in between
  else qemu.inBackground(`undoing what '${vm.name}' was let have`, () => revokeAndEnd(qemu, vm, live, exit))
}

async function revokeAndEnd(qemu: Qemu, vm: Vm, live: Live, exit: ProcessExit): Promise<void> {
  try {
    await live.access.revoke()
  } finally {
    endLive(qemu, vm, live, exit)
  }
}

function endLive(qemu: Qemu, vm: Vm, live: Live, exit: ProcessExit): void {
  const clean = exitedCleanly(exit, live.runDir)
  const cause = live.exitCause ?? (clean ? SHUTDOWN : CRASHED)
  const ref = vm.ref
  live.process.close()
  live.exports.close()
  live.monitor.close()
  vm.live = undefined
  vm.state = { state: c.VIR_DOMAIN_SHUTOFF, reason: cause.reason }
  endStreams(qemu, vm, live, ref, clean)
  removeRunDir(live.runDir)
  for (const net of live.def.interfaces) qemu.inBackground('removing a tap device', () => deleteTap(net))
  if (vm.config === undefined) qemu.remove(vm)
  emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_STOPPED, cause.detail, ref)
  live.markEnded()
}

/** Streams end with their domain. One that had just completed has changed the image, so the definition follows. */
function endStreams(qemu: Qemu, vm: Vm, live: Live, ref: Vm['ref'], clean: boolean): void {
  for (const job of live.blockJobs.all) {
    const disk = live.def.disks.find((candidate) => candidate.target === job.record.disk)
    job.puller?.abort()
    if (disk === undefined) continue
    job.concluded()
    if (job.completed) {
      const base = chainOf(disk).find((image) => image.index === job.record.baseIndex)
      if (cutConfigChain(vm.config, disk, base) && vm.config !== undefined) saveConfig(qemu.root, vm.config)
      emitPull(qemu, vm, disk, c.VIR_DOMAIN_BLOCK_JOB_COMPLETED, undefined, ref)
    } else if (clean) emitPull(qemu, vm, disk, c.VIR_DOMAIN_BLOCK_JOB_CANCELED, undefined, ref)
    else emitPull(qemu, vm, disk, c.VIR_DOMAIN_BLOCK_JOB_FAILED, `QEMU of domain '${vm.name}' is gone`, ref)
  }
}
