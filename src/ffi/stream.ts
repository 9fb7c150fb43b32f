/** virDomainStreamDisk on domains that libvirt has: by its own block jobs, and one unit at a time through QEMU's monitor. */
import type { SeenDisk } from '../conf/glance.js'
import { checkStreamable } from '../conf/streamable.js'
import * as c from '../constants.gen.js'
import type { DomainRef, HypervisorOps, StreamDiskState, StreamOptions } from '../driver.js'
import { failFrom, VirError } from '../error.js'
import { VIR_STREAM_DISK_ONE, VIR_STREAM_DISK_STOP } from '../stream-flags.js'
import { blockJobInfo } from './block.js'
import type { Connection } from './connection.js'
import { disksOf, findDisk } from './disks.js'
import { fillIn } from './numbers.js'
import type { Streams } from './streams.js'
import { streamUnit } from './unit.js'

const fail = failFrom('VIR_FROM_DOM')

export function streamOps(
  conn: Connection,
  streams: Streams,
): Pick<HypervisorOps, 'domainStreamDisk' | 'domainStreamDiskInfo'> {
  return {
    domainStreamDisk: (ref, name, offset, flags, options) =>
      conn.withDomain(ref, async (domain) => {
        const disk = findDisk(await disksOf(conn, ref), name)
        if ((flags & VIR_STREAM_DISK_STOP) !== 0) return stop(conn, domain, disk)
        await requireRunning(conn, domain)
        checkStreamable(disk)
        await requireIdle(conn, domain, disk)
        if ((flags & VIR_STREAM_DISK_ONE) !== 0)
          return streamUnit({ conn, streams, ref, domain, disk }, offset, options)
        return start(conn, streams, ref, domain, disk, options)
      }),
    domainStreamDiskInfo: (ref) =>
      conn.withDomain(ref, async (domain) => {
        if ((await conn.call('virDomainIsActive', domain)) !== 1) return []
        const states = (await disksOf(conn, ref)).map((disk) => stateOf(conn, domain, disk))
        return (await Promise.all(states)).flatMap((state) => state ?? [])
      }),
  }
}

/** A domain that does not run is libvirt's all the same, and its definition is nothing that a storage daemon goes by. */
async function requireRunning(conn: Connection, domain: bigint): Promise<void> {
  if ((await conn.call('virDomainIsActive', domain)) === 1) return
  const why = 'libvirt streams disks of running domains only; define it in a root of this host too, and stream there'
  throw fail('VIR_ERR_OPERATION_UNSUPPORTED', `domain is not running: ${why}`)
}

async function requireIdle(conn: Connection, domain: bigint, { target }: SeenDisk): Promise<void> {
  if ((await blockJobInfo(conn, domain, target)) === undefined) return
  throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' already in active block job`)
}

/** What libvirt's job cannot do is refused rather than done otherwise. */
function refuse({ policy, engine, onShutdown, weight, baseTimeout }: StreamOptions): void {
  const unsupported = (option: string, why: string): VirError =>
    fail('VIR_ERR_OPERATION_UNSUPPORTED', `${option} is not possible on a domain of libvirt: ${why}`)
  if (policy === 'idle') throw unsupported("policy 'idle'", 'the bandwidth of its block job is for its other users too')
  if (engine === 'pull') throw unsupported("engine 'pull'", 'it moves the data by its own block job')
  if (weight !== undefined) throw unsupported('weight', 'its block jobs share no bandwidth')
  if (baseTimeout !== undefined) throw unsupported('baseTimeout', 'its QEMU was not started with a guard for that')
  if (onShutdown === 'continue') throw unsupported("onShutdown 'continue'", 'it streams disks of running domains only')
}

async function start(
  conn: Connection,
  streams: Streams,
  ref: DomainRef,
  domain: bigint,
  { target }: SeenDisk,
  options: StreamOptions,
): Promise<number> {
  refuse(options)
  const { base, bandwidth = 0 } = options
  streams.follow(ref, target, await capacityOf(conn, domain, target))
  try {
    if (base === undefined)
      await conn.call('virDomainBlockPull', domain, target, bandwidth, c.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
    else
      await conn.call(
        'virDomainBlockRebase',
        domain,
        target,
        base,
        bandwidth,
        c.VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES,
      )
  } catch (error) {
    const busy = error instanceof VirError && error.message.includes('already in active block job')
    // the stream that is there is followed on
    if (busy) throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' already in active block job`, error)
    streams.forget(ref, target)
    throw error
  }
  return 0
}

async function stop(conn: Connection, domain: bigint, { target }: SeenDisk): Promise<number> {
  const active = (await conn.call('virDomainIsActive', domain)) === 1
  const job = active ? await blockJobInfo(conn, domain, target) : undefined
  if (job?.type !== c.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL)
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' does not have an active block job`)
  await conn.call('virDomainBlockJobAbort', domain, target, 0)
  return 0
}

async function stateOf(conn: Connection, domain: bigint, disk: SeenDisk): Promise<StreamDiskState | undefined> {
  if (disk.source === undefined) return undefined
  const job = await blockJobInfo(conn, domain, disk.target)
  if (job?.type !== c.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL) return undefined
  const size = job.end > 0 ? job.end : await capacityOf(conn, domain, disk.target)
  return {
    path: disk.alias ?? '',
    offset: Math.min(job.cur, size),
    size,
    disk: disk.target,
    mode: 'full',
    engine: 'job',
    bandwidth: job.bandwidth,
    status: 'running',
  }
}

/** bytes */
async function capacityOf(conn: Connection, domain: bigint, target: string): Promise<number> {
  const out = fillIn(24)
  await conn.call('virDomainGetBlockInfo', domain, target, out.bytes, 0)
  return out.ulong(0)
}
