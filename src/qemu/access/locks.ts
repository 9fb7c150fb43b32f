/** The locks of one domain's images, part of `Access`: taken, changed while a migration needs it, and given back. */
import type { DiskDef, DomainDef } from '../../conf/domain-def.js'
import { failFrom, messageOf } from '../../error.js'
import type { Lease, LockCookie, LockDriver, LockHolder, LockOwner, LockResource } from '../../locking/lock-driver.js'
import { Undo } from '../../util/undo.js'
import { imageTarget, lockResource } from './targets.js'

const fail = failFrom('VIR_FROM_QEMU')

/** A lease and the lock driver that it is of. */
export interface LeaseEntry extends Lease {
  driver: string
}

/** How the lock of a disk's own image stands: as the definition says; shared, while an NBD server serves it; or let go of. */
export type DiskLock = 'held' | 'shared' | 'released'

/** Part of a domain's status. */
export interface LockRecord {
  leases: LeaseEntry[]
  /** by target; absent: 'held' */
  diskLocks?: Record<string, DiskLock>
  /** what the lock driver said about locks that were let go of, by path */
  lockStates?: Record<string, string>
}

export class AccessLocks {
  readonly #locks: LockDriver | undefined
  readonly #def: DomainDef
  readonly #warn: (text: string) => void
  readonly #record: LockRecord
  readonly #persist: () => void
  /** of the process that has the images open; undefined before it is there */
  pid: number | undefined
  /** while the process is about to become QEMU */
  holder: LockHolder | undefined
  /** the process is gone: a lock for it would be nobody's, and never be given back */
  #over = false

  constructor(
    locks: LockDriver | undefined,
    def: DomainDef,
    { record, persist, warn }: { record: LockRecord; persist: () => void; warn: (text: string) => void },
  ) {
    this.#locks = locks
    this.#def = def
    this.#record = record
    this.#persist = persist
    this.#warn = warn
  }

  owner(pid: number): LockOwner {
    const { name, uuid, id = -1 } = this.#def
    return { name, uuid, id, pid }
  }

  /** `state`: what the driver said when it let go of this lock, or when it gave one that was lost. */
  async take(resource: LockResource, state?: string): Promise<LeaseEntry | undefined> {
    if (this.#locks === undefined) return undefined
    if (this.pid === undefined)
      throw fail('VIR_ERR_INTERNAL_ERROR', `there is no process to lock '${resource.path}' for`)
    const lease = await this.#locks.acquire(this.owner(this.pid), [resource], state, this.holder)
    const entry = { ...lease, driver: this.#locks.name }
    if (this.#over) {
      await this.#release(entry)
      throw fail('VIR_ERR_OPERATION_INVALID', `the process that was to have image '${resource.path}' has ended`)
    }
    this.#record.leases.push(entry)
    this.#persist()
    return entry
  }

  /** The lease of an image in that mode, but for those in `others`: a domain may use an image twice. */
  find({ path, mode }: LockResource, others: readonly LeaseEntry[] = []): LeaseEntry | undefined {
    return this.#record.leases.find(
      (lease) => !others.includes(lease) && lease.resources.some((one) => one.path === path && one.mode === mode),
    )
  }

  /** The process is gone: all is given back, and nothing is taken any more. What fails is logged. */
  async end(): Promise<void> {
    this.#over = true
    delete this.#record.diskLocks
    await this.giveBack([...this.#record.leases])
  }

  /** Newest first. What fails is logged. Answers what the driver said of the last one. */
  async giveBack(leases: readonly LeaseEntry[]): Promise<string | undefined> {
    let state: string | undefined
    for (const lease of leases.toReversed()) {
      state = await this.#release(lease)
      this.#forget(lease)
    }
    if (leases.length > 0) this.#persist()
    return state
  }

  #forget(lease: LeaseEntry): void {
    const at = this.#record.leases.indexOf(lease)
    if (at >= 0) this.#record.leases.splice(at, 1)
  }

  async #release(lease: LeaseEntry): Promise<string | undefined> {
    const locks = this.#locksOf(lease)
    if (locks === undefined) this.#warn(`the lock of ${pathsOf(lease)} is left to '${lease.driver}', not in use now`)
    try {
      return await locks?.release(lease)
    } catch (error) {
      this.#warn(`the lock of ${pathsOf(lease)} is left: ${messageOf(error)}`)
      return undefined
    }
  }

  /** Undefined when the lock manager was changed since. */
  #locksOf(lease: LeaseEntry): LockDriver | undefined {
    return this.#locks?.name === lease.driver ? this.#locks : undefined
  }

  /**
   * Locks anew what was lost (the lock manager broke down). Rejects when another has it by now, or had it meanwhile; what
   * could not be had stays among the leases, and is asked for again the next time.
   */
  async confirm(): Promise<void> {
    const failures: unknown[] = []
    for (const lease of [...this.#record.leases])
      if (!this.#over) await this.#confirm(lease).catch((error: unknown) => failures.push(error))
    if (failures.length > 0) throw failures[0]
  }

  async #confirm(lease: LeaseEntry): Promise<void> {
    if ((await this.#locksOf(lease)?.inquire(lease)) !== false || this.#over) return
    for (const { path } of lease.resources) this.#warn(`the lock of '${path}' was lost`)
    for (const resource of lease.resources) await this.take(resource, lease.state)
    this.#forget(lease)
    this.#persist()
  }

  // --- migration -----------------------------------------------------------------------------------------------

  diskLock({ target }: DiskDef): DiskLock {
    return this.#record.diskLocks?.[target] ?? 'held'
  }

  /** Before these disks are locked for the first time: they will be by `setDiskLocks`. */
  leaveToOther(targets: readonly string[]): void {
    for (const target of targets) this.#mark(target, 'released')
  }

  /** The disk is not the domain's any more. */
  forgetDisk(disk: DiskDef): void {
    if (this.diskLock(disk) !== 'held') this.#mark(disk.target, 'held')
  }

  /** See `Access.setDiskLocks`. */
  async setDiskLocks(disks: readonly DiskDef[], lock: DiskLock, cookie?: LockCookie): Promise<LockCookie> {
    const own = this.#locks?.name
    if (cookie?.driver !== undefined && cookie.driver !== own)
      throw fail(
        'VIR_ERR_INTERNAL_ERROR',
        `the other host's lock manager is '${cookie.driver}', this one's is '${own ?? 'none'}'`,
      )
    const states: Record<string, string> = {}
    await using undo = new Undo()
    for (const disk of disks) {
      const before = this.diskLock(disk)
      const resource = ownResource(disk)
      if (resource === undefined) continue
      if (before !== lock) {
        const former = this.#record.lockStates?.[resource.path]
        await this.#change(disk.target, resource, { from: before, to: lock, state: cookie ? cookie.states[disk.target] : former }) // prettier-ignore
        undo.add(() => this.#changeBack(disk.target, resource, lock, before))
      }
      const state = this.#record.lockStates?.[resource.path]
      if (lock === 'released' && state !== undefined) states[disk.target] = state
    }
    undo.commit()
    return { ...(own !== undefined && { driver: own }), states }
  }

  async #changeBack(target: string, resource: LockResource, from: DiskLock, to: DiskLock): Promise<void> {
    const state = this.#record.lockStates?.[resource.path]
    try {
      await this.#change(target, resource, { from, to, state })
    } catch (error) {
      this.#warn(`the lock of '${resource.path}' is ${from}, and cannot be ${to} again: ${messageOf(error)}`)
    }
  }

  async #change(
    target: string,
    resource: LockResource,
    { from, to, state }: { from: DiskLock; to: DiskLock; state: string | undefined },
  ): Promise<void> {
    const wanted = inMode(resource, to)
    const lease = this.find(inMode(resource, from))
    if (this.#locks === undefined) this.#mark(target, to)
    else if (to === 'released') await this.#letGo(target, lease)
    else if (lease === undefined) await this.take(wanted, state)
    else await this.#convert(target, lease, wanted)
    this.#mark(target, to)
  }

  async #letGo(target: string, lease: LeaseEntry | undefined): Promise<void> {
    if (lease === undefined) return
    const [{ path } = { path: '' }] = lease.resources
    const state = (await this.giveBack([lease])) ?? lease.state
    const others = Object.entries(this.#record.lockStates ?? {}).filter(([name]) => name !== path)
    this.#record.lockStates = Object.fromEntries(state === undefined ? others : [...others, [path, state]])
    this.#mark(target, 'released')
  }

  /** Where the driver cannot change a lock, there is a moment in which another may get it: then the former one is gone, too. */
  async #convert(target: string, lease: LeaseEntry, wanted: LockResource): Promise<void> {
    const [former] = lease.resources
    const locks = this.#locksOf(lease)
    if (former?.mode === wanted.mode || locks === undefined) return
    if (locks.convert !== undefined) {
      const changed = await locks.convert(lease, wanted.mode)
      this.#forget(lease)
      this.#record.leases.push({ ...changed, driver: locks.name })
      return
    }
    await this.#letGo(target, lease)
    const state = this.#record.lockStates?.[wanted.path]
    try {
      await this.take(wanted, state)
    } catch (error) {
      if (former !== undefined) await this.take(former, state)
      this.#mark(target, former?.mode === 'shared' ? 'shared' : 'held')
      throw error
    }
  }

  #mark(target: string, lock: DiskLock): void {
    const others = Object.entries(this.#record.diskLocks ?? {}).filter(([name]) => name !== target)
    this.#record.diskLocks = Object.fromEntries(lock === 'held' ? others : [...others, [target, lock]])
    this.#persist()
  }
}

/** Undefined for what comes over the network. */
function ownResource(disk: DiskDef): LockResource | undefined {
  const target = disk.source && imageTarget(disk, disk.source)
  return target && lockResource(target)
}

const inMode = (resource: LockResource, lock: DiskLock): LockResource =>
  lock === 'shared' && resource.mode === 'exclusive' ? { ...resource, mode: 'shared' } : resource

const pathsOf = ({ resources }: Lease): string => resources.map(({ path }) => `'${path}'`).join(', ')
