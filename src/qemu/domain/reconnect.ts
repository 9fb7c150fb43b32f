/** A process that opens a root finds the domains that an earlier one started, with their streams. */
import { existsSync, readFileSync, rmSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import * as c from '../../constants.gen.js'
import { messageOf } from '../../error.js'
import { native } from '../../native.js'
import { processStartTime } from '../../util/process-start-time.js'
import { Access } from '../access/access.js'
import { beginBootStreams } from '../streams/boot-streams.js'
import { chainOf, cutConfigChain } from '../blocks/block-graph.js'
import type { BlockJobRecord } from '../blocks/blockjob.js'
import { catchUpWithJobs } from '../streams/catch-up.js'
import { followCommit, hasEnded } from '../streams/commit-settle.js'
import { saveConfig } from '../core/config.js'
import { headerEndsAt } from '../streams/detached.js'
import { setState } from './events.js'
import { goOn } from '../core/halt.js'
import { makeHost, type Pending } from '../streams/image-host.js'
import { resumeAfterPowerdown } from './lifecycle.js'
import { keepLocks } from './lock-watch.js'
import { settleWithout, standingInForFormer } from '../streams/half-replaced.js'
import { settleMedia } from '../disks/medium.js'
import { MigrationCommands } from '../monitor/migration-commands.js'
import { Monitor } from '../monitor/monitor.js'
import { type Departure, movedStream } from '../streams/moved-streams.js'
import { monitorSocket, pidFile } from '../monitor/process.js'
import type { Qemu } from '../core/qemu.js'
import { untilAnswers } from '../core/standing-still.js'
import { pendingLive } from './start.js'
import { writeHeaders } from '../streams/stale-headers.js'
import { type DomainStatus, idsInUse, loadStatuses, removeRunDir, writeStatus } from '../core/status.js'
import { deleteTap } from './tap.js'
import { forgetUnplugged } from '../disks/unplug.js'
import { type Live, Vm } from '../core/vm.js'

/** ms that a QEMU has to answer to a process that takes it over */
export const TIMEOUT = 10_000
/** ms that one has which may well not answer yet */
const SHORT_TIMEOUT = 1_000
/** looks, and ms between them, at a QEMU that has to go: at the second one it is killed */
const STRAY_TRIES = 20
const STRAY_POLL = 250

/**
 * Takes over every domain whose QEMU still runs; what has died meanwhile is shut off and tidied up. Answers the streams that
 * are to go on, once it is known what runs.
 */
export async function reconnectAll(qemu: Qemu): Promise<Resumption[]> {
  const resumptions: Resumption[] = []
  for (const id of idsInUse(qemu.root)) qemu.noteId(id)
  for (const { status, runDir } of loadStatuses(qemu.root.statusDir, (text) => qemu.warn(text))) {
    const vm = qemu.find(status.uuid) ?? new Vm(status.name, status.uuid)
    try {
      if (wasStarting(status)) {
        await abandonStart(qemu, status, runDir)
        vm.state = { state: c.VIR_DOMAIN_SHUTOFF, reason: c.VIR_DOMAIN_SHUTOFF_FAILED }
      } else if (isAlive(status)) await takeOver(qemu, vm, status, runDir)
      else resumptions.push(...(await tidyUp(qemu, vm, status, runDir)))
    } catch (error) {
      qemu.host.logger.error({ err: error }, `domain '${status.name}' could not be taken over: ${messageOf(error)}`)
    }
  }
  return resumptions
}

/** Streams that no process has now, and where they are written down until one has. */
export interface Resumption {
  vm: Vm
  departure: Departure
}

export function isAlive(status: DomainStatus): status is DomainStatus & { pid: number } {
  return status.pid !== undefined && processStartTime(status.pid) === status.startTime
}

/** Until its start is announced a domain that has a QEMU is in the state 'paused, starting up'. */
function wasStarting({ phase, state }: DomainStatus): boolean {
  return (
    phase === 'starting' || (state.state === c.VIR_DOMAIN_PAUSED && state.reason === c.VIR_DOMAIN_PAUSED_STARTING_UP)
  )
}

/** Our process died while it started this domain: nobody was told that it runs, so it must not. */
export async function abandonStart(qemu: Qemu, status: DomainStatus, runDir: string): Promise<void> {
  const ignore = { onEvent: () => undefined, onClose: () => undefined, onAnomaly: () => undefined }
  if (existsSync(monitorSocket(runDir))) {
    const monitor = await Monitor.connect(monitorSocket(runDir), status.name, ignore, TIMEOUT).catch(() => undefined)
    await monitor?.quit().catch(() => undefined)
    monitor?.close()
  }
  await endStray(qemu, runDir)
  await revokeAccess(qemu, status, runDir)
  for (const net of status.def.interfaces) await deleteTap(net)
  removeRunDir(runDir)
}

/** A QEMU that was told to go, or that does not listen yet: it is gone before what it uses is taken back. */
async function endStray(qemu: Qemu, runDir: string): Promise<void> {
  for (let tries = 0; tries < STRAY_TRIES; tries++) {
    const pid = strayPid(runDir)
    if (pid === undefined) return
    if (tries > 0) process.kill(pid, 'SIGKILL')
    else qemu.warn(`process ${pid} of a start that was broken off is ended`)
    await delay(STRAY_POLL)
  }
}

/** The process that the pid file names, if it is a QEMU of this very directory. */
function strayPid(runDir: string): number | undefined {
  try {
    const pid = Number(readFileSync(pidFile(runDir), 'utf8'))
    const own = readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(`\0${pidFile(runDir)}\0`)
    return own && processStartTime(pid) !== undefined ? pid : undefined
  } catch {
    return undefined
  }
}

/** What an earlier process let a QEMU have that is gone now. */
export async function revokeAccess(qemu: Qemu, status: DomainStatus, runDir: string): Promise<void> {
  if (status.access === undefined) return
  const access = new Access(qemu.access, status.def, (text) => qemu.warn(text), status.access)
  access.persist = () => writeStatus(runDir, status)
  await access.revoke()
}

async function takeOver(qemu: Qemu, vm: Vm, status: DomainStatus & { pid: number }, runDir: string): Promise<void> {
  const { pid, id, def, startTime = '' } = status
  const pending = pendingLive(qemu, vm)
  const from = [...qemu.incoming.values()].find(({ record }) => record.uuid === status.uuid)?.record
  const mayWait = from !== undefined || status.replacing !== undefined
  const monitor = await connect(qemu, status, runDir, pending, mayWait ? SHORT_TIMEOUT : TIMEOUT)
  const process = native.watchProcess(pid, (exit) => pending.onExit(exit))
  const access = new Access(qemu.access, def, (text) => qemu.warn(text), status.access)
  const [guards, staleHeaders] = [new Map(status.guards), new Set(status.staleHeaders)]
  const known = { access, def, guards, staleHeaders, ...halfDone(status) }
  const parts = { ...known, id, runDir, pid, startTime, process, monitor }
  const live = makeHost(qemu, vm, parts, { mode: 'full' })
  if (status.rebooting === true) live.rebooting = true
  if (status.saving !== undefined) live.saving = status.saving
  if (status.halted === true) live.halted = true
  for (const record of status.blockJobs) live.blockJobs.register(record)
  vm.live = live
  vm.state = status.state
  qemu.add(vm)
  pending.attach(live)
  if (monitor.isClosed) return
  // its guest has come before all of its memory: who has the rest of that come does it
  if (from?.memoryFollows !== true) {
    if (monitor.hasAnswered) await catchUp(qemu, vm, live)
    else catchUpLater(qemu, vm, live)
  }
  if (status.booting === true) beginBootStreams(qemu, vm, live)
  await keepLocks(qemu, vm, live)
}

/**
 * A QEMU that does not answer is a running domain all the same: it holds its images, and can be destroyed. It may answer later:
 * it was stopped, or stands still where it misses a page or a block, which it may get when the root is open.
 */
async function connect(
  qemu: Qemu,
  status: DomainStatus,
  runDir: string,
  pending: Pending<Live>,
  timeout: number,
): Promise<Monitor> {
  try {
    return await Monitor.connect(monitorSocket(runDir), status.name, { ...pending.events, patient: true }, timeout)
  } catch (error) {
    qemu.host.logger.error({ err: error, domain: status.name }, 'QEMU runs but does not answer on its monitor')
    return Monitor.lost(status.name)
  }
}

function catchUpLater(qemu: Qemu, vm: Vm, live: Live): void {
  qemu.warn(`QEMU of domain '${vm.name}' does not answer yet`)
  const work = async (): Promise<void> => {
    if (await standingInForFormer(qemu, vm, live, () => untilAnswers(live))) await catchUp(qemu, vm, live)
  }
  const done = work().finally(() => delete live.catchingUp)
  live.catchingUp = done
  qemu.inBackground(`catching up with domain '${vm.name}'`, () => done)
}

/** What happened while nobody watched: the machine's state, jobs that ended or went on. */
export async function catchUp(qemu: Qemu, vm: Vm, live: Live): Promise<void> {
  const { running, status } = await live.monitor.queryStatus()
  if (status === 'shutdown') await resumeAfterPowerdown(qemu, vm, live)
  else if (running && vm.state.state !== c.VIR_DOMAIN_RUNNING)
    setState(qemu, vm, live, c.VIR_DOMAIN_RUNNING, c.VIR_DOMAIN_RUNNING_UNPAUSED)
  else if (!running && vm.state.state === c.VIR_DOMAIN_RUNNING)
    setState(
      qemu,
      vm,
      live,
      PAUSED_STATES[status]?.state ?? c.VIR_DOMAIN_PAUSED,
      PAUSED_STATES[status]?.reason ?? c.VIR_DOMAIN_PAUSED_UNKNOWN,
    )
  if (live.saving !== undefined) await abandonSave(live, live.saving)
  if (live.halted === true) await goOn(vm, live)
  await settleMedia(qemu, vm, live)
  await catchUpWithJobs(qemu, vm, live)
  await forgetUnplugged(qemu, vm, live)
}

/** The process that saved this domain died in the middle: the guest goes on, what was written is good for nothing. */
async function abandonSave(live: Live, { path, resume }: { path: string; resume: boolean }): Promise<void> {
  await new MigrationCommands(live.monitor).cancel()
  rmSync(path, { force: true })
  delete live.saving
  if (resume) await live.monitor.cont()
}

/** QEMU's RunState to ours, of a guest that stands still. */
const PAUSED_STATES: Record<string, { state: number; reason: number }> = {
  'io-error': { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_IOERROR },
  watchdog: { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_WATCHDOG },
  suspended: { state: c.VIR_DOMAIN_PMSUSPENDED, reason: c.VIR_DOMAIN_PMSUSPENDED_UNKNOWN },
  'guest-panicked': { state: c.VIR_DOMAIN_CRASHED, reason: c.VIR_DOMAIN_CRASHED_PANICKED },
}

/** What a process that was killed in the middle of it has written down of a base that was being replaced. */
export function halfDone({ replacing, standIn }: DomainStatus): Pick<DomainStatus, 'replacing' | 'standIn'> {
  return { ...(replacing && { replacing }), ...(standIn !== undefined && { standIn }) }
}

/** The QEMU of this domain died while nobody watched. */
async function tidyUp(qemu: Qemu, vm: Vm, status: DomainStatus, runDir: string): Promise<Resumption[]> {
  const clean = !existsSync(pidFile(runDir))
  const reason = clean ? c.VIR_DOMAIN_SHUTOFF_SHUTDOWN : c.VIR_DOMAIN_SHUTOFF_CRASHED
  // it may have been started again before its streams were under way elsewhere
  if (vm.live === undefined) vm.state = { state: c.VIR_DOMAIN_SHUTOFF, reason }
  await settleWithout(qemu, vm, status)
  const left = await followHeaders(qemu, vm, status)
  await revokeAccess(qemu, status, runDir)
  await writeHeaders(qemu, status.def, status.staleHeaders ?? [])
  for (const net of status.def.interfaces) await deleteTap(net)
  const going =
    clean && (vm.config ?? vm.remains) !== undefined ? left.filter((record) => record.onShutdown === 'continue') : []
  if (going.length === 0) {
    removeRunDir(runDir)
    return []
  }
  const streams = going.map((record) => movedStream(status.def, record, { offset: 0, size: 0 }))
  return [{ vm, departure: { streams, runDir } }]
}

/** Where images have let go of their base though nobody lived to write it down. Answers the streams that had not ended. */
export async function followHeaders(qemu: Qemu, vm: Vm, status: DomainStatus): Promise<BlockJobRecord[]> {
  const left: BlockJobRecord[] = []
  for (const record of status.blockJobs) {
    const disk = status.def.disks.find((candidate) => candidate.target === record.disk)
    const base = disk && chainOf(disk).find((image) => image.index === record.baseIndex)
    if (record.commit !== undefined) {
      if (disk !== undefined && (await hasEnded(status.def, record))) followCommit(qemu, vm, disk, record)
    } else if (disk === undefined || !(await headerEndsAt(disk.source, base))) left.push(record)
    else if (cutConfigChain(vm.config, disk, base) && vm.config !== undefined) saveConfig(qemu.root, vm.config)
  }
  return left
}
