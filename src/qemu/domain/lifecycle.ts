/** Start, stop and what lies between. */
import * as c from '../../constants.gen.js'
import type { HypervisorOps } from '../../driver.js'
import { failFrom } from '../../error.js'
import { resumeGuest } from '../streams/base-timeout.js'
import { setAutostartLink } from '../core/config.js'
import { createTransient } from './define.js'
import { emitLifecycle } from '../core/emit.js'
import { setState } from './events.js'
import { discardManagedSave, hasManagedSave } from '../core/managed-save.js'
import { terminate } from '../monitor/process.js'
import { checkFlags } from '../core/flags.js'
import type { Qemu } from '../core/qemu.js'
import { restoreManagedSave } from './save.js'
import { startVm } from './start.js'
import { saveStatus } from '../core/status.js'
import { modify } from '../core/vm-job.js'
import type { Live, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

type LifecycleOps = Pick<
  HypervisorOps,
  | 'domainCreate'
  | 'domainCreateXML'
  | 'domainDestroy'
  | 'domainShutdown'
  | 'domainReboot'
  | 'domainReset'
  | 'domainSuspend'
  | 'domainResume'
  | 'domainSetAutostart'
  | 'domainGetAutostart'
>

/** Starts a defined domain; a managed saved state is resumed, unless the flags forget it. */
export async function createVm(qemu: Qemu, vm: Vm, flags: number): Promise<void> {
  if (vm.live !== undefined) throw fail('VIR_ERR_OPERATION_INVALID', `domain is already running`)
  // it may have been undefined while this call waited
  qemu.require(vm)
  const config = vm.requireConfig()
  const paused = (flags & c.VIR_DOMAIN_START_PAUSED) !== 0
  if ((flags & c.VIR_DOMAIN_START_FORCE_BOOT) !== 0) discardManagedSave(qemu, vm)
  if (!hasManagedSave(qemu, vm) || !(await restoreManagedSave(qemu, vm, paused)))
    await startVm(qemu, vm, config, { paused })
}

function refuseAgent(flags: number, agentFlag: number): void {
  if ((flags & agentFlag) !== 0)
    throw fail(
      'VIR_ERR_ARGUMENT_UNSUPPORTED',
      'the guest agent is not used by this driver; without the flag the ACPI button is',
    )
}

async function suspend(vm: Vm, live: Live): Promise<void> {
  const { state } = vm.state
  if (state === c.VIR_DOMAIN_PMSUSPENDED) throw fail('VIR_ERR_OPERATION_INVALID', 'domain is pmsuspended')
  if (state === c.VIR_DOMAIN_PAUSED) return
  live.pauseReason = c.VIR_DOMAIN_PAUSED_USER
  try {
    await live.monitor.stop()
  } catch (error) {
    delete live.pauseReason
    throw error
  }
  vm.requireSame(live)
}

async function resume(vm: Vm, live: Live): Promise<void> {
  const { state } = vm.state
  if (state === c.VIR_DOMAIN_PMSUSPENDED) throw fail('VIR_ERR_OPERATION_INVALID', 'domain is pmsuspended')
  if (state === c.VIR_DOMAIN_RUNNING) throw fail('VIR_ERR_OPERATION_INVALID', 'domain is already running')
  await resumeGuest(vm, live)
}

async function destroy(live: Live, flags: number): Promise<void> {
  const before = live.exitCause
  const cause = { reason: c.VIR_DOMAIN_SHUTOFF_DESTROYED, detail: c.VIR_DOMAIN_EVENT_STOPPED_DESTROYED }
  live.exitCause = cause
  try {
    await terminate(live.process, live.ended, (flags & c.VIR_DOMAIN_DESTROY_GRACEFUL) !== 0)
  } catch (error) {
    // it runs on, and how it ends later is another story
    if (live.exitCause === cause) {
      if (before === undefined) delete live.exitCause
      else live.exitCause = before
    }
    throw error
  }
}

/** Without it the guest would lose its disks where it runs now. */
function refuseServing(qemu: Qemu, vm: Vm): void {
  for (const { vm: leaving, record, isNeeded } of qemu.outgoing.values())
    if (leaving === vm && isNeeded)
      throw fail(
        'VIR_ERR_OPERATION_INVALID',
        record.memoryFollows === true
          ? `domain '${vm.name}' runs on '${record.peer}', which still reads its memory from here`
          : `domain '${vm.name}' runs on '${record.peer}', which still reads its disks from here; abort the job to have it back`,
      )
}

/** The ACPI power button, and a guest that comes up again when it has gone down. */
async function reboot(vm: Vm, live: Live): Promise<void> {
  if (vm.state.state !== c.VIR_DOMAIN_RUNNING) throw fail('VIR_ERR_OPERATION_INVALID', 'domain is not running')
  await live.monitor.setAction({ shutdown: 'pause' })
  live.rebooting = true
  saveStatus(vm, live)
  await live.monitor.systemPowerdown()
}

async function shutdown(vm: Vm, live: Live): Promise<void> {
  if (live.rebooting === true) {
    await live.monitor.setAction({ shutdown: 'poweroff' })
    live.rebooting = false
    saveStatus(vm, live)
  }
  await live.monitor.systemPowerdown()
}

export function lifecycleOps(qemu: Qemu): LifecycleOps {
  return {
    async domainCreate(ref, flags) {
      checkFlags('domainCreate', flags)
      const vm = qemu.require(ref)
      await vm.jobs.run('create', () => createVm(qemu, vm, flags))
      return vm.ref
    },

    domainCreateXML: (xml, flags) => createTransient(qemu, xml, flags),

    async domainDestroy(ref, flags) {
      checkFlags('domainDestroy', flags)
      const vm = qemu.require(ref)
      refuseServing(qemu, vm)
      // not a job: it must get through while another one hangs on this very QEMU
      const ending = destroy(vm.requireLive(), flags)
      // who closes the connection waits for it all the same
      qemu.inBackground(`destroying domain '${vm.name}'`, () => ending.catch(() => undefined))
      await ending
    },

    async domainShutdown(ref, flags) {
      refuseAgent(flags, c.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
      checkFlags('domainShutdown', flags)
      await modify(qemu, ref, shutdown)
    },

    async domainReboot(ref, flags) {
      refuseAgent(flags, c.VIR_DOMAIN_REBOOT_GUEST_AGENT)
      checkFlags('domainReboot', flags)
      await modify(qemu, ref, reboot)
    },

    async domainReset(ref) {
      await modify(qemu, ref, async (_vm, live) => {
        await live.monitor.systemReset()
      })
    },

    async domainSuspend(ref) {
      const vm = qemu.require(ref)
      const isOnItsWay = qemu.outgoingOf(vm)?.record.phase === 'memory'
      // its migration holds the domain, and is the sooner over
      if (isOnItsWay) await suspend(vm, vm.requireLive())
      else await modify(qemu, ref, suspend)
    },
    domainResume: (ref) => modify(qemu, ref, resume),

    async domainSetAutostart(ref, autostart) {
      const vm = qemu.require(ref)
      await vm.jobs.run('modify', async () => {
        if (vm.config === undefined)
          throw fail('VIR_ERR_OPERATION_INVALID', 'cannot set autostart for transient domain')
        setAutostartLink(qemu.root, vm.name, autostart)
        vm.autostart = autostart
        return Promise.resolve()
      })
    },
    domainGetAutostart: (ref) => Promise.resolve(qemu.require(ref).autostart),
  }
}

/** A guest that powered down while nobody watched, though it was to come up again (or to stay as it is). */
export async function resumeAfterPowerdown(qemu: Qemu, vm: Vm, live: Live): Promise<void> {
  if (live.rebooting === true || live.def.onPoweroff === 'restart') {
    if (live.def.onPoweroff === 'destroy') await live.monitor.setAction({ shutdown: 'poweroff' })
    live.rebooting = false
    await live.monitor.systemReset()
    await live.monitor.cont()
    return
  }
  setState(qemu, vm, live, c.VIR_DOMAIN_PAUSED, c.VIR_DOMAIN_PAUSED_SHUTTING_DOWN)
  emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_SHUTDOWN, c.VIR_DOMAIN_EVENT_SHUTDOWN_FINISHED)
}
