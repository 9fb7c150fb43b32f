/** A process that opens a root finds the storage daemons that an earlier one started, with their streams. */
import { messageOf } from '../../error.js'
import { native } from '../../native.js'
import { Access } from '../access/access.js'
import { catchUpWithJobs } from '../streams/catch-up.js'
import { keepLocks } from './lock-watch.js'
import { Monitor } from '../monitor/monitor.js'
import { movedStream } from '../streams/moved-streams.js'
import { makeDaemon, pendingDaemon } from '../streams/offline.js'
import { monitorSocket, terminate } from '../monitor/process.js'
import type { Qemu } from '../core/qemu.js'
import { abandonStart, followHeaders, halfDone, isAlive, type Resumption, revokeAccess, TIMEOUT } from './reconnect.js'
import { settleWithout } from '../streams/half-replaced.js'
import { writeHeaders } from '../streams/stale-headers.js'
import { type DomainStatus, loadStatuses, removeRunDir } from '../core/status.js'
import type { Vm } from '../core/vm.js'

/**
 * After the domains: takes over every daemon that still runs; what has died meanwhile is tidied up. Answers the streams that
 * are to go on, once it is known what runs.
 */
export async function reconnectOffline(qemu: Qemu): Promise<Resumption[]> {
  const resumptions: Resumption[] = []
  for (const { status, runDir } of loadStatuses(qemu.root.offlineDir, (text) => qemu.warn(text))) {
    // a transient domain that has moved on is known by its migration only
    const leaving = [...qemu.outgoing.values()].find(({ record }) => record.uuid === status.uuid)
    const vm = qemu.find(status.uuid) ?? leaving?.vm
    try {
      if (status.phase === 'starting') await abandonStart(qemu, status, runDir)
      else if (!isAlive(status)) resumptions.push(...(await tidyUp(qemu, vm, status, runDir)))
      else if (status.phase === 'moving') resumptions.push(...(await finishMove(qemu, vm, status, runDir)))
      else await takeOver(qemu, vm, status, runDir)
    } catch (error) {
      const text = `the storage daemon of domain '${status.name}' could not be taken over: ${messageOf(error)}`
      qemu.host.logger.error({ err: error }, text)
    }
  }
  return resumptions
}

async function takeOver(
  qemu: Qemu,
  vm: Vm | undefined,
  status: DomainStatus & { pid: number },
  runDir: string,
): Promise<void> {
  if (vm === undefined) throw new Error('there is no such domain any more')
  const { pid, id, def, startTime = '' } = status
  const pending = pendingDaemon(qemu, vm)
  const monitor = await Monitor.connect(monitorSocket(runDir), vm.name, pending.events, TIMEOUT)
  const process = native.watchProcess(pid, (exit) => pending.onExit(exit))
  const access = new Access(qemu.access, def, (text) => qemu.warn(text), status.access)
  const guards = new Map(status.guards)
  const staleHeaders = new Set(status.staleHeaders)
  const known = { access, def, guards, staleHeaders, ...halfDone(status) }
  const parts = { ...known, id, runDir, pid, startTime, process, monitor }
  const daemon = makeDaemon(qemu, vm, parts)
  for (const record of status.blockJobs) daemon.blockJobs.register(record)
  vm.offline = daemon
  pending.attach(daemon)
  await keepLocks(qemu, vm, daemon)
  if (vm.offline !== daemon) return
  if (daemon.blockJobs.all.length === 0) await terminate(process, daemon.ended, false)
  else await catchUpWithJobs(qemu, vm, daemon)
}

/** Our process died while the daemon let go of its images. */
async function finishMove(
  qemu: Qemu,
  vm: Vm | undefined,
  status: DomainStatus & { pid: number },
  runDir: string,
): Promise<Resumption[]> {
  let markEnded!: () => void
  const ended = new Promise<void>((resolve) => {
    markEnded = resolve
  })
  const process = native.watchProcess(status.pid, () => markEnded())
  await terminate(process, ended, false)
  process.close()
  return tidyUp(qemu, vm, status, runDir)
}

async function tidyUp(qemu: Qemu, vm: Vm | undefined, status: DomainStatus, runDir: string): Promise<Resumption[]> {
  await revokeAccess(qemu, status, runDir)
  if (vm !== undefined) await settleWithout(qemu, vm, status)
  await writeHeaders(qemu, status.def, status.staleHeaders ?? [])
  const left = vm === undefined ? [] : await followHeaders(qemu, vm, status)
  if (vm === undefined || status.phase !== 'moving') {
    removeRunDir(runDir)
    return []
  }
  const streams = left.map((record) => movedStream(status.def, record, { offset: 0, size: 0 }))
  return [{ vm, departure: { streams, runDir } }]
}
