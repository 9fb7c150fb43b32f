/**
 * Streams of a domain that does not run: a qemu-storage-daemon has the images open, with the same nodes, jobs and exports
 * as QEMU would. It is there as long as a disk of the domain is streamed, in a session of its own, and outlives us.
 */
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { DiskDef, DomainDef } from '../../conf/domain-def.js'
import { failFrom, messageOf } from '../../error.js'
import type { ProcessExit } from '../../native.js'
import { native } from '../../native.js'
import { resolveBackingChain } from '../../storage/chain.js'
import { processStartTime } from '../../util/process-start-time.js'
import { Undo } from '../../util/undo.js'
import { Access } from '../access/access.js'
import { assignAliases, assignSourceIndexes } from '../../machine/alias.js'
import { chainOf } from '../blocks/block-graph.js'
import { commandEnvironment } from '../../machine/command.js'
import { addDiskNodes, deleteDiskNodes } from '../core/disk-nodes.js'
import { endStreams, noticeEnds } from './end-streams.js'
import { refuseSaved } from '../core/managed-save.js'
import { type HostParts, makeHost, Pending } from './image-host.js'
import { nbdSocket } from '../blocks/nbd-exports.js'
import { exitedCleanly, launch, terminate } from '../monitor/process.js'
import type { Qemu } from '../core/qemu.js'
import { writeHeadersLater } from './stale-headers.js'
import { freeId, removeRunDir, saveStarting, saveStatus } from '../core/status.js'
import type { Daemon, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

const PROGRAM = 'qemu-storage-daemon'

/** The definition that a daemon works with: of devices only disks are of interest. */
export function offlineDefinition(vm: Vm): DomainDef {
  const def = structuredClone(vm.remains ?? vm.requireConfig())
  assignAliases(def)
  def.interfaces = []
  def.serials = []
  def.channels = []
  def.consoles = []
  delete def.os.kernel
  delete def.os.initrd
  delete def.os.dtb
  delete def.os.nvram
  return def
}

/** Fills in the chain of a disk that is to be streamed, and numbers its images. */
export async function resolveOffline(def: DomainDef, disk: DiskDef): Promise<void> {
  if (disk.source === undefined) return
  await resolveBackingChain(disk.source)
  const last = Math.max(0, ...def.disks.flatMap((each) => chainOf(each).map((image) => image.index ?? 0)))
  assignSourceIndexes(def, last)
}

/** Under the domain's job: the daemon of a domain that does not run, with the images of `disk` open in it. */
export async function openOffline(qemu: Qemu, vm: Vm, def: DomainDef, disk: DiskDef): Promise<Daemon> {
  if (vm.live !== undefined) throw fail('VIR_ERR_OPERATION_INVALID', 'domain is running')
  refuseSaved(qemu, vm, disk)
  const running = vm.offline
  const daemon = running ?? (await startDaemon(qemu, vm, def, disk))
  await using undo = new Undo()
  if (running === undefined) undo.add(() => terminate(daemon.process, daemon.ended, false))
  else
    for (const image of chainOf(disk)) {
      await daemon.access.grantImage(disk, image)
      undo.add(() => daemon.access.revokeImages(disk, [image]))
    }
  await addDiskNodes(qemu, daemon, disk, undo)
  undo.commit()
  return daemon
}

/** It may have the images of `disk` from the beginning. */
async function startDaemon(qemu: Qemu, vm: Vm, def: DomainDef, disk: DiskDef): Promise<Daemon> {
  const dir = qemu.root.offlineDir
  const id = freeId(dir)
  const runDir = join(dir, String(id))
  const logFile = join(qemu.root.logDir, `${vm.name}.log`)
  const binary = findProgram(def.emulator)
  await using undo = new Undo()
  const access = new Access(qemu.access, def, (text) => qemu.warn(text))
  access.persist = () => saveStarting(runDir, id, vm, def, access)
  access.persist()
  undo.add(() => removeRunDir(runDir))
  const place = { root: qemu.root.path, runDir, logFile, program: binary }
  const label = await access.grant(place, qemu.runningDefs, [disk])
  undo.add(() => access.revoke())
  const pending = pendingDaemon(qemu, vm)
  const exports = access.listen(nbdSocket(runDir), 16)
  try {
    const launched = await launch({
      domain: vm.name,
      binary,
      args: (monitor) => [
        ...['--nbd-server', `addr.type=fd,addr.str=${exports}`],
        ...['--chardev', `socket,id=monitor,fd=${monitor},server=on,wait=off`],
        ...['--monitor', 'chardev=monitor'],
      ],
      pidOption: '--pidfile',
      env: commandEnvironment(def),
      runDir,
      logFile,
      listen: (path, backlog) => access.listen(path, backlog),
      inherit: [exports],
      label,
      gate: await access.gate([disk]),
      events: pending.events,
      onExit: (exit) => pending.onExit(exit),
    })
    const startTime = processStartTime(launched.pid) ?? ''
    const daemon = makeDaemon(qemu, vm, { id, def, runDir, access, guards: new Map(), ...launched, startTime })
    undo.commit()
    vm.offline = daemon
    pending.attach(daemon)
    await keepStatus(vm, daemon)
    return daemon
  } finally {
    native.close(exports)
  }
}

/** A daemon that no later process would find must not run. */
async function keepStatus(vm: Vm, daemon: Daemon): Promise<void> {
  try {
    if (vm.offline === daemon) saveStatus(vm, daemon)
  } catch (error) {
    await terminate(daemon.process, daemon.ended, false)
    throw error
  }
}

/** Next to the emulator or in PATH. */
function findProgram(emulator: string | undefined): string {
  const dirs = [...(emulator === undefined ? [] : [dirname(emulator)]), ...(process.env['PATH'] ?? '').split(':')]
  const found = [...dirs, '/usr/bin'].map((dir) => join(dir, PROGRAM)).find((path) => existsSync(path))
  if (found !== undefined) return found
  const text = `domain is not running, and '${PROGRAM}', which streams its disks then, is not installed`
  throw fail('VIR_ERR_OPERATION_UNSUPPORTED', text)
}

/** Hears what a daemon says. */
export function pendingDaemon(qemu: Qemu, vm: Vm): Pending<Daemon> {
  return new Pending<Daemon>({
    event: (daemon, event) => void daemon.blockJobs.take(event),
    exit: (daemon, exit) => finishDaemon(qemu, vm, daemon, exit),
    anomaly: (what) => qemu.warn(`storage daemon of domain '${vm.name}': ${what}`),
  })
}

export function makeDaemon(qemu: Qemu, vm: Vm, parts: HostParts): Daemon {
  const daemon: Daemon = makeHost(qemu, vm, parts, {
    mode: 'offline',
    release: (disk) => release(qemu, vm, daemon, disk),
  })
  return daemon
}

/** What the daemon had open for `disk` is let go of; without any stream left the daemon ends. */
async function release(qemu: Qemu, vm: Vm, daemon: Daemon, disk: DiskDef): Promise<void> {
  if (daemon.blockJobs.all.length === 0) {
    await terminate(daemon.process, daemon.ended, false)
    return
  }
  const warn = (text: string): void => qemu.warn(`domain '${vm.name}': ${text}`)
  await daemon.exports.remove(disk.target).catch((error: unknown) => warn(messageOf(error)))
  await deleteDiskNodes(qemu, daemon, disk, warn)
  await daemon.access.revokeImages(disk, chainOf(disk))
  const source = (vm.remains ?? vm.config)?.disks.find((candidate) => candidate.target === disk.target)?.source
  if (source !== undefined) disk.source = structuredClone(source)
  if (vm.offline === daemon) saveStatus(vm, daemon)
}

/** The process is gone. Its streams have ended with it, unless they are about to go on elsewhere. */
function finishDaemon(qemu: Qemu, vm: Vm, daemon: Daemon, exit: ProcessExit): void {
  if (vm.offline !== daemon) return
  const clean = exitedCleanly(exit, daemon.runDir)
  daemon.process.close()
  daemon.exports.close()
  daemon.monitor.close()
  const end = (): void => {
    vm.offline = undefined
    const lost = clean ? undefined : `the storage daemon that streamed disks of domain '${vm.name}' is gone`
    if (daemon.moving !== true) {
      writeHeadersLater(qemu, vm, daemon)
      endStreams(qemu, vm, daemon, daemon.blockJobs.all, vm.ref, lost)
      removeRunDir(daemon.runDir)
      if (!clean) qemu.migrations.daemonDied(vm)
    }
    daemon.markEnded()
  }
  const noticing = noticeEnds(daemon)
  if (daemon.access.isNothing && noticing === undefined) end()
  else
    qemu.inBackground(`undoing what the storage daemon of '${vm.name}' was let have`, () =>
      Promise.resolve(noticing)
        .then(() => daemon.access.revoke())
        .finally(end),
    )
}
