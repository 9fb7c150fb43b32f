/** Disks: sizes, statistics, block jobs. */
import * as c from '../constants.gen.js'
import type { DomainBlockJobInfo, DomainBlockStats, DomainRef, HypervisorOps } from '../driver.js'
import type { Connection } from './connection.js'
import { targetOf } from './disks.js'
import { fillIn } from './numbers.js'
import { numberOf, readTypedParams, TYPED_PARAM_SIZE } from './typed-params.js'

type BlockOps = Pick<
  HypervisorOps,
  | 'domainGetBlockInfo'
  | 'domainBlockStats'
  | 'domainBlockResize'
  | 'domainBlockPull'
  | 'domainBlockRebase'
  | 'domainBlockCommit'
  | 'domainGetBlockJobInfo'
  | 'domainBlockJobAbort'
  | 'domainBlockJobSetSpeed'
>

export function blockOps(conn: Connection): BlockOps {
  /** Runs `use` with the domain's handle and the target of the disk that `name` means. */
  const withDisk = <T>(ref: DomainRef, name: string, use: (domain: bigint, target: string) => Promise<T>): Promise<T> =>
    conn.withDomain(ref, async (domain) => use(domain, await targetOf(conn, ref, name)))
  return {
    domainGetBlockInfo: (ref, disk, flags) =>
      withDisk(ref, disk, async (domain, target) => {
        const out = fillIn(24)
        await conn.call('virDomainGetBlockInfo', domain, target, out.bytes, flags)
        return { capacity: out.ulong(0), allocation: out.ulong(8), physical: out.ulong(16) }
      }),
    domainBlockStats: (ref, disk) =>
      disk === ''
        ? conn.withDomain(ref, (domain) => blockStats(conn, domain, ''))
        : withDisk(ref, disk, (domain, target) => blockStats(conn, domain, target)),
    domainBlockResize: (ref, disk, size) =>
      withDisk(ref, disk, async (domain, target) => {
        await conn.call('virDomainBlockResize', domain, target, size, c.VIR_DOMAIN_BLOCK_RESIZE_BYTES)
      }),
    domainBlockPull: (ref, disk, bandwidth) =>
      withDisk(ref, disk, async (domain, target) => {
        await conn.call('virDomainBlockPull', domain, target, bandwidth, c.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
      }),
    domainBlockRebase: (ref, disk, base, bandwidth, flags) =>
      withDisk(ref, disk, async (domain, target) => {
        const inBytes = flags | c.VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES
        await conn.call('virDomainBlockRebase', domain, target, base ?? null, bandwidth, inBytes)
      }),
    domainBlockCommit: (ref, disk, base, top, bandwidth, flags) =>
      withDisk(ref, disk, async (domain, target) => {
        const inBytes = flags | c.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES
        await conn.call('virDomainBlockCommit', domain, target, base ?? null, top ?? null, bandwidth, inBytes)
      }),
    domainGetBlockJobInfo: (ref, disk) => withDisk(ref, disk, (domain, target) => blockJobInfo(conn, domain, target)),
    domainBlockJobAbort: (ref, disk, flags) =>
      withDisk(ref, disk, async (domain, target) => {
        await conn.call('virDomainBlockJobAbort', domain, target, flags)
      }),
    domainBlockJobSetSpeed: (ref, disk, bandwidth) =>
      withDisk(ref, disk, async (domain, target) => {
        const flags = c.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
        await conn.call('virDomainBlockJobSetSpeed', domain, target, bandwidth, flags)
      }),
  }
}

/** virDomainGetBlockJobInfo: undefined when the disk has none. */
export async function blockJobInfo(
  conn: Connection,
  domain: bigint,
  target: string,
): Promise<DomainBlockJobInfo | undefined> {
  const out = fillIn(32)
  const flags = c.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES
  const found = await conn.call('virDomainGetBlockJobInfo', domain, target, out.bytes, flags)
  return found === 0 ? undefined : { type: out.int(0), bandwidth: out.ulong(8), cur: out.ulong(16), end: out.ulong(24) }
}

async function blockStats(conn: Connection, domain: bigint, target: string): Promise<DomainBlockStats> {
  const count = fillIn(4)
  await conn.call('virDomainBlockStatsFlags', domain, target, null, count.bytes, 0)
  const params = new Uint8Array(count.int(0) * TYPED_PARAM_SIZE)
  await conn.call('virDomainBlockStatsFlags', domain, target, params, count.bytes, 0)
  const read = readTypedParams(params, count.int(0))
  const of = (name: string): number => numberOf(read, name) ?? 0
  return {
    rdReq: of('rd_operations'),
    rdBytes: of('rd_bytes'),
    rdTotalTimes: of('rd_total_times'),
    wrReq: of('wr_operations'),
    wrBytes: of('wr_bytes'),
    wrTotalTimes: of('wr_total_times'),
    flushReq: of('flush_operations'),
    flushTotalTimes: of('flush_total_times'),
    errs: of('errs'),
  }
}
