/** Is the other end of a remote image there? QEMU says nothing while it tries to reconnect, so we look for ourselves. */
import { connect, type Socket } from 'node:net'
import type { DiskDef, StorageSource } from '../../conf/domain-def.js'
import { chainOf } from './block-graph.js'

/** ms until a server must have taken a connection */
const CONNECT_TIMEOUT = 2_000
const DEFAULT_PORTS: Record<string, number> = { nbd: 10809, http: 80, https: 443, ftp: 21, ftps: 990 }

type NetworkSource = StorageSource & { type: 'network' }

export const isRemote = (source: StorageSource): boolean => source.type === 'network'

export const isNbd = (source: StorageSource): source is NetworkSource =>
  source.type === 'network' && source.protocol === 'nbd'

/** Does QEMU leave it to libcurl (HTTP, FTP)? */
export const isCurl = (source: StorageSource): boolean => isRemote(source) && !isNbd(source)

/** How far the images of a disk are: all in local files, some over NBD, or some over HTTP or FTP, which QEMU leaves to libcurl. */
export function linksOf(disk: DiskDef): 'local' | 'nbd' | 'curl' {
  const images = remoteImages(disk)
  if (images.length === 0) return 'local'
  return images.some(isCurl) ? 'curl' : 'nbd'
}

/** The images of a disk's chain that are reached over a network (or a unix socket). */
export function remoteImages(disk: DiskDef): StorageSource[] {
  return chainOf(disk).filter(isRemote)
}

/** Whether a disk reads from the source of a migration. */
export function isFromMigration(disk: DiskDef): boolean {
  return chainOf(disk).some(
    (image) =>
      image.type === 'network' &&
      image.hosts.some(({ socket = '' }) => /\/run\/migration\/[0-9a-f]{16}\/nbd\.sock$/.test(socket)),
  )
}

/** A connection to the server of `source`, under way. */
export function dial(source: StorageSource & { type: 'network' }): Socket {
  const host = source.hosts[0]
  if (host?.transport === 'unix') return connect({ path: host.socket ?? '' })
  return connect({ host: host?.name ?? 'localhost', port: host?.port ?? DEFAULT_PORTS[source.protocol] ?? 0 })
}

/** ms after an outage in which the requests of a stream are tried again: QEMU fails the first ones */
const GRACE = 15_000

/** Why a remote image of `disk` does not answer; undefined: each of them does, or `disk` has none. */
export async function baseProblem(disk: DiskDef | undefined): Promise<string | undefined> {
  for (const image of disk === undefined ? [] : remoteImages(disk)) {
    const problem = await linkProblem(image)
    if (problem !== undefined) return `the base does not answer: ${problem}`
  }
  return undefined
}

/** A request of a stream failed: is it worth another try, since the base is away or has just come back? */
export async function isOutage(disk: DiskDef | undefined, job: { goneAt: number | undefined }): Promise<boolean> {
  if ((await baseProblem(disk)) !== undefined) job.goneAt = performance.now()
  return job.goneAt !== undefined && performance.now() - job.goneAt < GRACE
}

/** Why the server of `source` takes no connection; undefined when it does. */
export function linkProblem(source: StorageSource): Promise<string | undefined> {
  if (source.type !== 'network') return Promise.resolve(undefined)
  return new Promise((resolve) => {
    const socket = dial(source)
    const end = (problem: string | undefined): void => {
      socket.destroy()
      resolve(problem)
    }
    socket.setTimeout(CONNECT_TIMEOUT, () => end('it takes no connection'))
    socket.once('connect', () => end(undefined))
    socket.once('error', (error: Error) => end(error.message))
  })
}
