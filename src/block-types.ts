/** What a driver tells of the disks of a domain. */

/** virDomainGetBlockInfo, bytes. */
export interface DomainBlockInfo {
  capacity: number
  allocation: number
  physical: number
}

/** virDomainBlockStatsFlags: requests, bytes and nanoseconds since the domain started. */
export interface DomainBlockStats {
  rdReq: number
  rdBytes: number
  rdTotalTimes: number
  wrReq: number
  wrBytes: number
  wrTotalTimes: number
  flushReq: number
  flushTotalTimes: number
  errs: number
}

/** virDomainGetBlockJobInfo: `bandwidth` in bytes/s (0: no limit), `cur` and `end` in bytes. */
export interface DomainBlockJobInfo {
  type: number
  bandwidth: number
  cur: number
  end: number
}
