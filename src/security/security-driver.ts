/** The contract of a security driver. Plain objects fulfil it; see docs/security.md and `dac.ts`, `selinux.ts`, `apparmor.ts`. */
import type { DomainDef, SeclabelDef } from '../conf/domain-def.js'

/** Something on the host's file system that a QEMU is to use, or the storage daemon that has its disks while it does not run. */
export interface LabelTarget {
  /** absolute */
  readonly path: string
  /**
   * - `disk`: the own image of a disk; `backing`: an image below it
   * - `boot`: kernel, initial ram disk, device tree; `nvram`: the firmware's variables
   * - `chardev`: host end of a character device, or its log; `log`: what QEMU says of itself
   * - `runtime`: made for this run and removed with it (directory, sockets, secrets): nothing is ever restored
   */
  readonly kind: 'disk' | 'backing' | 'boot' | 'nvram' | 'chardev' | 'log' | 'runtime'
  /** QEMU only reads it */
  readonly readonly: boolean
  /** other QEMUs may write it at the same time (`<shareable/>`) */
  readonly shared: boolean
  /** `<seclabel>`s of the image itself, then those of the disk that it backs: the first that says anything counts */
  readonly seclabels: readonly SeclabelDef[]
}

/** What a QEMU is to run as. */
export interface ProcessLabel {
  uid?: number
  gid?: number
  /** supplementary groups */
  groups?: number[]
  /** label to get at exec */
  selinuxLabel?: string
  /** profile to change to at exec */
  apparmorProfile?: string
}

/**
 * Keeps the QEMU of a domain away from everything that is not its own. Hooks come in the order in which they stand here;
 * an absent one is skipped. `def` is the live definition of the domain that is being started or ended. Hooks reject with a
 * `VirError`; one that rejects has left everything as it was.
 */
export interface SecurityDriver {
  /** the model of its `<seclabel>`s: 'dac', 'selinux', … */
  readonly name: string

  /** Once, before the first domain: undefined when it can work here, otherwise a sentence that says why not. */
  probe(): Promise<string | undefined>

  /**
   * A domain is about to start. Its `<seclabel>` of this model is in `def.seclabels` (a dynamic one where the user gave
   * none) and gets `label` and `imagelabel` here, which the live XML shows. `running` are the other running domains of the
   * root: what they have must not be given out again.
   */
  generateLabel?(def: DomainDef, running: readonly DomainDef[]): Promise<void>

  /** What the QEMU of this domain is to run as. */
  processLabel?(def: DomainDef): Promise<ProcessLabel>

  /**
   * Before QEMU may touch `target`, once for each image and each domain that uses it. Before it changes anything that is to
   * be restored, the driver calls `note` with all that it will need for that: the text is on disk when `note` returns, so
   * that it is there after a crash of any process. Without a note there is no restoring.
   */
  setImageLabel?(def: DomainDef, target: LabelTarget, note: (state: string) => void): Promise<void>

  /**
   * All that it begins with is labelled, and QEMU is about to begin. Later ones may come while it runs. `program`: its absolute
   * path; that of the storage daemon where disks are streamed without a guest
   */
  labelsSet?(def: DomainDef, program: string): Promise<void>

  /**
   * QEMU no longer uses `target`: the domain ended, however, or a stream made the image superfluous. Others may use it
   * still. `complete` is false when our process died between the note and the end of `setImageLabel`: then it may or may
   * not have been labelled. An image that is gone is no error. `stays`: the domain was migrated, and on the other host QEMU
   * uses the file with the label that it has; only what is counted here ends.
   */
  restoreImageLabel?(
    def: DomainDef,
    target: LabelTarget,
    state: string,
    complete: boolean,
    stays: boolean,
  ): Promise<void>

  /**
   * Directly before a unix socket is made that QEMU inherits, is given, or connects to, and directly after it. Nothing else
   * runs between the two, so neither may wait for anything. `clearSocketLabel` comes also when the socket could not be made.
   */
  setSocketLabel?(def: DomainDef): void
  clearSocketLabel?(def: DomainDef): void

  /** The domain has ended and everything is restored; undoes what else was left on the host. */
  releaseLabel?(def: DomainDef): Promise<void>
}
