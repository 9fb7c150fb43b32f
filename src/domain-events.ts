/** What a driver tells of its domains. */
import type { DomainRef } from './driver.js'
import type { DomainJobStats } from './migrate-params.js'

interface EventOf {
  readonly domain: DomainRef
}
/** virConnectDomainEventCallback: VIR_DOMAIN_EVENT_* and a detail of it. */
export interface LifecycleEvent extends EventOf {
  readonly kind: 'lifecycle'
  readonly event: number
  readonly detail: number
}
/** virConnectDomainEventBlockJobCallback (1 and 2 in one): `type` VIR_DOMAIN_BLOCK_JOB_TYPE_*, `status` VIR_DOMAIN_BLOCK_JOB_COMPLETED …. */
export interface BlockJobEvent extends EventOf {
  readonly kind: 'block-job'
  readonly disk: string
  /** source path of the disk; '' where it has none */
  readonly path: string
  readonly type: number
  readonly status: number
  readonly error?: string
}
/** How far a stream is; sent while it moves, at most about once a second. */
export interface StreamProgressEvent extends EventOf {
  readonly kind: 'stream-progress'
  readonly disk: string
  readonly offset: number
  readonly size: number
}
export interface StreamUnitEvent extends EventOf {
  readonly kind: 'stream-unit'
  readonly disk: string
  readonly offset: number
  readonly size: number
}
/** virConnectDomainEventIOErrorReasonCallback: `action` VIR_DOMAIN_EVENT_IO_ERROR_*. */
export interface IoErrorEvent extends EventOf {
  readonly kind: 'io-error'
  readonly disk: string
  readonly path: string
  readonly alias: string
  readonly action: number
  readonly reason: string
}
/** virConnectDomainEventJobCompletedCallback: `operation` VIR_DOMAIN_JOB_OPERATION_*. */
export interface JobCompletedEvent extends EventOf {
  readonly kind: 'job-completed'
  readonly operation: number
  /** the job's last word about itself */
  readonly stats?: DomainJobStats
  readonly error?: string
}
/** virConnectDomainEventMigrationIterationCallback: memory is gone through again. */
export interface MigrationIterationEvent extends EventOf {
  readonly kind: 'migration-iteration'
  readonly iteration: number
}
export interface AgentEvent extends EventOf {
  readonly kind: 'agent'
  readonly state: number
  readonly reason: number
}
/** virConnectDomainEventDeviceAddedCallback and its siblings: a device that came or left while the domain ran. */
export interface DeviceEvent extends EventOf {
  readonly kind: 'device-added' | 'device-removed' | 'device-removal-failed'
  /** alias of the device, e.g. 'virtio-disk1' */
  readonly alias: string
}
export interface ControlErrorEvent extends EventOf {
  readonly kind: 'control-error'
}
/** Events are missing at this place: whoever reads was slower than the queue is long. */
export interface OverflowEvent {
  readonly kind: 'overflow'
  readonly dropped: number
}
/** virConnectCloseFunc: the connection broke, this is its last event. `reason` VIR_CONNECT_CLOSE_REASON_*. */
export interface CloseEvent {
  readonly kind: 'close'
  readonly reason: number
  readonly error?: string
}
export type DomainEvent =
  | LifecycleEvent
  | BlockJobEvent
  | StreamProgressEvent
  | StreamUnitEvent
  | IoErrorEvent
  | JobCompletedEvent
  | MigrationIterationEvent
  | AgentEvent
  | DeviceEvent
  | ControlErrorEvent
