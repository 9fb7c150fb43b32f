/**
 * The one place that lets a QEMU have something: an image, a file, a directory, a listening socket. First the lock, then the
 * labels; taken back in reverse order. What was done is in the domain's status before QEMU gets it, so that any later
 * process can take it back.
 */
import { mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { DiskDef, DomainDef, StorageSource } from '../conf/domain-def.js'
import type { Lease, LockDriver, LockHolder, LockOwner, LockResource } from '../locking/lock-driver.js'
import { failFrom, messageOf } from '../error.js'
import { native } from '../native.js'
import type { LabelTarget, ProcessLabel } from '../security/security-driver.js'
import type { LabelEntry, LabelJournal, SecurityStack } from '../security/security-stack.js'
import { Undo } from '../util/undo.js'
import { chardevSockets, fileTargets, imageTarget, lockResource, openTheWay, removeSocket } from './access-targets.js'
import { chainOf } from './block-graph.js'
import { type Gate, qemuDir } from './process.js'
import type { Root } from './root.js'

const fail = failFrom('VIR_FROM_QEMU')

/** Who decides about access: plain values, from whoever opened the connection or from the root's settings. */
export interface AccessPolicy {
  readonly security: SecurityStack
  readonly locks: LockDriver | undefined
  /** what the lock driver said when it released an image, for the next time, by domain and path */
  readonly lockStates: Map<string, string>
}

/** A lease and the lock driver that it is of. */
export interface LeaseEntry extends Lease {
  driver: string
}

/** What is to be taken back when the domain ends; part of its status. */
export interface AccessRecord {
  labels: LabelEntry[]
  leases: LeaseEntry[]
  /** sockets outside the run directory that we made */
  sockets: string[]
}

/** What a domain is about where things lie. */
export interface AccessPlace {
  root: Root
  runDir: string
  logFile: string
}

export class Access {
  readonly #policy: AccessPolicy
  readonly #def: DomainDef
  readonly #warn: (text: string) => void
  readonly #record: AccessRecord
  readonly #journal: LabelJournal
  /** while the process is about to become QEMU */
  #holder: LockHolder | undefined
  /** of QEMU; undefined before it is there */
  pid: number | undefined
  /** listening sockets that QEMU inherits, by the alias of their character device */
  readonly listeners = new Map<string, number>()
  /** writes the domain's status; set by whoever knows how far the domain is */
  persist: () => void = () => undefined

  constructor(policy: AccessPolicy, def: DomainDef, warn: (text: string) => void, record?: AccessRecord) {
    this.#policy = policy
    this.#def = def
    this.#warn = warn
    this.#record = record ?? { labels: [], leases: [], sockets: [] }
    this.#journal = { entries: this.#record.labels, save: () => this.persist() }
  }

  /** For the status; undefined when there is nothing to take back and no driver that wants to hear of the end. */
  get record(): AccessRecord | undefined {
    return this.isNothing ? undefined : this.#record
  }

  /** No labels, no locks: the end of the domain has nothing to wait for. */
  get isNothing(): boolean {
    const { labels, leases, sockets } = this.#record
    return this.#policy.security.isEmpty && labels.length + leases.length + sockets.length === 0
  }

  /**
   * Everything that the definition names, and the domain's own folder, but with a lock manager no images: those wait for the
   * `gate`. Answers what QEMU is to run as. When a step fails, all of it is taken back.
   */
  async grant(place: AccessPlace, running: readonly DomainDef[]): Promise<ProcessLabel> {
    const { security, locks } = this.#policy
    await using undo = new Undo()
    undo.add(() => this.revoke())
    await security.generateLabels(this.#def, running)
    const label = await security.processLabel(this.#def)
    if (!security.isEmpty) await this.#grantFiles(place, label)
    if (locks === undefined) await this.#grantImages()
    undo.commit()
    return label
  }

  /** All but images. What QEMU makes itself gets a folder apart from our own files about it. */
  async #grantFiles({ root, runDir, logFile }: AccessPlace, { uid }: ProcessLabel): Promise<void> {
    mkdirSync(join(runDir, 'qemu'), { recursive: true, mode: 0o700 })
    if (uid !== undefined && uid !== process.geteuid?.()) openTheWay(root, runDir)
    const dir = qemuDir(runDir)
    await this.grantRuntime(dir)
    for (const target of fileTargets(this.#def, logFile)) await this.#label(target)
    for (const { alias, path } of chardevSockets(this.#def, dir)) {
      if (!path.startsWith(`${dir}/`)) this.#record.sockets.push(path)
      this.persist()
      removeSocket(path)
      this.listeners.set(alias, this.listen(path, 1))
      await this.grantRuntime(path)
    }
  }

  /** QEMU has the sockets that were made for it, or never will. */
  closeListeners(): void {
    for (const fd of this.listeners.values()) native.close(fd)
    this.listeners.clear()
  }

  /**
   * With a lock manager: lets the process that is about to become QEMU have its images, since locks are tied to a process.
   * Without one: undefined.
   */
  async gate(): Promise<Gate | undefined> {
    const { locks } = this.#policy
    if (locks === undefined) return undefined
    const images = this.#def.disks.flatMap((disk) => chainOf(disk).map((image) => ({ disk, image })))
    const targets = images.flatMap(({ disk, image }) => imageTarget(disk, image) ?? [])
    const holder = await locks.hold?.(targets.map(lockResource))
    return {
      inherit: holder?.inherit ?? [],
      connect: holder?.connect,
      admit: async (pid, connection) => {
        this.pid = pid
        this.#holder = holder
        await holder?.attach?.(this.#owner(pid), connection)
        await this.#grantImages()
      },
      close: () => {
        this.#holder = undefined
        holder?.close()
      },
    }
  }

  async #grantImages(): Promise<void> {
    for (const disk of this.#def.disks) for (const image of chainOf(disk)) await this.grantImage(disk, image)
    await this.#policy.security.labelsSet(this.#def)
  }

  /** An image of a disk: its own, or one below it. Nothing for what comes over the network. */
  async grantImage(disk: DiskDef, image: StorageSource): Promise<void> {
    const target = imageTarget(disk, image)
    if (target === undefined) return
    await using undo = new Undo()
    const lease = await this.#lock(lockResource(target))
    if (lease !== undefined) undo.add(() => this.#takeBack([], [lease]))
    await this.#policy.security.setImageLabel(this.#def, target, this.#journal)
    undo.commit()
  }

  /** The lock of an image alone: for a process of our own kind, which needs no label. */
  async lockImage(disk: DiskDef, image: StorageSource): Promise<LeaseEntry | undefined> {
    const target = imageTarget(disk, image)
    return target && (await this.#lock(lockResource(target)))
  }

  /** Takes back what `lockImage` gave. */
  async unlock(leases: readonly LeaseEntry[]): Promise<void> {
    await this.#takeBack([], leases)
  }

  async #lock(resource: LockResource): Promise<LeaseEntry | undefined> {
    const { locks } = this.#policy
    if (locks === undefined) return undefined
    if (this.pid === undefined)
      throw fail('VIR_ERR_INTERNAL_ERROR', `there is no process to lock '${resource.path}' for`)
    const state = this.#policy.lockStates.get(stateKey(this.#def, resource.path))
    const lease = await locks.acquire(this.#owner(this.pid), [resource], state, this.#holder)
    const entry = { ...lease, driver: locks.name }
    this.#record.leases.push(entry)
    this.persist()
    return entry
  }

  /** Undefined when the lock manager was changed since. */
  #locksOf(lease: LeaseEntry): LockDriver | undefined {
    const { locks } = this.#policy
    return locks?.name === lease.driver ? locks : undefined
  }

  #owner(pid: number): LockOwner {
    const { name, uuid, id = -1 } = this.#def
    return { name, uuid, id, pid }
  }

  /**
   * For a domain that an earlier process started: what was lost meanwhile (the lock manager broke down) is locked anew.
   * VIR_ERR_RESOURCE_BUSY when another has it by now.
   */
  async confirmLocks(): Promise<void> {
    for (const lease of [...this.#record.leases]) {
      if ((await this.#locksOf(lease)?.inquire(lease)) !== false) continue
      for (const { path } of lease.resources) this.#warn(`the lock of '${path}' was lost`)
      this.#record.leases.splice(this.#record.leases.indexOf(lease), 1)
      for (const resource of lease.resources) await this.#lock(resource)
    }
  }

  /** Images that a disk no longer reads, after a stream. */
  async revokeImages(disk: DiskDef, images: readonly StorageSource[]): Promise<void> {
    const labels: LabelEntry[] = []
    const leases: LeaseEntry[] = []
    for (const target of images.flatMap((image) => imageTarget(disk, image) ?? [])) {
      // one for each use: another disk may have the same image below it
      for (const driver of new Set(this.#record.labels.map((entry) => entry.driver))) {
        const isOne = (entry: LabelEntry): boolean =>
          entry.driver === driver && entry.target.path === target.path && entry.target.kind === target.kind
        const label = this.#record.labels.find((entry) => isOne(entry) && !labels.includes(entry))
        if (label !== undefined) labels.push(label)
      }
      const { path, mode } = lockResource(target)
      const locks = ({ resources: [one] }: Lease): boolean => one?.path === path && one.mode === mode
      const lease = this.#record.leases.find((candidate) => locks(candidate) && !leases.includes(candidate))
      if (lease !== undefined) leases.push(lease)
    }
    await this.#takeBack(labels, leases)
  }

  /** A file in the domain's own folder, made for this run. */
  async grantRuntime(path: string): Promise<void> {
    await this.#label({ path, kind: 'runtime', readonly: false, shared: false, seclabels: [] })
  }

  /** A listening unix socket, mode 0600, that QEMU will inherit: only we connect to it. */
  listen(path: string, backlog: number): number {
    return this.#policy.security.makeSocket(this.#def, () => native.listenUnix(path, 0o600, backlog))
  }

  /** The process is gone: everything is taken back, newest first. What fails is logged. */
  async revoke(): Promise<void> {
    this.closeListeners()
    for (const path of this.#record.sockets.splice(0)) rmSync(path, { force: true })
    await this.#takeBack([...this.#record.labels], [...this.#record.leases])
    await this.#policy.security.releaseLabels(this.#def)
  }

  async #takeBack(labels: readonly LabelEntry[], leases: readonly LeaseEntry[]): Promise<void> {
    await this.#policy.security.restore(this.#def, labels, this.#journal)
    for (const lease of leases.toReversed()) {
      await this.#release(lease)
      this.#record.leases.splice(this.#record.leases.indexOf(lease), 1)
    }
    if (leases.length > 0) this.persist()
  }

  async #release(lease: LeaseEntry): Promise<void> {
    const { lockStates } = this.#policy
    const locks = this.#locksOf(lease)
    if (locks === undefined) this.#warn(`the lock of ${pathsOf(lease)} is left to '${lease.driver}', not in use now`)
    try {
      const state = await locks?.release(lease)
      for (const { path } of lease.resources) {
        if (state === undefined) lockStates.delete(stateKey(this.#def, path))
        else lockStates.set(stateKey(this.#def, path), state)
      }
    } catch (error) {
      this.#warn(`the lock of ${pathsOf(lease)} is left: ${messageOf(error)}`)
    }
  }

  #label(target: LabelTarget): Promise<void> {
    return this.#policy.security.setImageLabel(this.#def, target, this.#journal)
  }
}

const pathsOf = ({ resources }: Lease): string => resources.map(({ path }) => `'${path}'`).join(', ')

const stateKey = (def: DomainDef, path: string): string => `${def.uuid} ${path}`
