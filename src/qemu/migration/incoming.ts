/** A migration to here, as long as it lasts. */
import { setTimeout as delay } from 'node:timers/promises'
import type { Duplex } from 'node:stream'
import type { DiskDef, StorageSource } from '../../conf/domain-def.js'
import * as c from '../../constants.gen.js'
import { Refusal } from './abandoned.js'
import { cancel, releaseWhenDone, tellProgress } from './arrive.js'
import { messageOf } from '../../error.js'
import type { Messages } from '../../tunnel/messages.js'
import { listenPrivately, type UnixRelay } from '../../tunnel/relay.js'
import { type MigrationPhase, type MigrationRecord, removeRecord, saveRecord } from './record.js'
import { JobStats } from './stats.js'
import { listenerFor } from './reach.js'
import type { MigrationWatch } from './watch.js'
import { watchWriteBack } from './write-back.js'
import type { Qemu } from '../core/qemu.js'
import type { RecoveryMonitor } from './recovery-monitor.js'
import type { Vm } from '../core/vm.js'

/** ms that a destination waits for its source to come after prepare, or back before the guest runs here */
const PATIENCE = 60_000
/** ms between two looks for memory that follows */
const POLL = 20

/** A migration to here. */
export class Incoming {
  vm: Vm
  readonly record: MigrationRecord
  readonly stats: JobStats
  relay: UnixRelay | undefined
  #refusal: Refusal | undefined
  messages: Messages | undefined
  watch: MigrationWatch | undefined
  /** what it comes over */
  readonly memory: { channel?: Duplex | undefined; recovery?: RecoveryMonitor } = {}
  /** what QEMU said when it failed */
  reason = ''
  releasing = false
  /** disks of which every block is here, while their writes still go to the source */
  readonly pulled = new Set<string>()
  /** what disks ran on that have become raw images, by target */
  readonly formers = new Map<string, StorageSource>()
  /** its source has asked for the guest, and not taken that back */
  isWantedBack = false
  /** it is being ended */
  cancelling: Promise<void> | undefined
  readonly #qemu: Qemu
  readonly #loaded: Promise<void>
  /** all memory is here */
  arrived!: () => void
  #patience: NodeJS.Timeout | undefined
  #telling: NodeJS.Timeout | undefined

  constructor(qemu: Qemu, vm: Vm, record: MigrationRecord) {
    this.#qemu = qemu
    this.vm = vm
    this.record = record
    this.stats = new JobStats(c.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN, record)
    this.#loaded = new Promise((resolve) => (this.arrived = resolve))
    if (record.phase !== 'incoming') this.arrived()
  }

  get migrated(): DiskDef[] {
    const names = new Set(this.record.disks.map(({ disk }) => disk))
    return (
      (this.vm.host?.def ?? this.vm.config ?? this.vm.remains)?.disks.filter(({ target }) => names.has(target)) ?? []
    )
  }

  /** What the guest writes goes to its source as well. */
  writesBack(): boolean {
    return this.record.writeBack === 'on' && this.record.phase === 'streaming'
  }

  /** Resolves when all memory is here, or after `timeout` ms. */
  async whenLoaded(timeout: number): Promise<void> {
    const stop = new AbortController()
    await Promise.race([this.#loaded, delay(timeout, undefined, { signal: stop.signal }).catch(() => undefined)])
    stop.abort()
  }

  /** Resolves when no memory is to follow the guest any more, or its QEMU is gone, or after `timeout` ms. */
  async whenMemoryFollowed(timeout: number): Promise<void> {
    const end = performance.now() + timeout
    while (this.record.memoryFollows === true && this.vm.live !== undefined && performance.now() < end)
      await delay(POLL)
  }

  /** Writes down how it is. */
  save(): void {
    saveRecord(this.#qemu.root, this.record)
  }

  enter(phase: MigrationPhase): void {
    const { record } = this
    const before = record.phase
    record.phase = phase
    try {
      this.unlessItMustCome(() => this.save())
    } catch (error) {
      record.phase = before
      throw error
    }
  }

  /** What cannot be written down keeps a guest from coming, unless its memory follows: it could not go on elsewhere any more. */
  unlessItMustCome(write: () => void): void {
    try {
      write()
    } catch (error) {
      if (this.record.memoryFollows !== true) throw error
      this.#qemu.warn(`domain '${this.record.name}' comes, which could not be written down: ${messageOf(error)}`)
    }
  }

  /** The guest's writes stay here. */
  endWriteBack(): void {
    this.record.writeBack = 'over'
    this.save()
  }

  /** Tells the source once a second where the disks are. */
  #tell(): void {
    clearInterval(this.#telling)
    const look = (): Promise<void> => tellProgress(this).then(() => watchWriteBack(this.#qemu, this))
    this.#telling = setInterval(() => void look().catch(() => undefined), 1_000).unref()
  }

  /** Without a source a guest does not run here: one that hears that it never has goes on there. */
  waitForSource(): void {
    clearTimeout(this.#patience)
    if (!waitsForSource(this.record)) return
    this.#patience = setTimeout(() => {
      this.#qemu.inBackground(`giving up the migration of domain '${this.record.name}'`, () =>
        cancel(this.#qemu, this, 'the source did not come'),
      )
    }, PATIENCE).unref()
  }
  /** Perhaps no disk needs the source any more. */
  streamEnded(): void {
    this.#qemu.inBackground(`the disks of domain '${this.record.name}'`, () => releaseWhenDone(this.#qemu, this))
  }
  sourceIsHere(): void {
    clearTimeout(this.#patience)
    this.#tell()
  }

  /** What the source served is not there any more: whoever reads it is told so. */
  async refuseReads(): Promise<void> {
    if (this.#refusal !== undefined) return
    await this.relay?.close()
    this.relay = undefined
    const def = this.vm.live?.def ?? this.record.def
    this.#refusal = await Refusal.listen(this.#qemu, this, def ? listenerFor(this.#qemu, def) : listenPrivately)
  }

  /** Our connections end; the migration goes on when the root is opened again. */
  async close(): Promise<void> {
    clearTimeout(this.#patience)
    clearInterval(this.#telling)
    this.watch?.close()
    this.memory.channel?.destroy()
    this.memory.recovery?.close()
    this.messages?.close()
    await this.relay?.close().catch((error: unknown) => this.#qemu.warn(messageOf(error)))
    this.relay = undefined
    await this.#refusal?.close()
    this.#refusal = undefined
  }

  /** Over, one way or the other. */
  async forget(): Promise<void> {
    this.#qemu.incoming.delete(this.record.id)
    // at once: who finds it gone from the list takes it for over
    removeRecord(this.#qemu.root, this.record.id)
    // who has asked for this is answered first
    this.messages?.closeWhenAnswered()
    this.messages = undefined
    await this.close()
  }
}

/** Until its source comes; where a part of its memory has been given back already nobody could go on with it elsewhere. */
export const waitsForSource = ({ phase, memoryFollows }: MigrationRecord): boolean =>
  phase === 'incoming' || (phase === 'loaded' && memoryFollows !== true)
