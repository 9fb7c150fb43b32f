import type { BlockSizes } from './handshake.js'
import type { StatusDescriptor } from './transmission.js'

/**
 * What a server serves under one name. An operation that is absent is not offered. Ranges lie within `size` and have at
 * least one byte. What an operation throws goes to the client: the number of its `code` where NBD has it (EPERM, EIO,
 * ENOMEM, EINVAL, ENOSPC, EOVERFLOW, ENOTSUP, ESHUTDOWN), EIO otherwise, and its message.
 */
export interface NbdServed {
  /** bytes */
  readonly size: number
  readonly description?: string
  readonly blockSizes?: BlockSizes
  read(offset: number, length: number): Promise<Uint8Array>
  /** absent: the export is read-only */
  write?(offset: number, data: Uint8Array): Promise<void>
  /** absent together with `write`: nothing can be unwritten; needed for write-through (FUA) */
  flush?(): Promise<void>
  trim?(offset: number, length: number): Promise<void>
  /** `noHole`: the range must stay allocated */
  writeZeroes?(offset: number, length: number, noHole: boolean): Promise<void>
  cache?(offset: number, length: number): Promise<void>
  /** extents from `offset` on for each metadata context; at least one, their sum may be less than the length */
  readonly contexts?: Readonly<Record<string, (offset: number, length: number) => Promise<StatusDescriptor[]>>>
}
