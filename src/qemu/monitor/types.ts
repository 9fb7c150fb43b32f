/** What QEMU answers about block devices and jobs, as far as it is read, and how it is told of jobs (QEMU QMP reference). */

/** One job of query-jobs (QEMU QMP reference, JobInfo). */
export interface JobInfo {
  id: string
  type: string
  status: string
  'current-progress': number
  'total-progress': number
  error?: string
}
/** One job of query-block-jobs (BlockJobInfo). */
export interface BlockJobInfo {
  type: string
  device: string
  len: number
  offset: number
  busy: boolean
  paused: boolean
  speed: number
  'io-status': 'ok' | 'failed' | 'nospace'
  ready: boolean
  status: string
}
/** What an io-status says. */
export const ioProblems = { ok: undefined, nospace: 'No space left on device', failed: 'Input/output error' } as const
/** One device of query-block (BlockInfo), what we read of it. */
export interface BlockDevice {
  device: string
  qdev?: string
  tray_open?: boolean
  inserted?: {
    'node-name'?: string
    file: string
    ro: boolean
    backing_file_depth: number
    image: { 'virtual-size': number; 'actual-size'?: number; 'cluster-size'?: number }
  }
}
/** One device of query-blockstats (BlockStats), what we read of it. */
export interface BlockStatsEntry {
  qdev?: string
  'node-name'?: string
  stats: {
    rd_operations: number
    rd_bytes: number
    rd_total_time_ns: number
    wr_operations: number
    wr_bytes: number
    wr_total_time_ns: number
    flush_operations: number
    flush_total_time_ns: number
    failed_rd_operations: number
    failed_wr_operations: number
    failed_flush_operations: number
    wr_highest_offset: number
  }
}
export interface BlockStreamArguments {
  'job-id': string
  device: string
  'base-node'?: string
  'backing-file'?: string
  speed: number
  'on-error': 'report' | 'ignore' | 'stop' | 'enospc'
  'filter-node-name': string
}

export interface BlockCommitArguments {
  'job-id': string
  device: string
  'top-node': string
  'base-node': string
  /** what the image above `top` says of its base at the end; not where `top` is the disk's own */
  'backing-file'?: string
  speed: number
  'on-error': 'report'
  'filter-node-name': string
}
