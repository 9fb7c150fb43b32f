/**
 * The one place that lets a QEMU have something: an image, a file, a directory, a listening socket. First the lock, then the
 * labels; taken back in reverse order. What was done is in the domain's status before QEMU gets it, so that any later
 * process can take it back.
 */
import { chmodSync, closeSync, existsSync, mkdirSync, openSync, realpathSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import type { ChardevDef, DiskDef, DomainDef, StorageSource } from '../conf/domain-def.js'
import type { Lease, LockDriver, LockHolder, LockOwner, LockResource } from '../locking/lock-driver.js'
import { failFrom, messageOf } from '../error.js'
import { native } from '../native.js'
import type { LabelTarget, ProcessLabel } from '../security/security-driver.js'
import type { LabelEntry, LabelJournal, SecurityStack } from '../security/security-stack.js'
import { Undo } from '../util/undo.js'
import { chainOf } from './block-graph.js'
import { type Gate, qemuDir } from './process.js'
import type { Root } from './root.js'

const fail = failFrom('VIR_FROM_QEMU')

/** Who decides about access: plain values, from whoever opened the connection or from the root's settings. */
export interface AccessPolicy {
  readonly security: SecurityStack
  readonly locks: LockDriver | undefined
}

/** What is to be taken back when the domain ends; part of its status. */
export interface AccessRecord {
  labels: LabelEntry[]
  leases: Lease[]
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
    const { security } = this.#policy
    await using undo = new Undo()
    await security.generateLabels(this.#def, running)
    undo.add(() => this.revoke())
    if (this.#policy.locks === undefined) await this.#grantImages()
    const label = security.isEmpty ? {} : await this.#grantRest(place)
    undo.commit()
    return label
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

  async #lock(resource: LockResource): Promise<Lease | undefined> {
    const { locks } = this.#policy
    if (locks === undefined) return undefined
    if (this.pid === undefined)
      throw fail('VIR_ERR_INTERNAL_ERROR', `there is no process to lock '${resource.path}' for`)
    const lease = await locks.acquire(this.#owner(this.pid), [resource], undefined, this.#holder)
    this.#record.leases.push(lease)
    this.persist()
    return lease
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
    const { locks } = this.#policy
    for (const lease of locks === undefined ? [] : [...this.#record.leases]) {
      if ((await locks?.inquire(lease)) !== false) continue
      for (const { path } of lease.resources) this.#warn(`the lock of '${path}' was lost`)
      this.#record.leases.splice(this.#record.leases.indexOf(lease), 1)
      for (const resource of lease.resources) await this.#lock(resource)
    }
  }

  /** Images that a disk no longer reads, after a stream. */
  async revokeImages(images: readonly StorageSource[]): Promise<void> {
    const labels: LabelEntry[] = []
    const leases: Lease[] = []
    for (const { path } of images.flatMap((image) => (image.type === 'network' ? [] : [image]))) {
      // one for each use: another disk may have the same image below it
      for (const driver of new Set(this.#record.labels.map((entry) => entry.driver))) {
        const label = this.#record.labels.find(
          (entry) =>
            entry.driver === driver &&
            entry.target.path === path &&
            entry.target.kind === 'backing' &&
            !labels.includes(entry),
        )
        if (label !== undefined) labels.push(label)
      }
      const reads = ({ resources }: Lease): boolean =>
        resources.some((resource) => (resource.alias ?? resource.path) === path && resource.mode === 'read-only')
      const lease = this.#record.leases.find((candidate) => reads(candidate) && !leases.includes(candidate))
      if (lease !== undefined) leases.push(lease)
    }
    await this.#takeBack(labels, leases)
  }

  /** A file in the domain's own folder, made for this run. */
  async grantRuntime(path: string): Promise<void> {
    await this.#label(path, 'runtime')
  }

  /** A listening unix socket, mode 0600, that QEMU will inherit: only we connect to it. */
  listen(path: string, backlog: number): number {
    return this.#policy.security.makeSocket(this.#def, () => native.listenUnix(path, 0o600, backlog))
  }

  /** The process is gone: everything is taken back, newest first. What fails is logged. */
  async revoke(): Promise<void> {
    for (const path of this.#record.sockets.splice(0)) rmSync(path, { force: true })
    await this.#takeBack([...this.#record.labels], [...this.#record.leases])
    await this.#policy.security.releaseLabels(this.#def)
  }

  async #takeBack(labels: readonly LabelEntry[], leases: readonly Lease[]): Promise<void> {
    await this.#policy.security.restore(this.#def, [...labels], this.#journal)
    for (const lease of leases.toReversed()) {
      const paths = lease.resources.map(({ path }) => `'${path}'`).join(', ')
      if (this.#policy.locks === undefined) this.#warn(`the lock of ${paths} is left: there is no lock manager now`)
      await this.#policy.locks
        ?.release(lease)
        .catch((error: unknown) => this.#warn(`the lock of ${paths} is left: ${messageOf(error)}`))
      this.#record.leases.splice(this.#record.leases.indexOf(lease), 1)
    }
    if (leases.length > 0) this.persist()
  }

  async #grantRest(place: AccessPlace): Promise<ProcessLabel> {
    const { kernel, initrd, dtb, nvram } = this.#def.os
    for (const path of [kernel, initrd, dtb]) if (path !== undefined) await this.#label(path, 'boot', true)
    if (nvram?.path !== undefined) await this.#label(nvram.path, 'nvram')
    const { serials, consoles, channels } = this.#def
    for (const path of new Set([...serials, ...channels, ...consoles].flatMap(filesOf))) {
      makeFile(path)
      await this.#label(path, 'chardev')
    }
    makeFile(place.logFile)
    await this.#label(place.logFile, 'log')
    const label = await this.#policy.security.processLabel(this.#def)
    if (label.uid !== undefined && label.uid !== process.geteuid?.()) openTheWay(place)
    // what QEMU makes itself lies apart from our own files about it
    mkdirSync(join(place.runDir, 'qemu'), { mode: 0o700 })
    await this.#label(qemuDir(place.runDir), 'runtime')
    return label
  }

  async #label(path: string, kind: LabelTarget['kind'], readonly = false): Promise<void> {
    const target: LabelTarget = { path, kind, readonly, shared: false, seclabels: [] }
    await this.#policy.security.setImageLabel(this.#def, target, this.#journal)
  }
}

/** Undefined for what comes over the network. */
function imageTarget(disk: DiskDef, image: StorageSource): LabelTarget | undefined {
  if (image.type === 'network') return undefined
  const top = image === disk.source
  const own = image.seclabels ?? []
  return {
    path: image.path,
    kind: top ? 'disk' : 'backing',
    readonly: !top || disk.readonly || disk.device === 'cdrom',
    shared: top && disk.shareable,
    seclabels: top ? own : [...own, ...(disk.source?.seclabels ?? [])],
  }
}

function lockResource({ path, readonly, shared }: LabelTarget): LockResource {
  const real = realPath(path)
  const mode = readonly ? 'read-only' : shared ? 'shared' : 'exclusive'
  return { path: real, ...(real !== path && { alias: path }), mode }
}

function realPath(path: string): string {
  try {
    return realpathSync(path)
  } catch {
    return path // what is not there QEMU will say
  }
}

/** Files behind a character device. QEMU makes sockets and pseudo terminals itself. */
function filesOf({ source, log }: ChardevDef): string[] {
  const own = source.type === 'file' || source.type === 'dev' ? [source.path] : []
  return log === undefined ? own : [...own, log.file]
}

/** QEMU would make it, but its user may not be able to. */
function makeFile(path: string): void {
  if (existsSync(path)) return
  try {
    closeSync(openSync(path, 'a', 0o600))
  } catch (error) {
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot make '${path}': ${messageOf(error)}`, error)
  }
}

/** Another user may pass through the folders above what is his, without seeing what else is there. */
function openTheWay({ root, runDir }: AccessPlace): void {
  const below = ['', 'run', 'run/qemu', 'lib', 'lib/qemu', 'lib/qemu/nvram'].map((name) => join(root.path, name))
  for (const dir of [...below, runDir]) chmodSync(dir, statSync(dir).mode | 0o011)
}
