/**
 * The contract of a lock driver: it keeps two QEMUs, also of other programs and other hosts, from writing one image.
 *
 * How a domain starts: `hold` (nothing is locked, no process is there) → the process that becomes QEMU is made, and stopped
 * before it is QEMU → `LockHolder.attach` → `acquire`, once for each image, before its label is changed → the process becomes
 * QEMU → `LockHolder.close`. When a step fails, what was acquired is released and the process killed.
 * How it ends: once the process is gone, `release` for each lease, in reverse order, by whichever process of ours is there.
 */

/** On whose behalf a lock is held. */
export interface LockOwner {
  readonly name: string
  readonly uuid: string
  /** number of the running domain; -1 when it does not run (offline streams) */
  readonly id: number
  /** the process that opens the images: QEMU, or what is about to become it. A lock must not outlive it. */
  readonly pid: number
}

export interface LockResource {
  /** canonical path of the image: absolute, without symbolic links */
  readonly path: string
  /** the path as the definition has it, where that differs */
  readonly alias?: string
  /**
   * `exclusive`: the only writer. `shared`: one of several writers that know of each other (`<shareable/>`). `read-only`: it
   * only reads, like all that lies below a disk's own image; most drivers take no lock then, and neither does libvirt
   */
  readonly mode: 'exclusive' | 'shared' | 'read-only'
}

/** A lock that is held. Plain data: it is written down, and a later process hands it to `release` and `inquire`. */
export interface Lease {
  readonly owner: LockOwner
  readonly resources: readonly LockResource[]
  /** the driver's own words, to find the lock again */
  readonly data?: string
  /** the driver's own words, by which a later `acquire` of the same resource tells whether another had it meanwhile */
  readonly state?: string
}

/** What ties locks to a process from its birth on, so that they end with it and not with us. */
export interface LockHolder {
  /** descriptors that the process inherits, under the numbers that they have here */
  readonly inherit?: readonly number[]
  /** path of a unix socket: the process itself connects to it, and keeps the connection while it lives */
  readonly connect?: string
  /** The process is there, stopped. `socket`: our own copy of its connection to `connect`; the holder closes it. */
  attach?(owner: LockOwner, socket: number | undefined): Promise<void>
  /** The process runs, or the start has failed: closes our copies. Never throws. */
  close(): void
}

export interface LockDriver {
  /** e.g. 'virtlockd' */
  readonly name: string

  /** Before anything else: why it cannot work here; undefined (or no such call) when it can. */
  probe?(): Promise<string | undefined>

  /** For a process that is to be started with these images; absent: nothing of it need be known before it is there. */
  hold?(resources: readonly LockResource[]): Promise<LockHolder>

  /**
   * Takes locks on all `resources`, or on none; never waits for another holder. VIR_ERR_RESOURCE_BUSY, naming the holder, when
   * another has one. `state`: of the lease that this domain had in the same run, when it was lost, or what `release` answered,
   * perhaps on another host (migration); a driver that knows that another domain had the resource since then rejects. Who
   * calls keeps the string in the domain's status. `holder`: of the process that starts; absent: `owner.pid` runs already,
   * without knowing of this image until now.
   */
  acquire(owner: LockOwner, resources: readonly LockResource[], state?: string, holder?: LockHolder): Promise<Lease>

  /**
   * Makes the locks of a lease `exclusive` or `shared` while they are held: as it was, when another is in the way (then
   * VIR_ERR_RESOURCE_BUSY). The lease is not used any more afterwards. Absent: it is released, and acquired anew.
   */
  convert?(lease: Lease, mode: LockResource['mode']): Promise<Lease>

  /**
   * Gives the locks of a lease back; one that is gone already is no error. Answers a state string for the next `acquire` of
   * these resources in the same run of the domain; undefined: that of the lease. The lease is not used any more afterwards.
   */
  release(lease: Lease): Promise<string | undefined>

  /** Is it still held? Asked when a process of ours finds the domain running; a lease that was lost is acquired anew. */
  inquire(lease: Lease): Promise<boolean>
}

/** What one end of a migration tells the other about locks; plain JSON. */
export interface LockCookie {
  /** name of the lock driver; absent: none */
  driver?: string
  /** by target of the disk: the driver's own words about the lock that was let go of */
  states: Record<string, string>
}
