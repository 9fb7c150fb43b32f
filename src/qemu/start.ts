/** From a definition to a running QEMU, and back to nothing when a step fails. */
import { rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { DomainDef } from '../conf/domain-def.js'
import * as c from '../constants.gen.js'
import type { ProcessExit, ProcessWatch } from '../native.js'
import type { QmpEvent } from '../qmp/framing.js'
import { processStartTime } from '../util/process-start-time.js'
import { Undo } from '../util/undo.js'
import { Access } from './access.js'

import { type Guards, initialGuards } from './block-graph.js'
import { BlockJobs } from './blockjob.js'
import type { QemuCapabilities } from './capabilities.js'
import { buildCommand, commandEnvironment, commandSecretFiles } from './command.js'
import { beginBootStreams } from './boot-streams.js'
import { configure } from './configure.js'
import { emitLifecycle } from './emit.js'
import { handleEvent } from './events.js'
import { finalizeLater } from './finalize.js'
import { finishLive } from './exit.js'
import { makeVariableStore } from './firmware.js'
import { carryStreams } from './moved-streams.js'
import type { Monitor, MonitorEvents } from './monitor.js'
import { prepareLive } from './prepare-live.js'
import { NbdExports } from './nbd-exports.js'
import { freeVncPorts } from './ports.js'
import { killHard, launch, qemuDir } from './process.js'
import type { Qemu } from './qemu.js'
import { settleLater } from './settle.js'
import { createTap, deleteTap } from './tap.js'
import { removeRunDir, saveStarting, saveStatus } from './status.js'
import { requireAtHome } from './vm-job.js'
import type { Live, Vm } from './vm.js'

export interface StartOptions {
  /** leave the guest stopped */
  paused: boolean
  /** it stands still because it did when it was saved */
  pausedAsSaved?: boolean
  /** QEMU waits for a state that `load` gives it, before the guest's first instruction */
  load?: (monitor: Monitor) => Promise<void>
  /** QEMU waits for a guest that comes from another host later */
  incoming?: true
  /**
   * targets of disks whose own images another host has the locks of still: `Access.setDiskLocks` takes them, before the guest
   * runs
   */
  unlocked?: readonly string[]
}

/** What a monitor and a process say, kept until the running domain that it is about has been put together. */
export class Pending {
  #queue: QmpEvent[] = []
  #live: Live | undefined
  #exit: ProcessExit | undefined
  readonly #qemu: Qemu
  readonly #vm: Vm
  constructor(qemu: Qemu, vm: Vm) {
    this.#qemu = qemu
    this.#vm = vm
  }
  get events(): MonitorEvents {
    return {
      onEvent: (event) => {
        if (this.#live === undefined) this.#queue.push(event)
        else handleEvent(this.#qemu, this.#vm, this.#live, event)
      },
      onClose: (reason) => {
        if (reason !== undefined && this.#live !== undefined) watchLoss(this.#qemu, this.#vm, this.#live)
      },
      onAnomaly: (what) => this.#qemu.warn(`monitor of domain '${this.#vm.name}': ${what}`),
    }
  }
  onExit(exit: ProcessExit): void {
    if (this.#live === undefined) this.#exit = exit
    else finishLive(this.#qemu, this.#vm, this.#live, exit)
  }
  attach(live: Live): void {
    this.#live = live
    for (const event of this.#queue.splice(0)) handleEvent(this.#qemu, this.#vm, live, event)
    // it answered and was gone at once
    if (this.#exit !== undefined) finishLive(this.#qemu, this.#vm, live, this.#exit)
  }
}

/** A monitor connection that ends is the first sign of a QEMU that ends; one that goes on without it is out of control. */
function watchLoss(qemu: Qemu, vm: Vm, live: Live): void {
  const timer = setTimeout(() => {
    if (vm.live !== live) return
    qemu.host.logger.error({ domain: vm.name }, 'QEMU runs on but its monitor connection is lost')
    qemu.host.emit({ kind: 'control-error', domain: vm.ref })
  }, 5_000)
  timer.unref()
}

/** Under the domain's job: starts `source` as the live self of `vm`. Streams that ran without it go on in it. */
export async function startVm(qemu: Qemu, vm: Vm, source: DomainDef, options: StartOptions): Promise<void> {
  requireAtHome(qemu, vm)
  await carryStreams(qemu, vm, () => startQemu(qemu, vm, source, options))
}

async function startQemu(qemu: Qemu, vm: Vm, source: DomainDef, options: StartOptions): Promise<void> {
  await launchQemu(qemu, vm, source, options, async (live) => {
    if (options.load !== undefined) await options.load(live.monitor)
    await begin(qemu, vm, live, options)
  })
}

/**
 * Under the domain's job: a QEMU that waits for a guest from another host. Nobody is told of it yet, and a process that finds
 * it in this state ends it. `unlocked`: see `StartOptions`.
 */
export async function startIncoming(qemu: Qemu, vm: Vm, source: DomainDef, unlocked: readonly string[]): Promise<Live> {
  return launchQemu(qemu, vm, source, { paused: true, incoming: true, unlocked }, () => Promise.resolve())
}

/** A QEMU with everything that is said to it before the guest begins, and then `next`; when that fails none is left. */
async function launchQemu(
  qemu: Qemu,
  vm: Vm,
  source: DomainDef,
  options: StartOptions,
  next: (live: Live) => Promise<void>,
): Promise<Live> {
  const def = structuredClone(source)
  const caps = await qemu.capabilities.get(def.emulator)
  await prepareLive(def, caps)
  const id = qemu.nextId()
  def.id = id
  const live = await bringUp(qemu, vm, def, caps, options).catch((error: unknown) => {
    vm.state = { state: c.VIR_DOMAIN_SHUTOFF, reason: c.VIR_DOMAIN_SHUTOFF_FAILED }
    throw error
  })
  try {
    vm.requireSame(live)
    saveStatus(vm, live)
    await configure(live)
    await next(live)
    return live
  } catch (error) {
    live.exitCause = { reason: c.VIR_DOMAIN_SHUTOFF_FAILED, detail: c.VIR_DOMAIN_EVENT_STOPPED_FAILED }
    killHard(live.process)
    await live.ended
    throw error
  }
}

async function bringUp(
  qemu: Qemu,
  vm: Vm,
  def: DomainDef,
  caps: QemuCapabilities,
  options: StartOptions,
): Promise<Live> {
  const id = def.id ?? 0
  const runDir = qemu.root.runDir(id)
  await using undo = new Undo()
  removeRunDir(runDir)
  undo.add(() => removeRunDir(runDir))
  makeVariableStore(def)
  await freeVncPorts(def)
  const logFile = join(qemu.root.logDir, `${vm.name}.log`)
  const access = new Access(qemu.access, def, (text) => qemu.warn(text))
  access.persist = () => saveStarting(runDir, id, vm, def, access)
  access.leaveLocks(options.unlocked ?? [])
  if (!access.isNothing) access.persist()
  const others = qemu.vms.flatMap((other) => (other.live === undefined ? [] : [other.live.def]))
  const label = await access.grant({ root: qemu.root, runDir, logFile }, others)
  undo.add(() => access.revoke())
  for (const net of def.interfaces) {
    await createTap(net, label.uid)
    undo.add(() => deleteTap(net))
  }
  access.persist()
  const secrets = commandSecretFiles(def, { runDir: qemuDir(runDir) })
  for (const { path, data } of secrets) {
    // never through a link that another user has put there
    writeFileSync(path, data, { mode: 0o600, flag: 'wx' })
    await access.grantRuntime(path)
  }
  const pending = new Pending(qemu, vm)
  const launched = await launch({
    domain: vm.name,
    binary: caps.emulator,
    args: (monitorFd) =>
      buildCommand(def, {
        caps,
        accel: def.virtType === 'kvm' ? 'kvm' : 'tcg',
        monitorFd,
        runDir: qemuDir(runDir),
        listeners: access.listeners,
        ...((options.load ?? options.incoming) && { incoming: 'defer' as const }),
      }),
    env: { LC_ALL: 'C', PATH: process.env['PATH'] ?? '/usr/bin:/bin', ...commandEnvironment(def) },
    runDir,
    logFile,
    listen: (path, backlog) => access.listen(path, backlog),
    inherit: [...access.listeners.values()],
    label,
    gate: await access.gate(),
    events: pending.events,
    onExit: (exit) => pending.onExit(exit),
  })
  access.closeListeners()
  const live = makeLive(qemu, vm, {
    def,
    guards: initialGuards(def, caps),
    id,
    runDir,
    access,
    ...launched,
    startTime: processStartTime(launched.pid) ?? '',
  })
  vm.live = live
  vm.state = { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_STARTING_UP }
  pending.attach(live)
  for (const { path } of secrets) rmSync(path, { force: true })
  undo.commit()
  return live
}

interface LiveParts {
  def: DomainDef
  guards: Guards
  id: number
  runDir: string
  pid: number
  startTime: string
  process: ProcessWatch
  monitor: Monitor
  access: Access
}

/** Puts a running domain together; `ended` resolves once `finishLive` has been through. */
export function makeLive(qemu: Qemu, vm: Vm, parts: LiveParts): Live {
  let resolve!: () => void
  const ended = new Promise<void>((done) => {
    resolve = done
  })
  const live: Live = {
    mode: 'full',
    ...parts,
    blockJobs: new BlockJobs(
      (job) => finalizeLater(qemu, vm, live, job),
      (job) => settleLater(qemu, vm, live, job),
    ),
    exports: new NbdExports(parts.monitor, parts.runDir, (path, backlog) => parts.access.listen(path, backlog)),
    ended,
    markEnded: resolve,
  }
  parts.access.persist = () => saveStatus(vm, live)
  parts.access.pid = parts.pid
  return live
}

async function begin(qemu: Qemu, vm: Vm, live: Live, options: StartOptions): Promise<void> {
  const restored = options.load !== undefined
  const details = restored
    ? { state: c.VIR_DOMAIN_RUNNING_RESTORED, event: c.VIR_DOMAIN_EVENT_STARTED_RESTORED }
    : { state: c.VIR_DOMAIN_RUNNING_BOOTED, event: c.VIR_DOMAIN_EVENT_STARTED_BOOTED }
  if (options.paused) {
    vm.state = { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_USER }
  } else {
    vm.state = { state: c.VIR_DOMAIN_RUNNING, reason: details.state }
    await live.monitor.cont()
  }
  vm.requireSame(live)
  saveStatus(vm, live)
  emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_STARTED, details.event)
  beginBootStreams(qemu, vm, live)
  if (!options.paused) return
  const asSaved = restored && options.pausedAsSaved === true
  const detail = asSaved ? c.VIR_DOMAIN_EVENT_SUSPENDED_RESTORED : c.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED
  emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_SUSPENDED, detail)
}
