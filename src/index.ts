/** What an application imports. */
export { Connect } from './api/connect.js'
export type { OpenOptions } from './api/connect.js'
export { DiskStream } from './api/disk-stream.js'
export type { StreamProgress } from './api/disk-stream.js'
export { Domain } from './api/domain.js'
export type { ConnectEvent, DomainEvents, EventFilter, EventKind, EventOfKind } from './api/event-hub.js'
export { virDomainStreamDisk, virDomainStreamDiskInfo } from './api/stream-functions.js'
export * from './constants.gen.js'
export type {
  CloseEvent,
  Credential,
  DomainBlockInfo,
  DomainBlockJobInfo,
  DomainBlockStats,
  DomainEvent,
  DomainInfo,
  DomainJobStats,
  DomainRef,
  DomainState,
  DriverHost,
  HypervisorDriver,
  HypervisorOps,
  Lease,
  LockDriver,
  LockHolder,
  LockOwner,
  LabelTarget,
  LockResource,
  MigrateParams,
  MigrationTransport,
  OverflowEvent,
  ProcessLabel,
  SecurityDriver,
  StreamDiskState,
  StreamOptions,
} from './driver.js'
export { errorCodes, errorDomains } from './error-codes.gen.js'
export { VirError } from './error.js'
export type { VirErrorCode, VirErrorDomain } from './error.js'
export * from './stream-flags.js'
export { securityDriver } from './security/load.js'
export type { SecurityDriverOptions } from './security/load.js'
export { createOverlay } from './storage/overlay.js'
export type { OverlayRequest } from './storage/overlay.js'
export type { StorageSource } from './conf/domain-def.js'
export { lockDriver } from './locking/load.js'
export type { LockDriverName, LockDriverOptions } from './locking/drivers.js'
export * from './qemu/monitor/flags.js'
