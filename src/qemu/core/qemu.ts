import type { DomainDef } from '../../conf/domain-def.js'
import type { DomainJobStats, DriverHost } from '../../driver.js'
import { failFrom } from '../../error.js'
import type { AccessPolicy } from '../access/access.js'
import { StreamBudget, type StreamLimits } from '../blocks/budget.js'
import type { CapabilitiesCache } from '../../machine/capabilities-cache.js'
import type { Transports } from '../../migration/transports.js'
import type { Root } from './root.js'
import { UnitPaces } from '../blocks/unit-pace.js'
import type { Vm } from './vm.js'
import type { Outgoing } from '../migration/outgoing.js'
import type { Incoming } from '../migration/incoming.js'

const fail = failFrom('VIR_FROM_QEMU')

/**
 * What migrations have to hear of the QEMUs and storage daemons of a root. Their room is above those that tell it, so it is
 * handed in.
 */
export interface MigrationHooks {
  /** Under the domain's job, before its QEMU starts. VIR_ERR_OPERATION_FAILED where it may not yet. */
  beforeStart(vm: Vm): Promise<void>
  /** All of a disk has been pulled: resolves when it may let go of its base, or when `isAborted`. */
  diskPulled(vm: Vm, target: string, isAborted: () => boolean): Promise<void>
  /** Its QEMU is gone, and what that had is free. */
  guestEnded(vm: Vm): void
  /** The storage daemon that streamed its disks has died. */
  daemonDied(vm: Vm): void
}

/** What every part of the QEMU driver works on: one open root and the domains in it. */
export class Qemu {
  readonly host: DriverHost
  readonly root: Root
  readonly capabilities: CapabilitiesCache
  /** who labels and locks what QEMUs use */
  readonly access: AccessPolicy
  /** what all streams may have together */
  readonly budget: StreamBudget
  readonly units: UnitPaces
  /** that the memory of guests may go by */
  readonly transports: Transports
  readonly migrations: MigrationHooks
  /** migrations by their ids: from here, and to here */
  readonly outgoing = new Map<string, Outgoing>()
  readonly incoming = new Map<string, Incoming>()
  /** how the last job of a domain went, by its uuid */
  readonly finishedJobs = new Map<string, DomainJobStats>()
  /** seconds until a guest whose base is away is paused; undefined: it waits as long as that takes */
  baseTimeout: number | undefined
  /** our process lets go of the root: what waits for something that may never come waits no longer */
  closing = false
  /** set while the root is open */
  stopWatchingLocks: () => void = () => undefined
  readonly #vms = new Map<string, Vm>()
  #lastId = 0
  /** work that goes on after the call that caused it; close() waits for it */
  readonly #background = new Set<Promise<void>>()
  #isOver = false

  constructor(
    host: DriverHost,
    root: Root,
    capabilities: CapabilitiesCache,
    access: AccessPolicy,
    transports: Transports,
    migrations: (qemu: Qemu) => MigrationHooks,
    limits: StreamLimits = {},
  ) {
    this.host = host
    this.root = root
    this.capabilities = capabilities
    this.access = access
    this.transports = transports
    this.migrations = migrations(this)
    this.budget = new StreamBudget(limits, this)
    this.units = new UnitPaces(this.budget)
  }

  get vms(): Vm[] {
    return [...this.#vms.values()]
  }
  add(vm: Vm): void {
    this.#vms.set(vm.uuid, vm)
  }
  remove(vm: Vm): void {
    this.#vms.delete(vm.uuid)
  }
  find(uuid: string): Vm | undefined {
    return this.#vms.get(uuid)
  }
  findByName(name: string): Vm | undefined {
    return this.vms.find((vm) => vm.name === name)
  }

  /** A domain that is neither defined nor runs is none. */
  forgetIfNothing(vm: Vm): void {
    const { config, live, remains } = vm
    if (config === undefined && live === undefined && remains === undefined && this.find(vm.uuid) === vm)
      this.remove(vm)
  }

  /** The migration away from here that a domain is in. */
  outgoingOf(vm: Vm): Outgoing | undefined {
    return [...this.outgoing.values()].find((outgoing) => outgoing.vm === vm && !outgoing.isOver)
  }
  incomingsOf(vm: Vm): Incoming[] {
    return [...this.incoming.values()].filter((incoming) => incoming.vm === vm)
  }

  /** What every process with images works with: of running domains, and of storage daemons. */
  get runningDefs(): DomainDef[] {
    return this.vms.flatMap(({ host }) => (host === undefined ? [] : [host.def]))
  }

  /** The domain of a handle; VIR_ERR_NO_DOMAIN when it is gone. */
  require(ref: { uuid: string; name: string }): Vm {
    const vm = this.find(ref.uuid)
    if (vm === undefined) throw fail('VIR_ERR_NO_DOMAIN', `no domain with matching uuid '${ref.uuid}' (${ref.name})`)
    return vm
  }

  /** A number for a domain that is being started: never one that was given out since the root was opened, or that still runs. */
  nextId(): number {
    this.#lastId = Math.max(this.#lastId, ...this.vms.map((vm) => vm.live?.id ?? 0)) + 1
    return this.#lastId
  }
  /** An id that another process gave out. */
  noteId(id: number): void {
    this.#lastId = Math.max(this.#lastId, id)
  }

  warn(text: string): void {
    this.host.logger.warn(text)
  }

  /** Work that nobody awaits; an error of it goes to the log. None is begun for a root that another process may have by now. */
  inBackground(what: string, work: () => Promise<void>): void {
    if (this.#isOver) return
    const promise = work()
      .catch((error: unknown) => this.host.logger.error({ err: error }, `${what} failed`))
      .finally(() => this.#background.delete(promise))
    this.#background.add(promise)
  }

  /** Resolves when what goes on is through; nothing is begun from then on. */
  async idle(): Promise<void> {
    while (this.#background.size > 0) await Promise.all(this.#background)
    this.#isOver = true
  }
}
