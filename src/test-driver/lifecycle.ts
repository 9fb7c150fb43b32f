/** Start, stop and what lies between, with the states, reasons and events of libvirt's QEMU driver. */
import type { DomainDef } from '../conf/domain-def.js'
import * as c from '../constants.gen.js'
import type { HypervisorOps } from '../driver.js'
import { endPulls } from './stream.js'
import type { Live, TestDomain, World } from './world.js'
import { fail } from './world.js'

/** ms that a guest takes to go down or to come up again */
const GUEST_REACTION = 30

interface Start {
  paused: boolean
  restored?: boolean
}

function assignAliases(def: DomainDef): void {
  const alias = <D extends { alias?: string }>(devices: D[], name: (device: D, nth: number) => string): void => {
    devices.forEach((device, nth) => (device.alias ??= name(device, nth)))
  }
  alias(def.disks, (disk) => `${disk.bus}-disk${def.disks.filter(({ bus }) => bus === disk.bus).indexOf(disk)}`)
  alias(def.interfaces, (_net, nth) => `net${nth}`)
  alias(def.serials, (_serial, nth) => `serial${nth}`)
  alias(def.consoles, (console, nth) => (console.targetType === 'virtio' ? `console${nth}` : `serial${nth}`))
}

export function startDomain(world: World, domain: TestDomain, source: DomainDef, { paused, restored }: Start): void {
  const id = world.nextId()
  const def: DomainDef = { ...structuredClone(source), id }
  assignAliases(def)
  domain.live = { id, def, since: performance.now(), pulls: new Map() }
  domain.state = paused
    ? { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_USER }
    : { state: c.VIR_DOMAIN_RUNNING, reason: restored ? c.VIR_DOMAIN_RUNNING_RESTORED : c.VIR_DOMAIN_RUNNING_BOOTED }
  const detail = restored ? c.VIR_DOMAIN_EVENT_STARTED_RESTORED : c.VIR_DOMAIN_EVENT_STARTED_BOOTED
  world.emitLifecycle(domain.ref, c.VIR_DOMAIN_EVENT_STARTED, detail)
  if (paused) world.emitLifecycle(domain.ref, c.VIR_DOMAIN_EVENT_SUSPENDED, c.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED)
}

/** Ends a run with a reason of VIR_DOMAIN_SHUTOFF and a detail of VIR_DOMAIN_EVENT_STOPPED. */
export function stopDomain(world: World, domain: TestDomain, live: Live, reason: number, detail: number): void {
  clearTimeout(live.timer)
  endPulls(world, domain, live)
  const ref = domain.ref
  domain.live = undefined
  domain.state = { state: c.VIR_DOMAIN_SHUTOFF, reason }
  if (domain.config === undefined) world.remove(domain)
  world.emitLifecycle(ref, c.VIR_DOMAIN_EVENT_STOPPED, detail)
}

/** The guest reacts to its power button, when its CPUs run. */
function react(world: World, domain: TestDomain, live: Live): void {
  if (domain.state.state !== c.VIR_DOMAIN_RUNNING || live.wanted === undefined) return
  clearTimeout(live.timer)
  live.timer = setTimeout(() => {
    if (domain.live !== live || domain.state.state !== c.VIR_DOMAIN_RUNNING) return
    const wanted = live.wanted
    delete live.wanted
    if (wanted === 'reboot') return
    world.emitLifecycle(domain.ref, c.VIR_DOMAIN_EVENT_SHUTDOWN, c.VIR_DOMAIN_EVENT_SHUTDOWN_GUEST)
    stopDomain(world, domain, live, c.VIR_DOMAIN_SHUTOFF_SHUTDOWN, c.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN)
  }, GUEST_REACTION)
}

function press(world: World, domain: TestDomain, wanted: 'shutdown' | 'reboot'): void {
  const live = domain.requireLive()
  if (domain.state.state !== c.VIR_DOMAIN_RUNNING) throw fail('VIR_ERR_OPERATION_INVALID', 'domain is not running')
  live.wanted = wanted
  react(world, domain, live)
}

function create(world: World, domain: TestDomain, flags: number): void {
  if (domain.live !== undefined) throw fail('VIR_ERR_OPERATION_INVALID', 'domain is already running')
  const paused = (flags & c.VIR_DOMAIN_START_PAUSED) !== 0
  if ((flags & c.VIR_DOMAIN_START_FORCE_BOOT) !== 0) domain.managedSave = undefined
  const saved = domain.managedSave
  domain.managedSave = undefined
  if (saved === undefined) startDomain(world, domain, domain.def, { paused })
  else startDomain(world, domain, saved.def, { paused: paused || !saved.running, restored: true })
}

function suspend(world: World, domain: TestDomain): void {
  domain.requireLive()
  if (domain.state.state === c.VIR_DOMAIN_PAUSED) return
  domain.state = { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_USER }
  world.emitLifecycle(domain.ref, c.VIR_DOMAIN_EVENT_SUSPENDED, c.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED)
}

function resume(world: World, domain: TestDomain): void {
  const live = domain.requireLive()
  if (domain.state.state === c.VIR_DOMAIN_RUNNING) throw fail('VIR_ERR_OPERATION_INVALID', 'domain is already running')
  domain.state = { state: c.VIR_DOMAIN_RUNNING, reason: c.VIR_DOMAIN_RUNNING_UNPAUSED }
  world.emitLifecycle(domain.ref, c.VIR_DOMAIN_EVENT_RESUMED, c.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED)
  react(world, domain, live)
}

type LifecycleOps = Pick<
  HypervisorOps,
  | 'domainCreate'
  | 'domainDestroy'
  | 'domainShutdown'
  | 'domainReboot'
  | 'domainReset'
  | 'domainSuspend'
  | 'domainResume'
  | 'domainSetAutostart'
  | 'domainGetAutostart'
>

/* eslint-disable @typescript-eslint/require-await -- operations are async, and nothing here has to wait */
export function lifecycleOps(world: World): LifecycleOps {
  return {
    async domainCreate(ref, flags) {
      const domain = world.require(ref)
      create(world, domain, flags)
      return domain.ref
    },
    async domainDestroy(ref) {
      const domain = world.require(ref)
      const live = domain.requireLive()
      stopDomain(world, domain, live, c.VIR_DOMAIN_SHUTOFF_DESTROYED, c.VIR_DOMAIN_EVENT_STOPPED_DESTROYED)
    },
    domainShutdown: async (ref) => press(world, world.require(ref), 'shutdown'),
    domainReboot: async (ref) => press(world, world.require(ref), 'reboot'),
    async domainReset(ref) {
      delete world.require(ref).requireLive().wanted
    },
    domainSuspend: async (ref) => suspend(world, world.require(ref)),
    domainResume: async (ref) => resume(world, world.require(ref)),
    async domainSetAutostart(ref, autostart) {
      const domain = world.require(ref)
      if (domain.config === undefined)
        throw fail('VIR_ERR_OPERATION_INVALID', 'cannot set autostart for transient domain')
      domain.autostart = autostart
    },
    domainGetAutostart: async (ref) => world.require(ref).autostart,
  }
}
