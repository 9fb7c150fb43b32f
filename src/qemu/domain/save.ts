/** Save a running domain to a file and end it; start it again from there. */
import { closeSync, fsyncSync, rmSync } from 'node:fs'
import { isAbsolute } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { formatDomainXml } from '../../conf/format.js'
import * as c from '../../constants.gen.js'
import type { DomainRef, HypervisorOps } from '../../driver.js'
import { failFrom, messageOf } from '../../error.js'
import { readDefinition, startAs } from './define.js'
import { modify } from '../core/vm-job.js'
import { checkFlags } from '../core/flags.js'
import { MigrationCommands } from '../monitor/migration-commands.js'
import { discardManagedSave, hasManagedSave, managedSavePath } from '../core/managed-save.js'
import { terminate } from '../monitor/process.js'
import type { Qemu } from '../core/qemu.js'
import { completeSaveFile, createSaveFile, isIncomplete, openSaveFile, type SavedDomain } from '../core/save-file.js'
import { saveStatus, saveStatusOrSay } from '../core/status.js'
import { startVm, type StartOptions } from './start.js'
import type { Live, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms between two looks at a migration */
const POLL = 100

/** A file answers nothing; whatever an earlier migration has set is taken back. */
const FILE_CAPABILITIES = {
  ...{ 'return-path': false, 'pause-before-switchover': false, 'postcopy-ram': false, 'release-ram': false },
  ...{ xbzrle: false, 'auto-converge': false },
} as const

/** Waits until a migration to or from a file is over. */
async function migrated(migration: MigrationCommands): Promise<void> {
  for (;;) {
    const { status, 'error-desc': description } = await migration.query()
    if (status === 'completed') return
    if (status === 'failed' || status === 'cancelled')
      throw fail('VIR_ERR_OPERATION_FAILED', `QEMU could not transfer the state: ${description ?? status}`)
    await delay(POLL)
  }
}

/** The guest runs on after a save that failed; an error here is not the one that the caller has to hear of. */
async function goOn(qemu: Qemu, live: Live): Promise<void> {
  try {
    await new MigrationCommands(live.monitor).cancel()
    await live.monitor.cont()
  } catch (error) {
    qemu.warn(`domain '${live.def.name}' stays paused after a save that failed: ${messageOf(error)}`)
  }
}

/** Under the domain's job. */
async function save(qemu: Qemu, vm: Vm, live: Live, path: string, flags: number): Promise<void> {
  if (live.blockJobs.all.length > 0) throw fail('VIR_ERR_OPERATION_INVALID', 'domain has active block job')
  const wasRunning = vm.state.state === c.VIR_DOMAIN_RUNNING
  const resumeRunning =
    (flags & c.VIR_DOMAIN_SAVE_RUNNING) !== 0 || (wasRunning && (flags & c.VIR_DOMAIN_SAVE_PAUSED) === 0)
  const xml = formatDomainXml(live.def, { inactive: true, secure: true })
  const fd = createSaveFile(path, xml, resumeRunning)
  try {
    live.saving = { path, resume: wasRunning }
    saveStatus(vm, live)
    if (wasRunning) {
      live.pauseReason = c.VIR_DOMAIN_PAUSED_SAVE
      await live.monitor.stop()
    }
    const migration = new MigrationCommands(live.monitor)
    await migration.setCapabilities(FILE_CAPABILITIES)
    await migration.setUnlimited()
    await migration.send(fd)
    await migrated(migration)
    completeSaveFile(fd)
    fsyncSync(fd)
  } catch (error) {
    rmSync(path, { force: true })
    delete live.pauseReason
    delete live.saving
    if (vm.live === live && wasRunning) await goOn(qemu, live)
    if (vm.live === live) saveStatusOrSay(vm, live, (text) => qemu.warn(text))
    throw error
  } finally {
    closeSync(fd)
  }
  live.exitCause = { reason: c.VIR_DOMAIN_SHUTOFF_SAVED, detail: c.VIR_DOMAIN_EVENT_STOPPED_SAVED }
  await terminate(live.process, live.ended, false)
}

/** How QEMU gets a saved state, and whether the guest then stands still: as `paused` says, else as it was. */
function startOptions(saved: SavedDomain, paused: boolean | undefined): StartOptions {
  return {
    paused: paused ?? !saved.wasRunning,
    pausedAsSaved: paused === undefined,
    load: async (monitor) => {
      const migration = new MigrationCommands(monitor)
      await migration.receive(saved.fd)
      await migrated(migration)
    },
  }
}

/** Starts the domain that the file tells of from its saved state. */
async function restore(qemu: Qemu, path: string, paused: boolean | undefined, xml?: string): Promise<DomainRef> {
  const saved = openSaveFile(path)
  try {
    return await startAs(qemu, await readDefinition(qemu, xml ?? saved.xml, false), startOptions(saved, paused))
  } finally {
    closeSync(saved.fd)
  }
}

/**
 * Under the domain's job: goes on from the managed saved state, which is used up once the guest runs. False when there is
 * none to go on from: who wrote it died in the middle, and what is there is thrown away.
 */
export async function restoreManagedSave(qemu: Qemu, vm: Vm, paused: boolean): Promise<boolean> {
  const path = managedSavePath(qemu, vm)
  if (isIncomplete(path)) {
    qemu.warn(`the managed saved state of domain '${vm.name}' is incomplete, it boots instead`)
    discardManagedSave(qemu, vm)
    return false
  }
  const saved = openSaveFile(path)
  try {
    const def = await readDefinition(qemu, saved.xml, false)
    if (vm.name !== def.name || vm.uuid !== def.uuid)
      throw fail(
        'VIR_ERR_OPERATION_FAILED',
        `'${path}' holds domain '${def.name}' with uuid ${def.uuid}, not '${vm.name}'`,
      )
    await startVm(qemu, vm, def, startOptions(saved, paused || undefined))
  } finally {
    closeSync(saved.fd)
  }
  discardManagedSave(qemu, vm)
  return true
}

/** What the flags say about the state to restore to; undefined: as it was. */
function wantPaused(flags: number): boolean | undefined {
  if ((flags & c.VIR_DOMAIN_SAVE_PAUSED) !== 0) return true
  return (flags & c.VIR_DOMAIN_SAVE_RUNNING) !== 0 ? false : undefined
}

type SaveOps = Pick<
  HypervisorOps,
  'domainSave' | 'domainRestore' | 'domainManagedSave' | 'domainHasManagedSaveImage' | 'domainManagedSaveRemove'
>

export function saveOps(qemu: Qemu): SaveOps {
  return {
    async domainSave(ref, to, xml, flags) {
      checkFlags('domainSave', flags)
      if (xml !== undefined)
        throw fail('VIR_ERR_ARGUMENT_UNSUPPORTED', 'saving with another definition is not supported')
      if (!isAbsolute(to)) throw fail('VIR_ERR_INVALID_ARG', `path '${to}' is not absolute`)
      await modify(qemu, ref, (vm, live) => save(qemu, vm, live, to, flags), 'save')
    },

    async domainRestore(from, xml, flags) {
      checkFlags('domainSave', flags)
      return restore(qemu, from, wantPaused(flags), xml)
    },

    async domainManagedSave(ref, flags) {
      checkFlags('domainSave', flags)
      await modify(qemu, ref, (vm, live) => {
        if (vm.config === undefined)
          throw fail('VIR_ERR_OPERATION_INVALID', 'cannot do managed save for transient domain')
        return save(qemu, vm, live, managedSavePath(qemu, vm), flags)
      })
    },

    domainHasManagedSaveImage: (ref) => Promise.resolve(hasManagedSave(qemu, qemu.require(ref))),

    async domainManagedSaveRemove(ref) {
      const vm = qemu.require(ref)
      await vm.jobs.run('modify', () => {
        discardManagedSave(qemu, vm)
        return Promise.resolve()
      })
    },
  }
}
