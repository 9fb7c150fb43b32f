/**
 * Streams of a domain that does not run: a qemu-storage-daemon has the images open, with the same nodes, jobs and exports
 * as QEMU would. It is there as long as a disk of the domain is streamed, in a session of its own, and outlives us.
 */
import { existsSync, readdirSync } from 'node:fs'
import { dirname, join } from 'node:path'
import type { DiskDef, DomainDef, StorageSource } from '../conf/domain-def.js'
import { failFrom, messageOf } from '../error.js'
import type { ProcessExit, ProcessWatch } from '../native.js'
import { native } from '../native.js'
import type { QmpEvent } from '../qmp/framing.js'
import { resolveBackingChain } from '../storage/chain.js'
import { processStartTime } from '../util/process-start-time.js'
import { Undo } from '../util/undo.js'
import { Access } from './access.js'
import { assignAliases, assignSourceIndexes } from './alias.js'
import { chainOf, deleteNodes, type Guards, sourcePath } from './block-graph.js'
import { type BlockdevOptions, copyOnReadNodeName, diskNodes } from './blockdev.js'
import { BlockJobs } from './blockjob.js'
import { commandEnvironment } from './command.js'
import { endStreams } from './end-streams.js'
import { finalizeLater } from './finalize.js'
import { usersOf } from './image-users.js'
import type { Monitor, MonitorEvents } from './monitor.js'
import { nbdSocket, NbdExports } from './nbd-exports.js'
import { exitedCleanly, launch, terminate } from './process.js'
import type { Qemu } from './qemu.js'
import { settleLater } from './settle.js'
import { removeRunDir, saveStarting, saveStatus } from './status.js'
import type { Daemon, Vm } from './vm.js'

const fail = failFrom('VIR_FROM_QEMU')

const PROGRAM = 'qemu-storage-daemon'

/** The definition that a daemon works with: of devices only disks are of interest. */
export function offlineDefinition(vm: Vm): DomainDef {
  const def = structuredClone(vm.requireConfig())
  assignAliases(def)
  def.interfaces = []
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
  if (existsSync(join(qemu.root.saveDir, `${vm.name}.save`)))
    throw fail(
      'VIR_ERR_OPERATION_INVALID',
      `domain '${vm.name}' has a managed save image, whose definition names the backing images of '${disk.target}'`,
    )
  const daemon = vm.offline ?? (await startDaemon(qemu, vm, def))
  await using undo = new Undo()
  if (daemon.blockJobs.all.length === 0) undo.add(() => terminate(daemon.process, daemon.ended, false))
  for (const image of chainOf(disk)) {
    await daemon.access.grantImage(disk, image)
    undo.add(() => daemon.access.revokeImages(disk, [image]))
  }
  await addNodes(qemu, daemon, disk)
  undo.commit()
  return daemon
}

async function startDaemon(qemu: Qemu, vm: Vm, def: DomainDef): Promise<Daemon> {
  const dir = qemu.root.offlineDir
  const id = Math.max(0, ...readdirSync(dir).map((name) => Number(name) || 0)) + 1
  const runDir = join(dir, String(id))
  await using undo = new Undo()
  const access = new Access(qemu.access, def, (text) => qemu.warn(text))
  access.persist = () => saveStarting(runDir, id, vm, def, access)
  access.persist()
  undo.add(() => removeRunDir(runDir))
  const pending = new PendingDaemon(qemu, vm)
  const exports = native.listenUnix(nbdSocket(runDir), 0o600, 16)
  try {
    const launched = await launch({
      domain: vm.name,
      binary: findProgram(def.emulator),
      args: (monitor) => [
        ...['--nbd-server', `addr.type=fd,addr.str=${exports}`],
        ...['--chardev', `socket,id=monitor,fd=${monitor},server=on,wait=off`],
        ...['--monitor', 'chardev=monitor'],
      ],
      pidOption: '--pidfile',
      env: commandEnvironment(def),
      runDir,
      logFile: join(qemu.root.logDir, `${vm.name}.log`),
      inherit: [exports],
      events: pending.events,
      onExit: (exit) => pending.onExit(exit),
    })
    const startTime = processStartTime(launched.pid) ?? ''
    const daemon = makeDaemon(qemu, vm, { id, def, runDir, access, guards: new Map(), ...launched, startTime })
    pending.attach(daemon)
    vm.offline = daemon
    saveStatus(vm, daemon)
    undo.commit()
    return daemon
  } finally {
    native.close(exports)
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

/** What a daemon's monitor and process say, until and after it has been put together. */
export class PendingDaemon {
  #daemon: Daemon | undefined
  readonly #qemu: Qemu
  readonly #vm: Vm
  constructor(qemu: Qemu, vm: Vm) {
    this.#qemu = qemu
    this.#vm = vm
  }
  get events(): MonitorEvents {
    return {
      // there are no jobs before it is put together
      onEvent: (event: QmpEvent) => void this.#daemon?.blockJobs.take(event),
      onClose: () => undefined,
      onAnomaly: (what) => this.#qemu.warn(`storage daemon of domain '${this.#vm.name}': ${what}`),
    }
  }
  onExit(exit: ProcessExit): void {
    if (this.#daemon !== undefined) finishDaemon(this.#qemu, this.#vm, this.#daemon, exit)
  }
  attach(daemon: Daemon): void {
    this.#daemon = daemon
  }
}

interface DaemonParts {
  id: number
  def: DomainDef
  runDir: string
  pid: number
  startTime: string
  process: ProcessWatch
  monitor: Monitor
  access: Access
  guards: Guards
}

/** Puts a daemon together; `ended` resolves once it is gone and what it had is free. */
export function makeDaemon(qemu: Qemu, vm: Vm, parts: DaemonParts): Daemon {
  let resolve!: () => void
  const ended = new Promise<void>((done) => {
    resolve = done
  })
  const daemon: Daemon = {
    mode: 'offline',
    ...parts,
    blockJobs: new BlockJobs(
      (job) => finalizeLater(qemu, vm, daemon, job),
      (job) => settleLater(qemu, vm, daemon, job),
    ),
    exports: new NbdExports(parts.monitor, parts.runDir, (path, backlog) => parts.access.listen(path, backlog)),
    ended,
    markEnded: resolve,
    release: (disk) => release(qemu, vm, daemon, disk),
  }
  parts.access.persist = () => saveStatus(vm, daemon)
  parts.access.pid = parts.pid
  return daemon
}

async function addNodes(qemu: Qemu, daemon: Daemon, disk: DiskDef): Promise<void> {
  const caps = await qemu.capabilities.get(daemon.def.emulator)
  const { nodes, secrets } = diskNodes(disk, { caps })
  await using undo = new Undo()
  for (const { id, data } of secrets) {
    await daemon.monitor.passThrough('object-add', { 'qom-type': 'secret', id, data })
    undo.add(() => daemon.monitor.passThrough('object-del', { id }))
  }
  for (const node of nodes) {
    // there is no guest whose reads it could copy
    if (node['node-name'] === copyOnReadNodeName(disk)) continue
    await daemon.monitor.blockdevAdd(node).catch((error: unknown) => {
      throw explainRefusal(disk, node, error)
    })
    undo.add(() => daemon.monitor.blockdevDel(node['node-name']))
  }
  undo.commit()
  const backing = disk.source?.backingStore?.index
  if (backing !== undefined && caps.hasBlockDriver('quorum')) daemon.guards.set(disk.target, backing)
}

/** QEMU locks the images that it opens; who has this one is worth knowing. */
function explainRefusal(disk: DiskDef, node: BlockdevOptions, error: unknown): unknown {
  if (!/Failed to get (shared )?"[^"]*" lock|Failed to lock byte/.test(messageOf(error))) return error
  const image = chainOf(disk).find((candidate) => node['node-name'].startsWith(`node-${candidate.index ?? ''}-`))
  return fail('VIR_ERR_RESOURCE_BUSY', `image '${sourcePath(image)}' is in use by ${holders(image)}`, error)
}

function holders(image: StorageSource | undefined): string {
  const path = image === undefined || image.type === 'network' ? undefined : image.path
  const [user] = path === undefined ? [] : usersOf(path)
  return user === undefined ? 'another process' : `process ${user.pid} ('${user.command}')`
}

/** What the daemon had open for `disk` is let go of; without any stream left the daemon ends. */
async function release(qemu: Qemu, vm: Vm, daemon: Daemon, disk: DiskDef): Promise<void> {
  if (daemon.blockJobs.all.length === 0) {
    await terminate(daemon.process, daemon.ended, false)
    return
  }
  const warn = (text: string): void => qemu.warn(`domain '${vm.name}': ${text}`)
  await daemon.exports.remove(disk.target).catch((error: unknown) => warn(messageOf(error)))
  const [own, ...below] = chainOf(disk)
  // the guard hangs between the own image and the one below it
  if (own !== undefined) await deleteNodes(daemon.monitor, new Map(), disk, [own], warn)
  await deleteNodes(daemon.monitor, daemon.guards, disk, below, warn)
  await daemon.access.revokeImages(disk, [...(own === undefined ? [] : [own]), ...below])
  const source = vm.config?.disks.find((candidate) => candidate.target === disk.target)?.source
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
      endStreams(qemu, vm, daemon, daemon.blockJobs.all, vm.ref, lost)
      removeRunDir(daemon.runDir)
    }
    daemon.markEnded()
  }
  if (daemon.access.isNothing) end()
  else
    qemu.inBackground(`undoing what the storage daemon of '${vm.name}' was let have`, () =>
      daemon.access.revoke().finally(end),
    )
}
