import type { Duplex } from 'node:stream'
import * as c from '../constants.gen.js'
import type {
  DomainBlockInfo,
  DomainBlockJobInfo,
  DomainBlockStats,
  DomainInfo,
  DomainJobStats,
  DomainRef,
  DomainState,
  MigrateParams,
  StreamDiskState,
  StreamOptions,
} from '../driver.js'
import { failFrom } from '../error.js'
import { VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST } from '../stream-flags.js'
import type { Connect } from './connect.js'
import { DiskStream } from './disk-stream.js'
import { migrateDomain } from './migrate.js'
import { type Session, sessionOf } from './session.js'
import { checkStream } from './stream-arguments.js'

const fail = failFrom('VIR_FROM_DOM')

/** VIR_DOMAIN_START_* */
export const startFlags =
  c.VIR_DOMAIN_START_PAUSED |
  c.VIR_DOMAIN_START_AUTODESTROY |
  c.VIR_DOMAIN_START_BYPASS_CACHE |
  c.VIR_DOMAIN_START_FORCE_BOOT |
  c.VIR_DOMAIN_START_VALIDATE |
  c.VIR_DOMAIN_START_RESET_NVRAM

/** VIR_DOMAIN_SAVE_* */
export const saveFlags =
  c.VIR_DOMAIN_SAVE_BYPASS_CACHE | c.VIR_DOMAIN_SAVE_RUNNING | c.VIR_DOMAIN_SAVE_PAUSED | c.VIR_DOMAIN_SAVE_RESET_NVRAM

export const savedRunning = ['VIR_DOMAIN_SAVE_RUNNING', c.VIR_DOMAIN_SAVE_RUNNING] as const
export const savedPaused = ['VIR_DOMAIN_SAVE_PAUSED', c.VIR_DOMAIN_SAVE_PAUSED] as const

const affectFlags = c.VIR_DOMAIN_AFFECT_LIVE | c.VIR_DOMAIN_AFFECT_CONFIG

const commitFlags =
  c.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW |
  c.VIR_DOMAIN_BLOCK_COMMIT_DELETE |
  c.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE |
  c.VIR_DOMAIN_BLOCK_COMMIT_RELATIVE |
  c.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES

const xmlFlags =
  c.VIR_DOMAIN_XML_SECURE | c.VIR_DOMAIN_XML_INACTIVE | c.VIR_DOMAIN_XML_UPDATE_CPU | c.VIR_DOMAIN_XML_MIGRATABLE

const undefineFlags =
  c.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE |
  c.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA |
  c.VIR_DOMAIN_UNDEFINE_NVRAM |
  c.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM |
  c.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA |
  c.VIR_DOMAIN_UNDEFINE_TPM |
  c.VIR_DOMAIN_UNDEFINE_KEEP_TPM

const shutdownFlags =
  c.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN |
  c.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT |
  c.VIR_DOMAIN_SHUTDOWN_INITCTL |
  c.VIR_DOMAIN_SHUTDOWN_SIGNAL |
  c.VIR_DOMAIN_SHUTDOWN_PARAVIRT

const rebootFlags =
  c.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN |
  c.VIR_DOMAIN_REBOOT_GUEST_AGENT |
  c.VIR_DOMAIN_REBOOT_INITCTL |
  c.VIR_DOMAIN_REBOOT_SIGNAL |
  c.VIR_DOMAIN_REBOOT_PARAVIRT

/**
 * A domain of an open connection: libvirt's virDomainPtr. Methods are libvirt's functions without `virDomain`; each
 * rejects with a `VirError`. A disk is named by its target dev ('vda'), its alias ('virtio-disk0') or its source path.
 */
export class Domain implements DomainRef {
  readonly #session: Session
  readonly #name: string
  readonly #uuid: string
  #id: number

  /** Made by the lookups of a `Connect`. */
  constructor(session: Session, ref: DomainRef) {
    this.#session = session
    this.#name = ref.name
    this.#uuid = ref.uuid
    this.#id = ref.id
  }

  /** virDomainGetName */
  get name(): string {
    return this.#name
  }

  /** virDomainGetUUIDString: lower case, with dashes. */
  get uuid(): string {
    return this.#uuid
  }

  /** virDomainGetID: -1 when it does not run; as of the lookup, or of the last create() or destroy() of this handle. */
  get id(): number {
    return this.#id
  }

  toJSON(): DomainRef {
    return { name: this.name, uuid: this.uuid, id: this.id }
  }

  /** virDomainGetXMLDesc: `flags` VIR_DOMAIN_XML_*. Passwords (SECURE) need a connection that may write. */
  async getXMLDesc(flags = 0): Promise<string> {
    return this.#session.call('domainGetXMLDesc', (check) => {
      check.flags(flags, xmlFlags)
      if (this.#session.readOnly && (flags & (c.VIR_DOMAIN_XML_SECURE | c.VIR_DOMAIN_XML_MIGRATABLE)) !== 0)
        throw fail('VIR_ERR_OPERATION_DENIED', 'virDomainGetXMLDesc with secure flag forbidden for read only access')
      return [this, flags]
    })
  }

  /** virDomainGetState: `state` VIR_DOMAIN_RUNNING … and `reason` VIR_DOMAIN_RUNNING_BOOTED …. */
  async getState(): Promise<DomainState> {
    return this.#session.call('domainGetState', () => [this])
  }

  /** virDomainGetInfo: memory in KiB, `cpuTime` in nanoseconds. */
  async getInfo(): Promise<DomainInfo> {
    return this.#session.call('domainGetInfo', () => [this])
  }

  /** virDomainIsActive: does it run (paused counts)? */
  async isActive(): Promise<boolean> {
    return this.#session.call('domainIsActive', () => [this])
  }

  /** virDomainIsPersistent: has it a definition that stays when it stops? */
  async isPersistent(): Promise<boolean> {
    return this.#session.call('domainIsPersistent', () => [this])
  }

  /** virDomainCreateWithFlags: starts a defined domain; `flags` VIR_DOMAIN_START_*. VIR_ERR_OPERATION_INVALID when it runs. */
  async create(flags = 0): Promise<void> {
    const started = await this.#session.call('domainCreate', (check) => [this, check.flags(flags, startFlags)])
    this.#id = started.id
  }

  /** virDomainDestroyFlags: ends it at once, like pulling the plug; `flags` VIR_DOMAIN_DESTROY_*. */
  async destroy(flags = 0): Promise<void> {
    const known = c.VIR_DOMAIN_DESTROY_GRACEFUL | c.VIR_DOMAIN_DESTROY_REMOVE_LOGS
    await this.#session.call('domainDestroy', (check) => [this, check.flags(flags, known)])
    this.#id = -1
  }

  /** virDomainShutdownFlags: asks the guest to power down, and does not wait; `flags` VIR_DOMAIN_SHUTDOWN_*. */
  async shutdown(flags = 0): Promise<void> {
    return this.#session.call('domainShutdown', (check) => [this, check.flags(flags, shutdownFlags)])
  }

  /** virDomainReboot: asks the guest to restart, and does not wait; `flags` VIR_DOMAIN_REBOOT_*. */
  async reboot(flags = 0): Promise<void> {
    return this.#session.call('domainReboot', (check) => [this, check.flags(flags, rebootFlags)])
  }

  /** virDomainReset: like the reset button. */
  async reset(flags = 0): Promise<void> {
    return this.#session.call('domainReset', (check) => [this, check.flags(flags)])
  }

  /** virDomainSuspend: stops its CPUs; memory stays. */
  async suspend(): Promise<void> {
    return this.#session.call('domainSuspend', () => [this])
  }

  /** virDomainResume */
  async resume(): Promise<void> {
    return this.#session.call('domainResume', () => [this])
  }

  /** virDomainUndefineFlags: drops the definition; a running domain becomes transient; `flags` VIR_DOMAIN_UNDEFINE_*. */
  async undefine(flags = 0): Promise<void> {
    return this.#session.call('domainUndefine', (check) => {
      check.flags(flags, undefineFlags)
      check.exclusive(
        flags,
        ['VIR_DOMAIN_UNDEFINE_NVRAM', c.VIR_DOMAIN_UNDEFINE_NVRAM],
        ['VIR_DOMAIN_UNDEFINE_KEEP_NVRAM', c.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM],
      )
      return [this, flags]
    })
  }

  /** virDomainSaveFlags: memory and state go to the file `to`, and the domain stops; `flags` VIR_DOMAIN_SAVE_*. */
  async save(to: string, xml?: string, flags = 0): Promise<void> {
    await this.#session.call('domainSave', (check) => {
      check.exclusive(check.flags(flags, saveFlags), savedRunning, savedPaused)
      return [this, check.text('to', to), check.optionalText('dxml', xml), flags]
    })
    this.#id = -1
  }

  /** virDomainManagedSave: as save(), to a file of the driver's own, from which the next create() goes on. */
  async managedSave(flags = 0): Promise<void> {
    await this.#session.call('domainManagedSave', (check) => {
      check.exclusive(check.flags(flags, saveFlags), savedRunning, savedPaused)
      return [this, flags]
    })
    this.#id = -1
  }

  /** virDomainHasManagedSaveImage */
  async hasManagedSaveImage(): Promise<boolean> {
    return this.#session.call('domainHasManagedSaveImage', () => [this])
  }

  /** virDomainManagedSaveRemove */
  async managedSaveRemove(): Promise<void> {
    return this.#session.call('domainManagedSaveRemove', () => [this])
  }

  /** virDomainSetAutostart */
  async setAutostart(autostart: boolean): Promise<void> {
    return this.#session.call('domainSetAutostart', (check) => [this, check.boolean('autostart', autostart)])
  }

  /** virDomainGetAutostart */
  async getAutostart(): Promise<boolean> {
    return this.#session.call('domainGetAutostart', () => [this])
  }

  /**
   * virDomainAttachDeviceFlags: plugs in a disk; `xml` is its element. `flags` VIR_DOMAIN_AFFECT_*: the running guest,
   * the definition, or both; 0: the guest where it runs, else the definition. VIR_ERR_OPERATION_UNSUPPORTED for other devices.
   */
  async attachDevice(xml: string, flags = 0): Promise<void> {
    return this.#session.call('domainAttachDevice', (check) => [
      this,
      check.text('xml', xml),
      check.flags(flags, affectFlags),
    ])
  }

  /**
   * virDomainDetachDeviceFlags: takes out the disk with the target that `xml` names; `flags` as for attachDevice(). A guest
   * that takes longer than some seconds to let go of it is no failure: a `device-removed` event tells. One that is being
   * streamed is not taken out (VIR_ERR_OPERATION_UNSUPPORTED).
   */
  async detachDevice(xml: string, flags = 0): Promise<void> {
    return this.#session.call('domainDetachDevice', (check) => [
      this,
      check.text('xml', xml),
      check.flags(flags, affectFlags),
    ])
  }

  /**
   * virDomainUpdateDeviceFlags: changes a disk to what `xml` says; `flags` as for attachDevice(). Of a running domain that is
   * the medium of a CD-ROM or floppy drive (none: it is ejected) and its startupPolicy, anything else is
   * VIR_ERR_OPERATION_UNSUPPORTED; in the definition it is all but the target. VIR_DOMAIN_DEVICE_MODIFY_FORCE: also where the
   * guest has locked the tray.
   */
  async updateDevice(xml: string, flags = 0): Promise<void> {
    return this.#session.call('domainUpdateDevice', (check) => [
      this,
      check.text('xml', xml),
      check.flags(flags, affectFlags | c.VIR_DOMAIN_DEVICE_MODIFY_FORCE),
    ])
  }

  /** virDomainGetBlockInfo, bytes. */
  async blockInfo(disk: string, flags = 0): Promise<DomainBlockInfo> {
    return this.#session.call('domainGetBlockInfo', (check) => [this, check.text('disk', disk), check.flags(flags)])
  }

  /** virDomainBlockStatsFlags: requests, bytes and nanoseconds since it started; '' as `disk` means all disks in one. */
  async blockStats(disk: string): Promise<DomainBlockStats> {
    return this.#session.call('domainBlockStats', (check) => [this, disk === '' ? '' : check.text('disk', disk)])
  }

  /**
   * virDomainBlockResize: the disk of a running domain gets another size, which the guest is told; `size` in KiB, or in
   * bytes with VIR_DOMAIN_BLOCK_RESIZE_BYTES; qcow2 and QED round up to 512 bytes. What lies behind a smaller size is lost.
   * VIR_ERR_OPERATION_UNSUPPORTED for an empty or read-only disk, VIR_ERR_OPERATION_INVALID while it has a block job.
   */
  async blockResize(disk: string, size: number, flags = 0): Promise<void> {
    return this.#session.call('domainBlockResize', (check) => {
      check.flags(flags, c.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
      return [this, check.text('disk', disk), check.size(size, flags !== 0)]
    })
  }

  /**
   * virDomainBlockPull: copies what the disk's image lacks from its backing chain, in the background; at the end the
   * image needs no backing image. `bandwidth` in MiB/s, or in bytes/s with VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES; 0: no limit.
   */
  async blockPull(disk: string, bandwidth = 0, flags = 0): Promise<void> {
    return this.#session.call('domainBlockPull', (check) => {
      check.flags(flags, c.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
      return [this, check.text('disk', disk), check.bandwidth(bandwidth, flags !== 0)]
    })
  }

  /**
   * virDomainBlockRebase, as a pull down to `base`, the path of an image in the backing chain that stays the backing
   * image (absent: none stays). `bandwidth` in MiB/s, or in bytes/s with VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES.
   */
  async blockRebase(disk: string, base?: string, bandwidth = 0, flags = 0): Promise<void> {
    return this.#session.call('domainBlockRebase', (check) => {
      check.flags(flags, c.VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES)
      const speed = check.bandwidth(bandwidth, flags !== 0)
      return [this, check.text('disk', disk), check.optionalText('base', base), speed, flags]
    })
  }

  /**
   * virDomainBlockCommit: writes what the images from `top` (absent: the disk's own) down to the one above `base` (absent: the
   * last image) hold into `base`, in the background; then they are no longer part of the disk. Paths, or 'vda[3]' by the
   * index that the XML shows. With VIR_DOMAIN_BLOCK_COMMIT_ACTIVE, which the disk's own image needs, the job stays when all
   * is written (event VIR_DOMAIN_BLOCK_JOB_READY) until blockJobAbort() with VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT makes `base`
   * the disk's image. `bandwidth` in MiB/s, or in bytes/s with VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES; 0: no limit.
   */
  async blockCommit(disk: string, base?: string, top?: string, bandwidth = 0, flags = 0): Promise<void> {
    return this.#session.call('domainBlockCommit', (check) => {
      check.flags(flags, commitFlags)
      const speed = check.bandwidth(bandwidth, (flags & c.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES) !== 0)
      const [from, to] = [check.optionalText('top', top), check.optionalText('base', base)]
      return [this, check.text('disk', disk), to, from, speed, flags]
    })
  }

  /**
   * virDomainGetBlockJobInfo: undefined when the disk has no job. `cur` and `end` in bytes; `bandwidth` in MiB/s, or in
   * bytes/s with VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES; 0: no limit.
   */
  async blockJobInfo(disk: string, flags = 0): Promise<DomainBlockJobInfo | undefined> {
    const info = await this.#session.call('domainGetBlockJobInfo', (check) => {
      check.flags(flags, c.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
      return [this, check.text('disk', disk)]
    })
    if (info === undefined || flags !== 0) return info
    return { ...info, bandwidth: Math.ceil(info.bandwidth / (1024 * 1024)) }
  }

  /**
   * virDomainBlockJobAbort: what was copied stays; `flags` VIR_DOMAIN_BLOCK_JOB_ABORT_*. With _PIVOT a commit of the disk's
   * own image is concluded instead: its base is the disk's image from then on. VIR_ERR_BLOCK_COPY_ACTIVE: it is not ready.
   */
  async blockJobAbort(disk: string, flags = 0): Promise<void> {
    return this.#session.call('domainBlockJobAbort', (check) => {
      const known = c.VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC | c.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
      return [this, check.text('disk', disk), check.flags(flags, known)]
    })
  }

  /** virDomainBlockJobSetSpeed: MiB/s, or bytes/s with VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES; 0: no limit. */
  async blockJobSetSpeed(disk: string, bandwidth: number, flags = 0): Promise<void> {
    return this.#session.call('domainBlockJobSetSpeed', (check) => {
      check.flags(flags, c.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)
      return [this, check.text('disk', disk), check.bandwidth(bandwidth, flags !== 0)]
    })
  }

  /**
   * virDomainStreamDisk: VIR_STREAM_DISK_START streams the whole disk in the background and resolves to 0 once that
   * runs; VIR_STREAM_DISK_STOP ends it, what was copied stays; VIR_STREAM_DISK_ONE streams one unit at byte `offset` and
   * resolves to the next offset.
   */
  async streamDisk(disk: string, offset: number, flags: number, options: StreamOptions = {}): Promise<number> {
    return this.#session.call('domainStreamDisk', (check) => {
      const checked = checkStream(check, disk, offset, flags, options)
      return [this, disk, offset, flags, checked]
    })
  }

  /** virDomainStreamDiskInfo: one entry for each disk that is being streamed. */
  async streamDiskInfo(flags = 0): Promise<StreamDiskState[]> {
    return this.#session.call('domainStreamDiskInfo', (check) => [this, check.flags(flags)])
  }

  /**
   * The base of a disk is somewhere else now: `base`, a path or a URI ('nbd://host/export') as the header of an image would
   * name it, takes the place of `image` (default: the first remote image of the disk's chain, else its last). It must be
   * there, of the same format and size; that it holds the same is the caller's word. Guest and streams go on with it, and
   * later starts find it. VIR_ERR_OPERATION_INVALID when requests wait for the old one and only its own return can end that.
   */
  async streamDiskSetBase(disk: string, base: string, options: { image?: string } = {}, flags = 0): Promise<void> {
    return this.#session.call('domainStreamDiskSetBase', (check) => {
      const image = check.optionalText('image', options.image)
      return [this, check.text('disk', disk), check.text('base', base), image, check.flags(flags)]
    })
  }

  /** Starts streaming the whole disk, as streamDisk() with VIR_STREAM_DISK_START does, and answers a handle on that. */
  async stream(disk: string, options: StreamOptions = {}): Promise<DiskStream> {
    return DiskStream.start(this, this.#session, disk, options)
  }

  /** A handle on a stream that runs already, whoever began it. VIR_ERR_OPERATION_INVALID when nothing streams `disk`. */
  async attachStream(disk: string, options: Pick<StreamOptions, 'signal'> = {}): Promise<DiskStream> {
    return DiskStream.attach(this, this.#session, disk, options)
  }

  /**
   * virDomainMigrate3: moves a running domain to the host of `dest`; `flags` VIR_MIGRATE_*. Resolves when the guest runs
   * there. With VIR_MIGRATE_STREAM_DISKS its disks follow (streamDiskInfo() there, mode 'migration'), and the domain here
   * stays VIR_DOMAIN_PAUSED_POSTCOPY, serving them, until all has gone over. `params.signal` aborts it before the switch.
   */
  async migrate(
    dest: Connect,
    { signal, ...params }: MigrateParams & { signal?: AbortSignal } = {},
    flags = 0,
  ): Promise<Domain> {
    const abort = (): void => void this.abortJob().catch(() => undefined)
    signal?.throwIfAborted()
    signal?.addEventListener('abort', abort, { once: true })
    try {
      const session = sessionOf(dest)
      return new Domain(session, await migrateDomain(this.#session, this, session, params, flags, signal))
    } finally {
      signal?.removeEventListener('abort', abort)
    }
  }

  /**
   * virDomainMigrateStartPostCopy: a migration with VIR_MIGRATE_POSTCOPY that is under way lets its guest run at the
   * destination now, what is missing of its memory follows. VIR_ERR_OPERATION_INVALID when there is no such migration. From
   * then on it cannot be aborted. `flags`: 0.
   */
  async migrateStartPostCopy(flags = 0): Promise<void> {
    return this.#session.call('domainMigrateStartPostCopy', (check) => [this, check.flags(flags, 0)])
  }

  /**
   * virDomainMigrateSetMaxDowntime: ms that the guest may stand still at the end of a migration, of the one that is under
   * way and those to come in this run of the domain; QEMU's default is 300.
   */
  async migrateSetMaxDowntime(downtime: number, flags = 0): Promise<void> {
    return this.#session.call('domainMigrateSetMaxDowntime', (check) => [
      this,
      check.count('downtime', downtime),
      check.flags(flags, 0),
    ])
  }

  /** virDomainMigrateGetMaxDowntime: ms. */
  async migrateGetMaxDowntime(flags = 0): Promise<number> {
    return this.#session.call('domainMigrateGetMaxDowntime', (check) => [this, check.flags(flags, 0)])
  }

  /**
   * virDomainMigrateSetMaxSpeed: MiB/s that memory may take in migrations to come which do not say so themselves, and in
   * one that is under way; `flags` VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY: in its post-copy phase.
   */
  async migrateSetMaxSpeed(bandwidth: number, flags = 0): Promise<void> {
    return this.#session.call('domainMigrateSetMaxSpeed', (check) => [
      this,
      check.count('bandwidth', bandwidth),
      check.flags(flags, c.VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY),
    ])
  }

  /** virDomainMigrateGetMaxSpeed: MiB/s; a very large number where there is no limit, with the flag 0. */
  async migrateGetMaxSpeed(flags = 0): Promise<number> {
    const known = c.VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY
    return this.#session.call('domainMigrateGetMaxSpeed', (check) => [this, check.flags(flags, known)])
  }

  /**
   * virDomainMigrateSetCompressionCache: bytes of pages that VIR_MIGRATE_COMPRESSED ('xbzrle') keeps to compare with, of the
   * migration that is under way and those to come in this run of the domain; a power of two, VIR_ERR_INVALID_ARG else.
   */
  async migrateSetCompressionCache(size: number, flags = 0): Promise<void> {
    return this.#session.call('domainMigrateSetCompressionCache', (check) => [
      this,
      check.count('size', size),
      check.flags(flags, 0),
    ])
  }

  /** virDomainMigrateGetCompressionCache: bytes. */
  async migrateGetCompressionCache(flags = 0): Promise<number> {
    return this.#session.call('domainMigrateGetCompressionCache', (check) => [this, check.flags(flags, 0)])
  }

  /**
   * virDomainAbortJobFlags: ends a migration. Before the guest has moved it goes on here; while its disks are still being
   * streamed it comes back, with all that it has written since. `flags` VIR_DOMAIN_ABORT_JOB_*. With our own
   * VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST nothing comes back: the domain is shut off here, its images as they were when the
   * guest left, and the destination gets no block any more. VIR_ERR_OPERATION_FAILED when the destination cannot be reached
   * and that flag is not given.
   */
  async abortJob(flags = 0): Promise<void> {
    const known = c.VIR_DOMAIN_ABORT_JOB_POSTCOPY | VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST
    return this.#session.call('domainAbortJob', (check) => [this, check.flags(flags, known)])
  }

  /** virDomainGetJobStats: bytes and milliseconds; `flags` VIR_DOMAIN_JOB_STATS_*. */
  async getJobStats(flags = 0): Promise<DomainJobStats> {
    const known = c.VIR_DOMAIN_JOB_STATS_COMPLETED | c.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
    return this.#session.call('domainGetJobStats', (check) => [this, check.flags(flags, known)])
  }

  /** virDomainQemuMonitorCommand: JSON, or a line for QEMU's human monitor with VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP (1). */
  async qemuMonitorCommand(command: string, flags = 0): Promise<string> {
    return this.#session.call('qemuMonitorCommand', (check) => [
      this,
      check.text('cmd', command),
      check.flags(flags, 1),
    ])
  }

  /**
   * virDomainOpenConsole: a byte stream to the console, serial port or channel with alias `device` (absent: the first
   * one); `flags` VIR_DOMAIN_CONSOLE_*.
   */
  async openConsole(device?: string, flags = 0): Promise<Duplex> {
    return this.#session.call('domainOpenConsole', (check) => {
      const known = c.VIR_DOMAIN_CONSOLE_FORCE | c.VIR_DOMAIN_CONSOLE_SAFE
      return [this, check.optionalText('dev_name', device), check.flags(flags, known)]
    })
  }
}
