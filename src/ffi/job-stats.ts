import type { DomainJobStats } from '../driver.js'
import { numberOf } from './typed-params.js'
import type { TypedParams } from './typed-params.js'

/** What virDomainGetJobStats and the event of a job's end carry; `type` VIR_DOMAIN_JOB_*. */
export function toJobStats(params: TypedParams, type: number): DomainJobStats {
  const of = (name: string): number => numberOf(params, name) ?? 0
  const optional = <Key extends string>(key: Key, name: string): Partial<Record<Key, number>> => {
    const value = numberOf(params, name)
    return value === undefined ? {} : ({ [key]: value } as Record<Key, number>)
  }
  const error = params.get('errmsg')
  return {
    type,
    operation: of('operation'),
    timeElapsed: of('time_elapsed'),
    ...optional('downtime', 'downtime'),
    dataTotal: of('data_total'),
    dataProcessed: of('data_processed'),
    dataRemaining: of('data_remaining'),
    memTotal: of('memory_total'),
    memProcessed: of('memory_processed'),
    memRemaining: of('memory_remaining'),
    ...optional('memBps', 'memory_bps'),
    ...optional('memIteration', 'memory_iteration'),
    ...optional('memPostcopyRequests', 'memory_postcopy_requests'),
    ...optional('compressionCache', 'compression_cache'),
    ...optional('compressionBytes', 'compression_bytes'),
    ...optional('compressionPages', 'compression_pages'),
    ...optional('compressionCacheMisses', 'compression_cache_misses'),
    ...optional('compressionOverflow', 'compression_overflow'),
    diskTotal: of('disk_total'),
    diskProcessed: of('disk_processed'),
    diskRemaining: of('disk_remaining'),
    disks: [],
    ...(typeof error === 'string' && { error }),
  }
}
