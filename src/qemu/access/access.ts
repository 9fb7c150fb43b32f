/**
 * The one place that lets a QEMU have something: an image, a file, a directory, a listening socket. First the lock, then the
 * labels; taken back in reverse order. What was done is in the domain's status before QEMU gets it, so that any later
 * process can take it back.
 */
import { mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { DiskDef, DomainDef, StorageSource } from '../../conf/domain-def.js'
import type { LockCookie, LockDriver } from '../../locking/lock-driver.js'
import { native } from '../../native.js'
import type { LabelTarget, ProcessLabel } from '../../security/security-driver.js'
import type { LabelEntry, LabelJournal, SecurityStack } from '../../security/security-stack.js'
import { Undo } from '../../util/undo.js'
import { AccessLocks, type DiskLock, type LeaseEntry } from './locks.js'
import { type AccessRecord, labelsOf, unusedBacking } from './record.js'
import {
  type AccessPlace,
  chardevSockets,
  fileTargets,
  imageTarget,
  lockResource,
  openTheWay,
  removeSocket,
  runtimeTarget,
  writtenTarget,
} from './targets.js'
import { chainOf } from '../blocks/block-graph.js'
import { type Gate, qemuDir } from '../monitor/process.js'

export type { DiskLock, LeaseEntry } from './locks.js'

/** Who decides about access: plain values, from whoever opened the connection or from the root's settings. */
export interface AccessPolicy {
  readonly security: SecurityStack
  readonly locks: LockDriver | undefined
}

export class Access {
  readonly #policy: AccessPolicy
  readonly #def: DomainDef
  readonly #record: AccessRecord
  readonly #journal: LabelJournal
  readonly #locks: AccessLocks
  #program = ''
  /** listening sockets that QEMU inherits, by the alias of their character device */
  readonly listeners = new Map<string, number>()
  /** writes the domain's status; set by whoever knows how far the domain is */
  persist: () => void = () => undefined

  constructor(policy: AccessPolicy, def: DomainDef, warn: (text: string) => void, record?: AccessRecord) {
    this.#policy = policy
    this.#def = def
    this.#record = record ?? { labels: [], leases: [], sockets: [] }
    this.#journal = { entries: this.#record.labels, save: () => this.persist() }
    this.#locks = new AccessLocks(policy.locks, def, { record: this.#record, persist: () => this.persist(), warn })
  }

  /** The process that has the images open, once it is there. */
  set pid(pid: number) {
    this.#locks.pid = pid
  }

  /** For the status; undefined when there is nothing to take back and no driver that wants to hear of the end. */
  get record(): AccessRecord | undefined {
    return this.isNothing ? undefined : this.#record
  }

  /** No labels, no locks: the end of the domain has nothing to wait for. */
  get isNothing(): boolean {
    const { labels, leases, sockets, diskLocks = {} } = this.#record
    const count = labels.length + leases.length + sockets.length + Object.keys(diskLocks).length
    return this.#policy.security.isEmpty && count === 0
  }

  /**
   * Everything that the definition names, and the domain's own folder, but with a lock manager no images: those wait for the
   * `gate`. Answers what QEMU is to run as. When a step fails, all of it is taken back. `disks`: those whose images are opened.
   */
  async grant(
    place: AccessPlace,
    running: readonly DomainDef[],
    disks: readonly DiskDef[] = this.#def.disks,
  ): Promise<ProcessLabel> {
    const { security, locks } = this.#policy
    this.#program = place.program
    await using undo = new Undo()
    undo.add(() => this.revoke())
    await security.generateLabels(this.#def, running)
    const label = await security.processLabel(this.#def)
    if (!security.isEmpty) await this.#grantFiles(place, label)
    if (locks === undefined) await this.#grantDisks(disks)
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
  async gate(disks: readonly DiskDef[] = this.#def.disks): Promise<Gate | undefined> {
    const { locks } = this.#policy
    if (locks === undefined) return undefined
    const images = disks.flatMap((disk) => chainOf(disk).map((image) => ({ disk, image })))
    const targets = images.flatMap(({ disk, image }) => imageTarget(disk, image) ?? [])
    const holder = await locks.hold?.(targets.map(lockResource))
    return {
      inherit: holder?.inherit ?? [],
      connect: holder?.connect,
      admit: async (pid, connection) => {
        this.pid = pid
        this.#locks.holder = holder
        await holder?.attach?.(this.#locks.owner(pid), connection)
        await this.#grantDisks(disks)
      },
      close: () => {
        this.#locks.holder = undefined
        holder?.close()
      },
    }
  }

  async #grantDisks(disks: readonly DiskDef[]): Promise<void> {
    for (const disk of disks) for (const image of chainOf(disk)) await this.grantImage(disk, image)
    await this.#policy.security.labelsSet(this.#def, this.#program)
  }

  /** An image of a disk: its own, or one below it. Nothing for what comes over the network. */
  async grantImage(disk: DiskDef, image: StorageSource): Promise<void> {
    const target = imageTarget(disk, image)
    if (target === undefined) return
    const later = image === disk.source && this.diskLock(disk) === 'released'
    await using undo = new Undo()
    const lease = later ? undefined : await this.#locks.take(lockResource(target))
    if (lease !== undefined) undo.add(() => this.#takeBack([], [lease]))
    await this.#policy.security.setImageLabel(this.#def, target, this.#journal)
    undo.commit()
  }

  /**
   * For a domain that an earlier process started: what was lost meanwhile (the lock manager broke down) is locked anew.
   * VIR_ERR_RESOURCE_BUSY when another has it by now.
   */
  confirmLocks(): Promise<void> {
    return this.#locks.confirm()
  }

  /** Is there any lock that could get lost? */
  get hasLocks(): boolean {
    return this.#record.leases.some(({ data }) => data !== undefined)
  }

  /** How the lock of the disk's own image stands. */
  diskLock(disk: DiskDef): DiskLock {
    return this.#locks.diskLock(disk)
  }

  /** Before `grant`: another host has the locks of these disks' own images still; they are had by `setDiskLocks`. */
  leaveLocks(targets: readonly string[]): void {
    this.#locks.leaveToOther(targets)
  }

  /**
   * Under the domain's job: changes the locks of these disks' own images, of all or of none. Any state to any other, so what a
   * call has done is undone by another with the former state. Answers what the other end needs to go on from 'released', and
   * takes it as `cookie`, without which the driver's words from here count. VIR_ERR_RESOURCE_BUSY when another has or shares
   * the image; VIR_ERR_INTERNAL_ERROR when the other end has another lock manager.
   */
  setDiskLocks(disks: readonly DiskDef[], lock: DiskLock, cookie?: LockCookie): Promise<LockCookie> {
    return this.#locks.setDiskLocks(disks, lock, cookie)
  }

  /**
   * Another host's QEMU uses the images of these disks, or is about to: they keep their labels when the domain ends here, but
   * where what is written on the files themselves counts both hosts.
   */
  keepLabels(disks: readonly DiskDef[], keep = true): void {
    const targets = disks.map(({ target }) => target)
    const others = (this.#record.keptLabels ?? []).filter((target) => !targets.includes(target))
    this.#record.keptLabels = keep ? [...others, ...targets] : others
    this.persist()
  }

  /** An image below the disk's own is to be written to; nothing where it may be already. */
  async openForWriting(disk: DiskDef, image: StorageSource): Promise<void> {
    const [read, write] = [imageTarget(disk, image), writtenTarget(image)]
    if (read === undefined || write === undefined || read.kind === 'disk' || this.#has(write)) return
    await using undo = new Undo()
    const lease = this.#locks.find(lockResource(write)) ?? (await this.#locks.take(lockResource(write)))
    if (lease !== undefined) undo.add(() => this.#takeBack([], [lease]))
    await this.#takeBack(labelsOf(this.#record, read), this.#leasesOf(read))
    undo.add(() => this.grantImage(disk, image))
    await this.#policy.security.setImageLabel(this.#def, write, this.#journal)
    undo.commit()
  }

  /** The reverse: it is only read again. */
  async closeForWriting(disk: DiskDef, image: StorageSource): Promise<void> {
    const [read, write] = [imageTarget(disk, image), writtenTarget(image)]
    if (read === undefined || write === undefined || read.kind === 'disk') return
    const [labels, leases] = [labelsOf(this.#record, write), this.#leasesOf(write)]
    if (labels.length + leases.length === 0) return
    await this.#takeBack(labels, leases)
    await this.grantImage(disk, image)
  }

  #has(target: LabelTarget): boolean {
    const [labels, leases] = [labelsOf(this.#record, target), this.#leasesOf(target)]
    return (
      (labels.length > 0 || this.#policy.security.isEmpty) && (leases.length > 0 || this.#policy.locks === undefined)
    )
  }

  #leasesOf(target: LabelTarget, others: readonly LeaseEntry[] = []): LeaseEntry[] {
    const lease = this.#locks.find(lockResource(target), others)
    return lease === undefined ? [] : [lease]
  }

  /** Images that a disk no longer reads, after a stream, or at all. */
  async revokeImages(disk: DiskDef, images: readonly StorageSource[]): Promise<void> {
    const labels: LabelEntry[] = []
    const leases: LeaseEntry[] = []
    for (const target of images.flatMap((image) => imageTarget(disk, image) ?? [])) {
      labels.push(...labelsOf(this.#record, target, labels))
      leases.push(...this.#leasesOf(target, leases))
    }
    if (disk.source !== undefined && images.includes(disk.source)) this.#locks.forgetDisk(disk)
    await this.#takeBack(labels, leases)
  }

  /** Backing images that none of `disks` reads: what a process that was killed had still to take back after a stream. */
  async revokeUnused(disks: readonly DiskDef[]): Promise<void> {
    const { labels, leases } = unusedBacking(this.#record, disks)
    if (labels.length + leases.length > 0) await this.#takeBack(labels, leases)
  }

  /** A file in the domain's own folder, made for this run. */
  grantRuntime(path: string): Promise<void> {
    return this.#label(runtimeTarget(path))
  }
  /** Before it is removed, while its domain runs. */
  revokeRuntime(path: string): Promise<void> {
    return this.#takeBack(labelsOf(this.#record, runtimeTarget(path)), [])
  }

  /** A listening unix socket, mode 0600, that QEMU will inherit, or connect to. */
  listen(path: string, backlog: number): number {
    return this.makeSocket(() => native.listenUnix(path, 0o600, backlog))
  }
  /** Sockets that QEMU gets, or connects to, are made with its label. */
  makeSocket<T>(make: () => T): T {
    return this.#policy.security.makeSocket(this.#def, make)
  }

  /** The process is gone: everything is taken back, newest first. What fails is logged. */
  async revoke(): Promise<void> {
    this.closeListeners()
    for (const path of this.#record.sockets.splice(0)) rmSync(path, { force: true })
    await this.#takeBack([...this.#record.labels], [])
    await this.#locks.end()
    await this.#policy.security.releaseLabels(this.#def)
  }

  async #takeBack(labels: readonly LabelEntry[], leases: readonly LeaseEntry[]): Promise<void> {
    const kept = this.#def.disks.filter(({ target }) => this.#record.keptLabels?.includes(target) === true)
    const paths = new Set(kept.flatMap((disk) => chainOf(disk).map((image) => imageTarget(disk, image)?.path)))
    const stays = ({ target }: LabelEntry): boolean => paths.has(target.path)
    await this.#policy.security.restore(this.#def, labels, this.#journal, stays)
    await this.#locks.giveBack(leases)
  }

  #label(target: LabelTarget): Promise<void> {
    return this.#policy.security.setImageLabel(this.#def, target, this.#journal)
  }
}
