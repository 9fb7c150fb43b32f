/**
 * What a hypervisor driver is: a plain object with some of these operations. An operation that is absent is unsupported,
 * and api says so, once. Names are libvirt's minus `vir`; a domain is named by a `DomainRef`, a disk by its target dev,
 * alias or source path. Every operation rejects with a `VirError`. Units are bytes and milliseconds unless said.
 */
import type { Duplex } from 'node:stream'
import type { Logger } from 'pino'
import type { DomainBlockInfo, DomainBlockJobInfo, DomainBlockStats } from './block-types.js'
import type { CloseEvent, DomainEvent, OverflowEvent } from './domain-events.js'
import type { LockDriver } from './locking/lock-driver.js'
import type { MigrationOps, MigrationTransport } from './migrate-params.js'
import type { SecurityDriver } from './security/security-driver.js'

export type * from './block-types.js'
export type * from './domain-events.js'
export type * from './migrate-params.js'
export type { Lease, LockDriver, LockHolder, LockOwner, LockResource } from './locking/lock-driver.js'
export type { LabelTarget, ProcessLabel, SecurityDriver } from './security/security-driver.js'

/** Which domain is meant: looked up by `uuid`. `id` is -1 when it does not run. */
export interface DomainRef {
  readonly name: string
  readonly uuid: string
  readonly id: number
}

/** virDomainGetState: VIR_DOMAIN_RUNNING … and a reason of that state. */
export interface DomainState {
  state: number
  reason: number
}

/** virDomainGetInfo: memory in KiB, CPU time in nanoseconds. */
export interface DomainInfo {
  state: number
  maxMem: number
  memory: number
  nrVirtCpu: number
  cpuTime: number
}

/** One active stream (virStreamDiskState and what we add to it). */
export interface StreamDiskState {
  /** the device alias, e.g. 'virtio-disk0' */
  path: string
  /** bytes; only grows; equal to `size` means complete */
  offset: number
  /** bytes */
  size: number
  /** the target dev, e.g. 'vda' */
  disk: string
  mode: 'full' | 'unit' | 'offline' | 'migration'
  /** who moves the data */
  engine?: StreamEngine
  /** bytes/s, 0: no limit */
  bandwidth: number
  /** bytes/s that the host's budget for all streams leaves it now; absent: it has none, or the stream waits */
  share?: number
  status: 'running' | 'waiting' | 'paused' | 'error'
  /** 'continue': it goes on when the domain is shut off */
  onShutdown?: 'continue'
  /** why it waits, or what went wrong */
  error?: string
}

/** Who moves the data of a whole-device stream. */
export type StreamEngine = 'job' | 'pull'

export interface StreamOptions {
  /** bytes/s, 0 or absent: no limit */
  bandwidth?: number
  /**
   * 1 to 1000: how much it gets, against other streams, of a bandwidth that they share (`streams` of `etc/qemu.json`).
   * Absent: as the definition says, else 1
   */
  weight?: number
  policy?: 'full' | 'idle'
  /**
   * how a whole device is streamed: 'job' by QEMU's block-stream, which goes on when this process is killed, 'pull' (and
   * 'auto', the default) by many requests at once, which hides the latency of a base
   */
  engine?: StreamEngine | 'auto'
  /** 'continue': when the domain is shut off in good order the stream goes on without it; default 'stop' */
  onShutdown?: 'stop' | 'continue'
  /**
   * seconds: when the base has been away that long the guest is paused (VIR_DOMAIN_PAUSED_IOERROR), and the stream waits;
   * absent: what the domain was started with, by default the guest waits as long as it takes. Of NBD bases
   */
  baseTimeout?: number
  /** path of the image in the backing chain that is to remain the backing image; absent: none remains */
  base?: string
  /** bytes to stream in one step of VIR_STREAM_DISK_ONE */
  unit?: number
  signal?: AbortSignal
}

/** Every operation that a driver may have. */
export interface HypervisorOps extends MigrationOps {
  connectClose(): Promise<void>
  connectGetType(): Promise<string>
  connectGetHostname(): Promise<string>
  /** version of the hypervisor: 1000000 * major + 1000 * minor + release */
  connectGetVersion(): Promise<number>
  connectGetLibVersion(): Promise<number>
  connectGetCapabilities(): Promise<string>
  connectGetDomainCapabilities(
    emulator: string | undefined,
    arch: string | undefined,
    machine: string | undefined,
    virtType: string | undefined,
    flags: number,
  ): Promise<string>
  connectListAllDomains(flags: number): Promise<DomainRef[]>

  domainLookupByName(name: string): Promise<DomainRef>
  domainLookupByUUID(uuid: string): Promise<DomainRef>
  domainLookupByID(id: number): Promise<DomainRef>
  domainDefineXML(xml: string, flags: number): Promise<DomainRef>
  domainCreateXML(xml: string, flags: number): Promise<DomainRef>
  domainRestore(from: string, xml: string | undefined, flags: number): Promise<DomainRef>

  /** Starts a defined domain; the answer carries its new id. */
  domainCreate(domain: DomainRef, flags: number): Promise<DomainRef>
  domainDestroy(domain: DomainRef, flags: number): Promise<void>
  domainShutdown(domain: DomainRef, flags: number): Promise<void>
  domainReboot(domain: DomainRef, flags: number): Promise<void>
  domainReset(domain: DomainRef, flags: number): Promise<void>
  domainSuspend(domain: DomainRef): Promise<void>
  domainResume(domain: DomainRef): Promise<void>
  domainUndefine(domain: DomainRef, flags: number): Promise<void>
  domainSave(domain: DomainRef, to: string, xml: string | undefined, flags: number): Promise<void>
  domainManagedSave(domain: DomainRef, flags: number): Promise<void>
  domainHasManagedSaveImage(domain: DomainRef): Promise<boolean>
  domainManagedSaveRemove(domain: DomainRef): Promise<void>
  domainSetAutostart(domain: DomainRef, autostart: boolean): Promise<void>
  domainGetAutostart(domain: DomainRef): Promise<boolean>

  domainGetXMLDesc(domain: DomainRef, flags: number): Promise<string>
  domainGetState(domain: DomainRef): Promise<DomainState>
  domainGetInfo(domain: DomainRef): Promise<DomainInfo>
  domainIsActive(domain: DomainRef): Promise<boolean>
  domainIsPersistent(domain: DomainRef): Promise<boolean>

  /** `flags` VIR_DOMAIN_AFFECT_*; disks only */
  domainAttachDevice(domain: DomainRef, xml: string, flags: number): Promise<void>
  /** a disk is found by its target */
  domainDetachDevice(domain: DomainRef, xml: string, flags: number): Promise<void>
  /** `flags` VIR_DOMAIN_DEVICE_MODIFY_*; a disk is found by its target */
  domainUpdateDevice(domain: DomainRef, xml: string, flags: number): Promise<void>

  domainGetBlockInfo(domain: DomainRef, disk: string, flags: number): Promise<DomainBlockInfo>
  domainBlockStats(domain: DomainRef, disk: string): Promise<DomainBlockStats>
  /** `size` in bytes (api has applied the unit that the flags name) */
  domainBlockResize(domain: DomainRef, disk: string, size: number): Promise<void>
  /** `bandwidth` in bytes/s (api has applied the unit that the flags name) */
  domainBlockPull(domain: DomainRef, disk: string, bandwidth: number): Promise<void>
  domainBlockRebase(
    domain: DomainRef,
    disk: string,
    base: string | undefined,
    bandwidth: number,
    flags: number,
  ): Promise<void>
  /** `base`: undefined is the last image of the chain, `top`: undefined is the disk's own; `bandwidth` in bytes/s */
  domainBlockCommit(
    domain: DomainRef,
    disk: string,
    base: string | undefined,
    top: string | undefined,
    bandwidth: number,
    flags: number,
  ): Promise<void>
  domainGetBlockJobInfo(domain: DomainRef, disk: string): Promise<DomainBlockJobInfo | undefined>
  domainBlockJobAbort(domain: DomainRef, disk: string, flags: number): Promise<void>
  domainBlockJobSetSpeed(domain: DomainRef, disk: string, bandwidth: number): Promise<void>

  domainStreamDisk(
    domain: DomainRef,
    disk: string,
    offset: number,
    flags: number,
    options: StreamOptions,
  ): Promise<number>
  domainStreamDiskInfo(domain: DomainRef, flags: number): Promise<StreamDiskState[]>
  /** The image that `base` names takes the place of `image`, by default of the first remote one of the disk's chain. */
  domainStreamDiskSetBase(
    domain: DomainRef,
    disk: string,
    base: string,
    image: string | undefined,
    flags: number,
  ): Promise<void>

  qemuMonitorCommand(domain: DomainRef, command: string, flags: number): Promise<string>
  /** `device`: alias of a console, serial port or channel; undefined: the first one. Ends when either side closes. */
  domainOpenConsole(domain: DomainRef, device: string | undefined, flags: number): Promise<Duplex>
}

/** virConnectCredential: something that a server wants to know of its user. */
export interface Credential {
  /** VIR_CRED_* */
  readonly type: number
  readonly prompt: string
  readonly challenge?: string
  readonly defaultResult?: string
}

/** All that a driver may touch of its surroundings. */
export interface DriverHost {
  readonly logger: Logger
  readonly readOnly: boolean
  /** hands an event to the connection's listeners, who end after a CloseEvent; never throws, never waits */
  emit(event: DomainEvent | OverflowEvent | CloseEvent): void
  /** in the order of labelling; undone in reverse. Absent: what the driver's own configuration says */
  readonly security?: readonly SecurityDriver[]
  /** absent: what the driver's own configuration says */
  readonly lockManager?: LockDriver
  /** that memory of guests may go by, besides those that the driver has */
  readonly transports?: readonly MigrationTransport[]
  /** answers what the server of a connection that is being opened asks; undefined for what has no answer */
  authenticate?(asked: readonly Credential[]): Promise<readonly (string | undefined)[]>
  /** the process listens for tunnels itself and hands on their channels by `migrationChannel`; absent: the driver listens */
  readonly tunnels?: boolean
}

/** A driver: `open` answers undefined for a URI that is not its own, and throws for one that is but can't be opened. */
export interface HypervisorDriver {
  readonly name: string
  /** e.g. ['qemu']; ['*']: it is asked about every URI that no other driver takes */
  readonly uriSchemes: readonly string[]
  open(uri: URL, host: DriverHost): Promise<Partial<HypervisorOps> | undefined>
}
