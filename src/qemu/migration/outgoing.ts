/** A migration away from here, as long as it lasts. */
import type { DiskDef, DomainDef } from '../../conf/domain-def.js'
import * as c from '../../constants.gen.js'
import { failFrom, messageOf } from '../../error.js'
import type { MigrationCommands } from '../monitor/migration-commands.js'
import { storageOf } from './flags.js'
import type { MigrationLink } from '../../migration/link.js'
import type { FollowingMemory } from './postcopy.js'
import { type MigrationPhase, type MigrationRecord, removeRecord, saveRecord } from './record.js'
import { JobStats } from './stats.js'
import type { Qemu } from '../core/qemu.js'
import type { Live, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** A migration away from here. */
export class Outgoing {
  vm: Vm
  readonly record: MigrationRecord
  readonly stats: JobStats
  /** what the destination was told of, as long as that holds */
  begunOn: Live | undefined
  link: MigrationLink | undefined
  /** of the migration that goes on now: who calls it off does it here */
  commands: MigrationCommands | undefined
  aborted = false
  /** an I/O error of the guest did that (VIR_MIGRATE_ABORT_ON_ERROR) */
  ioError = false
  /** the destination knows that it is released */
  acknowledged = false
  #confirmation: NodeJS.Timeout | undefined
  /** memory is to follow the guest: as soon as QEMU can be told */
  postcopyWanted = false
  /** the guest stands still, and what comes next can't be taken back by QEMU if memory follows it */
  switching = false
  /** memory that follows the guest */
  memory: FollowingMemory | undefined
  readonly #qemu: Qemu

  constructor(qemu: Qemu, vm: Vm, record: MigrationRecord) {
    this.#qemu = qemu
    this.vm = vm
    this.record = record
    this.stats = new JobStats(c.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT, record)
  }

  get migrated(): DiskDef[] {
    const names = new Set(this.record.disks.map(({ disk }) => disk))
    return (this.vm.host?.def ?? this.vm.def).disks.filter(({ target }) => names.has(target))
  }

  /** The domain is here alone again, or not at all; only the destination has still to hear of it. */
  get isOver(): boolean {
    return this.record.phase === 'released' || this.record.phase === 'abandoned'
  }

  /** The guest has moved, and reads from here still. */
  get isNeeded(): boolean {
    const { phase, memoryFollows, flags } = this.record
    if (phase !== 'switched' && phase !== 'serving') return false
    // memory was to follow a guest that stands still for want of it, and nothing else is read from here
    const isLost = this.vm.state.reason === c.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED
    return memoryFollows !== true || storageOf(flags) === 'stream' || !isLost
  }

  /** Writes down how far it is. */
  enter(phase: MigrationPhase): void {
    const before = this.record.phase
    this.record.phase = phase
    try {
      saveRecord(this.#qemu.root, this.record)
    } catch (error) {
      this.record.phase = before
      throw error
    }
  }

  /** Both sides stand still: when nobody says within `ms` what is to become of that, `work` finds out. */
  expectConfirmation(ms: number, work: () => void): void {
    this.#confirmation = setTimeout(work, ms).unref()
  }

  /** The guest has gone, and what it had here is written down. */
  enterSwitched(def: DomainDef): void {
    const { record } = this
    record.def = def
    if (record.params.writeBack === true) record.writeBack = 'on'
    try {
      this.enter('switched')
    } catch (error) {
      // one whose memory follows could not go on here: a later process learns from QEMU where it is
      if (record.memoryFollows !== true) throw error
      record.phase = 'switched'
      this.#qemu.warn(`that domain '${record.name}' has gone could not be written down: ${messageOf(error)}`)
    }
  }

  /** From now on the guest's writes do not come here any more. */
  endWriteBack(): void {
    this.record.writeBack = 'over'
    saveRecord(this.#qemu.root, this.record)
  }

  /** Under the domain's job, whenever that can be had; nothing if the migration is over by then. */
  underJob(work: () => Promise<void>): Promise<void> {
    const unlessOver = async (): Promise<void> => {
      if (this.#qemu.outgoing.has(this.record.id)) await work()
    }
    return this.vm.jobs.run('migrate', unlessOver, Infinity)
  }

  /** Over, one way or the other. */
  forget(): void {
    clearTimeout(this.#confirmation)
    this.memory?.close()
    this.link?.close()
    this.#qemu.outgoing.delete(this.record.id)
    removeRecord(this.#qemu.root, this.record.id)
    this.leaveNothing()
  }

  /** A transient domain stays without its QEMU while its disks are served: who wants its guest back asks for it by name. */
  keepDomain(): void {
    const { vm, record } = this
    if (vm.config !== undefined || this.isOver || record.def === undefined) return
    vm.remains ??= record.def
    this.#qemu.add(vm)
  }

  /** What was kept of it is not needed any more. */
  leaveNothing(): void {
    const { vm, record } = this
    if (record.def === undefined || vm.remains !== record.def) return
    vm.remains = undefined
    this.#qemu.forgetIfNothing(vm)
  }
}

export function requireOutgoing(qemu: Qemu, vm: Vm): Outgoing {
  const outgoing = qemu.outgoingOf(vm)
  if (outgoing === undefined) throw fail('VIR_ERR_OPERATION_INVALID', `domain '${vm.name}' is not being migrated`)
  return outgoing
}
