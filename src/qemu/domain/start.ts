/** From a definition to a running QEMU, and back to nothing when a step fails. */
import { rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { DomainDef } from '../../conf/domain-def.js'
import * as c from '../../constants.gen.js'
import { messageOf } from '../../error.js'
import { processStartTime } from '../../util/process-start-time.js'
import { Undo } from '../../util/undo.js'
import { Access } from '../access/access.js'
import { initialGuards } from '../blocks/block-graph.js'
import type { QemuCapabilities } from '../../machine/capabilities.js'
import { busyImage, imagePaths } from '../access/busy-images.js'
import { buildCommand, commandEnvironment, commandSecretFiles } from '../../machine/command.js'
import { beginBootStreams, promiseBootStreams } from '../streams/boot-streams.js'
import { configure } from './configure.js'
import { emitLifecycle } from '../core/emit.js'
import { handleEvent } from './events.js'
import { finishLive } from './exit.js'
import { makeVariableStore } from '../../machine/firmware.js'
import { makeHost, Pending } from '../streams/image-host.js'
import { carryStreams } from '../streams/moved-streams.js'
import type { Monitor } from '../monitor/monitor.js'
import { prepareLive } from './prepare-live.js'
import { withVncPorts } from './ports.js'
import { killHard, launch, qemuDir, recoverySocket } from '../monitor/process.js'
import type { Qemu } from '../core/qemu.js'
import { createTap, deleteTap } from './tap.js'
import { removeRunDir, saveStarting, saveStatus } from '../core/status.js'
import { requireAtHome } from '../core/vm-job.js'
import type { Live, Vm } from '../core/vm.js'

export interface StartOptions {
  /** leave the guest stopped */
  paused: boolean
  /** it stands still because it did when it was saved */
  pausedAsSaved?: boolean
  /** QEMU waits for a state that `load` gives it, before the guest's first instruction */
  load?: (monitor: Monitor) => Promise<void>
  /** QEMU waits for a guest that comes from another host later */
  incoming?: true
  /** its memory may follow it: a monitor for the case that the connection breaks */
  postcopy?: boolean
  /**
   * targets of disks whose own images another host has the locks of still: `Access.setDiskLocks` takes them, before the guest
   * runs
   */
  unlocked?: readonly string[]
}

/** Hears what the QEMU of a domain says. */
export function pendingLive(qemu: Qemu, vm: Vm): Pending<Live> {
  return new Pending<Live>({
    event: (live, event) => handleEvent(qemu, vm, live, event),
    exit: (live, exit) => finishLive(qemu, vm, live, exit),
    loss: (live) => watchLoss(qemu, vm, live),
    anomaly: (what) => qemu.warn(`monitor of domain '${vm.name}': ${what}`),
  })
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
  await qemu.migrations.beforeStart(vm)
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
 * it in this state ends it.
 */
export async function startIncoming(
  qemu: Qemu,
  vm: Vm,
  source: DomainDef,
  options: Pick<StartOptions, 'unlocked' | 'postcopy'> = {},
): Promise<Live> {
  return launchQemu(qemu, vm, source, { paused: true, incoming: true, ...options }, () => Promise.resolve())
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
  await prepareLive(qemu, def, caps)
  const id = qemu.nextId()
  def.id = id
  const live = await withVncPorts(def, () => bringUp(qemu, vm, def, caps, options)).catch((error: unknown) => {
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
  const logFile = join(qemu.root.logDir, `${vm.name}.log`)
  const access = new Access(qemu.access, def, (text) => qemu.warn(text))
  access.persist = () => saveStarting(runDir, id, vm, def, access)
  access.leaveLocks(options.unlocked ?? [])
  if (!access.isNothing) access.persist()
  const label = await access.grant({ root: qemu.root.path, runDir, logFile, program: caps.emulator }, qemu.runningDefs)
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
  const pending = pendingLive(qemu, vm)
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
        ...(options.postcopy === true && { recoverySocket: recoverySocket(runDir) }),
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
  }).catch((error: unknown) => {
    throw busyImage(messageOf(error), imagePaths(def.disks), error) ?? error
  })
  access.closeListeners()
  const startTime = processStartTime(launched.pid) ?? ''
  const guards = initialGuards(def, caps)
  const live = makeHost(qemu, vm, { def, guards, id, runDir, access, ...launched, startTime }, { mode: 'full' })
  vm.live = live
  vm.state = { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_STARTING_UP }
  pending.attach(live)
  for (const { path } of secrets) rmSync(path, { force: true })
  undo.commit()
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
  promiseBootStreams(live)
  saveStatus(vm, live)
  emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_STARTED, details.event)
  beginBootStreams(qemu, vm, live)
  if (!options.paused) return
  const asSaved = restored && options.pausedAsSaved === true
  const detail = asSaved ? c.VIR_DOMAIN_EVENT_SUSPENDED_RESTORED : c.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED
  emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_SUSPENDED, detail)
}
