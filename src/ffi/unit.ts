/**
 * VIR_STREAM_DISK_ONE on a domain of libvirt. libvirt has no such call, so QEMU is asked through its monitor, in a way that
 * libvirt does not notice: for the time of one unit QEMU exports the disk on a socket that it gets from us as a descriptor,
 * an NBD client tells it what to cache, and libvirt's own block job drops the backing link when nothing is left.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { SeenDisk } from '../conf/glance.js'
import * as c from '../constants.gen.js'
import type { DomainRef, StreamOptions } from '../driver.js'
import { failFrom, messageOf } from '../error.js'
import { native } from '../native.js'
import { ALLOCATION_DEPTH, DEFAULT_UNIT, MAX_UNIT, nextUnit } from '../nbd/allocation-depth.js'
import { NbdClient } from '../nbd/client.js'
import { NbdError } from '../nbd/error.js'
import { processStartTime } from '../util/process-start-time.js'
import { Undo } from '../util/undo.js'
import { blockJobInfo } from './block.js'
import type { Connection } from './connection.js'
import { Monitor } from './monitor.js'
import type { Streams } from './streams.js'

const fail = failFrom('VIR_FROM_DOM')

/** ms that dropping the backing link may take, when nothing is left to copy */
const LINK_TIMEOUT = 30_000
const POLL = 50

export interface Target {
  conn: Connection
  streams: Streams
  ref: DomainRef
  domain: bigint
  disk: SeenDisk
}

/** QEMU has one NBD server: units of a domain go one after the other. */
const queues = new Map<string, Promise<unknown>>()

/** Streams at most one unit at or behind `offset`; answers where the next one is, the size of the disk when none is. */
export async function streamUnit(target: Target, offset: number, options: StreamOptions): Promise<number> {
  const { base, unit = DEFAULT_UNIT } = options
  if (unit > MAX_UNIT) throw fail('VIR_ERR_INVALID_ARG', `unit '${unit}' is larger than ${MAX_UNIT} bytes`)
  if (base !== undefined)
    throw fail(
      'VIR_ERR_ARGUMENT_UNSUPPORTED',
      'single units are streamed from the whole backing chain, not down to a base',
    )
  const { uuid } = target.ref
  const before = queues.get(uuid) ?? Promise.resolve()
  const mine = before.catch(() => undefined).then(() => oneUnit(target, offset, unit))
  queues.set(uuid, mine)
  try {
    return await mine
  } finally {
    if (queues.get(uuid) === mine) queues.delete(uuid)
  }
}

async function oneUnit(target: Target, offset: number, unit: number): Promise<number> {
  const { disk, ref, conn } = target
  const done = await withExport(target, async (client, cluster) => {
    if (offset > client.size)
      throw fail(
        'VIR_ERR_INVALID_ARG',
        `offset '${offset}' is behind the end of disk '${disk.target}', ${client.size} bytes`,
      )
    try {
      // whole clusters: that is what QEMU copies in any case
      const first = Math.floor(offset / cluster) * cluster
      const range =
        offset === client.size ? undefined : await nextUnit(client, first, Math.ceil(unit / cluster) * cluster)
      const end = range === undefined ? client.size : range.offset + range.length
      if (range !== undefined) {
        await client.cache(range.offset, range.length)
        await client.flush()
        const { name, uuid, id } = ref
        conn.host.emit({
          kind: 'stream-unit',
          domain: { name, uuid, id },
          disk: disk.target,
          offset: end,
          size: client.size,
        })
      }
      const next = (await nextUnit(client, end, 1))?.offset ?? client.size
      return { next, size: client.size, complete: next === client.size && (await nextUnit(client, 0, 1)) === undefined }
    } catch (error) {
      if (!(error instanceof NbdError)) throw error
      const text = `a unit of disk '${disk.target}' at ${offset} failed: ${messageOf(error)}`
      throw fail('VIR_ERR_OPERATION_FAILED', text, error)
    }
  })
  if (!done.complete) return done.next
  await dropLink(target)
  return done.size
}

/** All is in the disk's own image: libvirt's job has nothing to copy, and libvirt knows that the link is gone. */
async function dropLink({ conn, domain, disk }: Target): Promise<void> {
  await conn.call('virDomainBlockPull', domain, disk.target, 0, c.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
  const end = performance.now() + LINK_TIMEOUT
  while ((await blockJobInfo(conn, domain, disk.target)) !== undefined) {
    if (performance.now() > end)
      throw fail(
        'VIR_ERR_OPERATION_TIMEOUT',
        `all of disk '${disk.target}' is streamed, its backing link is dropped as soon as its base answers`,
      )
    await new Promise((resolve) => setTimeout(resolve, POLL))
  }
}

/** Who made an export, so that what a process left behind when it was killed can be told from what is in use. */
const OURS = /^virstream-(\d+)-(\d+)$/
const owner = (): string => `virstream-${process.pid}-${processStartTime(process.pid) ?? '0'}`

async function withExport<T>(target: Target, use: (client: NbdClient, cluster: number) => Promise<T>): Promise<T> {
  const monitor = new Monitor(target.conn, target.domain)
  const { disk } = target
  const { node, cluster } = await monitor.imageOf(disk)
  await clearAway(monitor)
  await using undo = new Undo()
  const { socket, listener } = listen(undo)
  await monitor.run('getfd', { fdname: owner() }, [listener])
  await monitor.run('nbd-server-start', { addr: { type: 'fd', data: { str: owner() } } })
  undo.add(() => monitor.run('nbd-server-stop', {}))
  await monitor.run('block-export-add', {
    type: 'nbd',
    id: owner(),
    'node-name': node,
    name: disk.target,
    'allocation-depth': true,
  })
  const connection = new Socket({ fd: native.connectUnix(socket), readable: true, writable: true })
  const client = await NbdClient.connect(connection, { export: disk.target, metaContexts: [ALLOCATION_DEPTH] })
  undo.add(() => client.disconnect().catch(() => undefined))
  return await use(client, cluster)
}

/** A listening socket; its name is needed until we are connected, and nobody else finds it. */
function listen(undo: Undo): { socket: string; listener: number } {
  const folder = mkdtempSync(join(tmpdir(), 'virstream-unit-'))
  undo.add(() => rmSync(folder, { recursive: true, force: true }))
  const socket = join(folder, 'nbd')
  const listener = native.listenUnix(socket, 0o600, 1)
  undo.add(() => native.close(listener))
  return { socket, listener }
}

/** The server of a process that was killed is taken away; anyone else's is left alone. */
async function clearAway(monitor: Monitor): Promise<void> {
  const exports = (await monitor.run('query-block-exports', {})) as { id: string }[]
  for (const { id } of exports) {
    const [, pid, startTime] = OURS.exec(id) ?? []
    if (pid === undefined) throw fail('VIR_ERR_OPERATION_INVALID', `QEMU's NBD server is in use for export '${id}'`)
    if (processStartTime(Number(pid)) === startTime)
      throw fail('VIR_ERR_RESOURCE_BUSY', `process ${pid} is streaming a unit of the domain`)
  }
  // without an export of anybody else, a server can only be what one of us left
  await monitor.run('nbd-server-stop', {}).catch(() => undefined)
}
