/** What QEMU tells of a running domain, turned into states of ours and events for listeners. */
import type { ChardevDef, DiskDef } from '../../conf/domain-def.js'
import * as c from '../../constants.gen.js'
import type { QmpEvent } from '../../qmp/framing.js'
import { chainOf, sourcePath } from '../blocks/block-graph.js'
import { copyOnReadNodeName, formatNodeName, storageNodeName } from '../../machine/blockdev.js'
import { emitLifecycle } from '../core/emit.js'
import { resumeWhenBaseIsBack } from '../streams/leaving-base.js'
import type { Qemu } from '../core/qemu.js'
import { saveStatus } from '../core/status.js'
import { onDeviceDeleted, onUnplugRejected } from '../disks/unplug.js'
import type { Live, Vm } from '../core/vm.js'

const textOf = (value: unknown): string => (typeof value === 'string' ? value : '')

type Handler = (qemu: Qemu, vm: Vm, live: Live, data: Record<string, unknown>) => void

/** Sets the state of a domain and writes it down. */
export function setState(qemu: Qemu, vm: Vm, live: Live, state: number, reason: number): void {
  vm.state = { state, reason }
  try {
    saveStatus(vm, live)
  } catch (error) {
    qemu.host.logger.error({ err: error }, `the status of domain '${vm.name}' could not be saved`)
  }
}

/** The event of a pause, by its reason. */
const PAUSE_DETAILS: Record<number, number> = {
  [c.VIR_DOMAIN_PAUSED_IOERROR]: c.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR,
  [c.VIR_DOMAIN_PAUSED_WATCHDOG]: c.VIR_DOMAIN_EVENT_SUSPENDED_WATCHDOG,
  [c.VIR_DOMAIN_PAUSED_MIGRATION]: c.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED,
  [c.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED]: c.VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY_FAILED,
  [c.VIR_DOMAIN_PAUSED_POSTCOPY]: c.VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY,
}

const onStop: Handler = (qemu, vm, live) => {
  const reason = live.pauseReason ?? c.VIR_DOMAIN_PAUSED_UNKNOWN
  delete live.pauseReason
  if (vm.state.state === c.VIR_DOMAIN_CRASHED) return
  setState(qemu, vm, live, c.VIR_DOMAIN_PAUSED, reason)
  const detail = PAUSE_DETAILS[reason] ?? c.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED
  emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_SUSPENDED, detail)
  if (reason === c.VIR_DOMAIN_PAUSED_IOERROR) live.onIoPause?.()
}

const onResume: Handler = (qemu, vm, live) => {
  if (vm.state.state === c.VIR_DOMAIN_RUNNING) return
  setState(qemu, vm, live, c.VIR_DOMAIN_RUNNING, c.VIR_DOMAIN_RUNNING_UNPAUSED)
  emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_RESUMED, c.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED)
}

const onShutdown: Handler = (qemu, vm, live, data) => {
  const guest = data['guest'] === true
  // QEMU stays, paused, where the definition or a reboot wants something else than the end (see `setAction`)
  if (guest && (live.rebooting === true || live.def.onPoweroff === 'restart')) {
    restart(qemu, vm, live)
    return
  }
  if (live.exitCause === undefined && data['reason'] !== 'guest-panic') {
    live.exitCause = { reason: c.VIR_DOMAIN_SHUTOFF_SHUTDOWN, detail: c.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN }
    const detail = guest ? c.VIR_DOMAIN_EVENT_SHUTDOWN_GUEST : c.VIR_DOMAIN_EVENT_SHUTDOWN_HOST
    setState(qemu, vm, live, c.VIR_DOMAIN_SHUTDOWN, c.VIR_DOMAIN_SHUTDOWN_USER)
    emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_SHUTDOWN, detail)
  }
}

/** The guest went down but is to come up again in the same QEMU. */
function restart(qemu: Qemu, vm: Vm, live: Live): void {
  delete live.exitCause
  live.pauseReason = c.VIR_DOMAIN_PAUSED_SHUTTING_DOWN
  qemu.inBackground(`restarting domain '${vm.name}'`, () =>
    vm.jobs.run(
      'modify',
      async () => {
        if (vm.live !== live) return
        if (live.rebooting === true && live.def.onPoweroff === 'destroy')
          await live.monitor.setAction({ shutdown: 'poweroff' })
        live.rebooting = false
        await live.monitor.systemReset()
        await live.monitor.cont()
      },
      Infinity,
    ),
  )
}

const onPanic: Handler = (qemu, vm, live, data) => {
  setState(qemu, vm, live, c.VIR_DOMAIN_CRASHED, c.VIR_DOMAIN_CRASHED_PANICKED)
  emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_CRASHED, c.VIR_DOMAIN_EVENT_CRASHED_PANICKED)
  live.exitCause = { reason: c.VIR_DOMAIN_SHUTOFF_CRASHED, detail: c.VIR_DOMAIN_EVENT_STOPPED_CRASHED }
  if (live.def.onCrash === 'restart' && data['action'] === 'pause') restart(qemu, vm, live)
}

const IO_ERROR_ACTIONS: Record<string, number> = {
  ignore: c.VIR_DOMAIN_EVENT_IO_ERROR_NONE,
  report: c.VIR_DOMAIN_EVENT_IO_ERROR_REPORT,
  stop: c.VIR_DOMAIN_EVENT_IO_ERROR_PAUSE,
}

const onBlockIoError: Handler = (qemu, vm, live, data) => {
  const disk = diskOfNode(live, textOf(data['node-name']))
  const stops = data['action'] === 'stop'
  if (stops) {
    live.pauseReason = c.VIR_DOMAIN_PAUSED_IOERROR
    resumeWhenBaseIsBack(qemu, vm, live, disk, textOf(data['reason']))
  }
  qemu.host.emit({
    kind: 'io-error',
    domain: vm.ref,
    disk: disk?.target ?? '',
    path: sourcePath(disk?.source),
    alias: disk?.alias ?? '',
    action: IO_ERROR_ACTIONS[String(data['action'])] ?? c.VIR_DOMAIN_EVENT_IO_ERROR_NONE,
    reason: data['nospace'] === true ? 'enospc' : '',
  })
}

/** The disk that a node of QEMU belongs to: one of its images, its copy-on-read filter or the filter of its stream. */
export function diskOfNode(live: Live, node: string): DiskDef | undefined {
  return live.def.disks.find(
    (disk) =>
      node === copyOnReadNodeName(disk) ||
      node === `stream-${disk.target}` ||
      node === `commit-${disk.target}` ||
      chainOf(disk).some(
        (image) => image.index !== undefined && (node === formatNodeName(image) || node === storageNodeName(image)),
      ),
  )
}

const onPortChange: Handler = (qemu, vm, live, data) => {
  const channel = live.def.channels.find((candidate: ChardevDef) => candidate.alias === data['id'])
  if (channel === undefined) return
  const open = data['open'] === true
  channel.state = open ? 'connected' : 'disconnected'
  if (channel.name !== 'org.qemu.guest_agent.0') return
  const state = open
    ? c.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED
    : c.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_DISCONNECTED
  const reason = c.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_REASON_CHANNEL
  qemu.host.emit({ kind: 'agent', domain: vm.ref, state, reason })
}

const onTray: Handler = (_qemu, _vm, live, data) => {
  const disk = live.def.disks.find((candidate) => candidate.alias === data['id'])
  if (disk !== undefined) disk.tray = data['tray-open'] === true ? 'open' : 'closed'
}

const handlers: Record<string, Handler> = {
  STOP: onStop,
  RESUME: onResume,
  SHUTDOWN: onShutdown,
  GUEST_PANICKED: onPanic,
  BLOCK_IO_ERROR: onBlockIoError,
  VSERPORT_CHANGE: onPortChange,
  DEVICE_TRAY_MOVED: onTray,
  DEVICE_DELETED: (qemu, vm, live, data) => onDeviceDeleted(qemu, vm, live, textOf(data['device'])),
  DEVICE_UNPLUG_GUEST_ERROR: (qemu, vm, live, data) => onUnplugRejected(qemu, vm, live, textOf(data['device'])),
  MIGRATION: (_qemu, _vm, live, data) => live.onMigration?.(textOf(data['status'])),
  MIGRATION_PASS: (qemu, vm, _live, data) =>
    qemu.host.emit({ kind: 'migration-iteration', domain: vm.ref, iteration: Number(data['pass']) }),
  WATCHDOG: (_qemu, _vm, live, data) => {
    if (data['action'] === 'pause') live.pauseReason = c.VIR_DOMAIN_PAUSED_WATCHDOG
  },
  BALLOON_CHANGE: (_qemu, _vm, live, data) => {
    live.def.currentMemory = Math.floor(Number(data['actual']) / 1024)
  },
  SUSPEND: (qemu, vm, live) => {
    setState(qemu, vm, live, c.VIR_DOMAIN_PMSUSPENDED, c.VIR_DOMAIN_PMSUSPENDED_UNKNOWN)
    emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_PMSUSPENDED, c.VIR_DOMAIN_EVENT_PMSUSPENDED_MEMORY)
  },
  WAKEUP: (qemu, vm, live) => {
    if (vm.state.state !== c.VIR_DOMAIN_PMSUSPENDED) return
    setState(qemu, vm, live, c.VIR_DOMAIN_RUNNING, c.VIR_DOMAIN_RUNNING_WAKEUP)
    emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_STARTED, c.VIR_DOMAIN_EVENT_STARTED_WAKEUP)
  },
}

/** One event of QEMU; those that change nothing here are only written to the log. */
export function handleEvent(qemu: Qemu, vm: Vm, live: Live, event: QmpEvent): void {
  if (live.blockJobs.take(event)) return
  const handler = handlers[event.event]
  if (handler === undefined)
    qemu.host.logger.debug({ domain: vm.name, event: event.event }, 'event of QEMU without a handler')
  else handler(qemu, vm, live, event.data)
}
