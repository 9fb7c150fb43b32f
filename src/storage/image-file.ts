/** Local image files: opened without ever waiting or being led to something else than a file or a disk. */
import { constants, open, readFile, stat } from 'node:fs/promises'
import type { FileHandle } from 'node:fs/promises'
import type { Stats } from 'node:fs'
import type { StorageSource } from '../conf/domain-def.js'
import { failFrom, VirError, wordsOf } from '../error.js'
import { formatBackingString } from './backing-string.js'

const fail = failFrom('VIR_FROM_STORAGE')

export type LocalSource = Extract<StorageSource, { type: 'file' | 'block' }>

/** What an image is called in a message: its path or URL. Never throws. */
export function describe(source: StorageSource): string {
  if (source.type !== 'network') return source.path
  try {
    return formatBackingString(source)
  } catch {
    return `${source.protocol}:${source.name ?? ''}`
  }
}

/** VIR_ERR_SYSTEM_ERROR, worded as by virStorageSourceReportBrokenChain; `top` is the disk's own image. */
function noAccess(source: LocalSource, top: StorageSource, error: unknown): VirError {
  if (error instanceof VirError) return error
  const what =
    source === top
      ? `Cannot access storage file '${source.path}'`
      : `Cannot access backing file '${source.path}' of storage file '${describe(top)}'`
  return fail('VIR_ERR_SYSTEM_ERROR', `${what}: ${wordsOf(error)}`, error)
}

function kindOf(stats: Stats): string {
  if (stats.isDirectory()) return 'a directory'
  if (stats.isSocket()) return 'a socket'
  if (stats.isFIFO()) return 'a pipe'
  return 'a character device'
}

function requireImage(path: string, stats: Stats): void {
  if (stats.isFile() || stats.isBlockDevice()) return
  throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `'${path}' is ${kindOf(stats)}, not an image`)
}

/**
 * Calls `use` with the open image and closes it. VIR_ERR_SYSTEM_ERROR when it can't be opened,
 * VIR_ERR_CONFIG_UNSUPPORTED when it is neither a regular file nor a block device (those are not even opened).
 */
export async function withImage<T>(
  source: LocalSource,
  top: StorageSource,
  use: (file: FileHandle, stats: Stats) => Promise<T>,
): Promise<T> {
  let file: FileHandle | undefined
  try {
    requireImage(source.path, await stat(source.path))
    file = await open(source.path, constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY)
    const stats = await file.stat()
    requireImage(source.path, stats)
    return await use(file, stats)
  } catch (error) {
    throw noAccess(source, top, error)
  } finally {
    await file?.close()
  }
}

/** Bytes of a file or of a host disk. */
export async function sizeOf(stats: Stats): Promise<number> {
  if (!stats.isBlockDevice()) return stats.size
  // how Linux packs a device number (makedev(3))
  const major = (stats.rdev >>> 8) & 0xfff
  const minor = (stats.rdev & 0xff) | ((stats.rdev >>> 12) & 0xfff00)
  return Number(await readFile(`/sys/dev/block/${major}:${minor}/size`, 'utf8')) * 512
}
