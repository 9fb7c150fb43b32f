import type { NbdExportInfo } from './client-handshake.js'
import { MAX_PAYLOAD, transmissionFlags } from './constants.js'
import { NbdError } from './error.js'

/** The most that a request without payload may span: its length has 32 bits on the wire. */
const LONGEST = 0xffffffff

/** What an export allows: a request that it can't take is refused before it is sent. */
export class ExportLimits {
  readonly size: number
  readonly flags: number
  /** the most that one read or write may carry */
  readonly maxPayload: number
  /** what offsets and lengths must be multiples of */
  readonly minBlockSize: number

  constructor(info: NbdExportInfo) {
    this.size = info.size
    this.flags = info.flags
    this.maxPayload = Math.min(info.blockSizes?.maximum ?? MAX_PAYLOAD, MAX_PAYLOAD)
    this.minBlockSize = info.blockSizes?.minimum ?? 1
  }

  can(flag: keyof typeof transmissionFlags): boolean {
    return (this.flags & transmissionFlags[flag]) !== 0
  }

  demand(flag: keyof typeof transmissionFlags, what: string): void {
    if (!this.can(flag)) throw new NbdError('ENOTSUP', `this NBD export can not ${what}`)
  }

  checkWritable(): void {
    if (this.can('readOnly')) throw new NbdError('EPERM', 'this NBD export is read-only')
  }

  checkRange(offset: number, length: number, most = LONGEST): void {
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < 0 || length <= 0) {
      throw new NbdError('EINVAL', `${length} bytes at ${offset} are no range`)
    }
    if (length > most) throw new NbdError('EINVAL', `${length} bytes are more than one request may have (${most})`)
    if (offset + length > this.size) {
      throw new NbdError('EINVAL', `${length} bytes at ${offset} go past the end of the export (${this.size})`)
    }
    const block = this.minBlockSize
    if (offset % block !== 0 || length % block !== 0) {
      throw new NbdError('EINVAL', `${length} bytes at ${offset} are no multiples of the block size ${block}`)
    }
  }
}
