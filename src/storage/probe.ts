/** What an image is, by its header. A raw image has none: it is taken for what it was declared, and never looked into. */
import type { FileHandle } from 'node:fs/promises'
import type { Stats } from 'node:fs'
import type { StorageSource } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { describe, sizeOf, withImage } from './image-file.js'
import type { LocalSource } from './image-file.js'
import { formatByMagic, ImageHeaderError, MAX_HEADER_BYTES, parseHeader } from './image-header.js'
import type { ImageHeader } from './image-header.js'
import { askQemuImg } from './qemu-img.js'

const fail = failFrom('VIR_FROM_STORAGE')

export interface ImageInfo {
  /** as declared; the header has been seen to agree */
  format: string
  /** bytes that the guest sees */
  virtualSize: number
  /** bytes */
  clusterSize?: number
  /** of qcow2: 2 or 3 */
  version?: number
  encrypted: boolean
  /** written to by a QEMU that has not closed it */
  dirty: boolean
  corrupt: boolean
  /** how the header names the backing image, and the format that it gives for it; absent: there is none */
  backing?: { string: string; format?: string }
}

export interface ProbeOptions {
  /** the disk's own image, to name it in messages about images below it */
  top?: StorageSource
  /** milliseconds that qemu-img may take where it has to be asked, default 30 000 */
  timeout?: number
  signal?: AbortSignal
}

/** Whether an image of this format is one without a header (CD images are what QEMU calls raw, too). */
export function isRaw(format: string | undefined): boolean {
  return format === undefined || format === 'raw' || format === 'iso'
}

function isParsedHere(format: string | undefined): format is 'qcow2' | 'qed' {
  return format === 'qcow2' || format === 'qed'
}

/**
 * What `source` is, by its declared format. VIR_ERR_SYSTEM_ERROR when it can't be opened, VIR_ERR_INTERNAL_ERROR when its
 * header is broken or of another format, VIR_ERR_CONFIG_UNSUPPORTED for features that we don't know (and external data
 * files), VIR_ERR_OPERATION_FAILED when a server does not answer.
 */
export async function probeImage(source: StorageSource, options: ProbeOptions = {}): Promise<ImageInfo> {
  if (source.type === 'network') return await askQemuImg(source, options)
  const { format } = source
  const info = await withImage(source, options.top ?? source, async (file, stats) => {
    if (isRaw(format)) return rawInfo(source, await sizeOf(stats))
    const header = await readHeader(source, file, stats)
    if (isParsedHere(format)) return parsed(source, format, header)
    requireMagic(source, header)
    return undefined
  })
  return info ?? (await askQemuImg(source, options))
}

function rawInfo(source: StorageSource, size: number): ImageInfo {
  const virtualSize = source.slice === undefined ? size : source.slice.size
  return { format: 'raw', virtualSize, encrypted: false, dirty: false, corrupt: false }
}

async function readHeader(source: LocalSource, file: FileHandle, stats: Stats): Promise<Buffer> {
  const start = source.slice?.offset ?? 0
  const length = Math.max(0, Math.min(MAX_HEADER_BYTES, (await sizeOf(stats)) - start))
  const bytes = Buffer.alloc(length)
  let filled = 0
  while (filled < length) {
    const { bytesRead } = await file.read(bytes, filled, length - filled, start + filled)
    if (bytesRead === 0) break
    filled += bytesRead
  }
  return bytes.subarray(0, filled)
}

function notOf(source: StorageSource, format: string, found: string | undefined): Error {
  const is = found === undefined ? 'has no such header' : `is '${found}'`
  return fail('VIR_ERR_INTERNAL_ERROR', `image '${describe(source)}' is declared as '${format}' but ${is}`)
}

/** Formats that only QEMU parses, of which every image begins in a known way. */
const MARKED_FORMATS = new Set(['qcow', 'vmdk', 'vdi', 'vhdx', 'luks', 'parallels', 'bochs'])

/** For a format that only QEMU parses. */
function requireMagic(source: StorageSource, header: Buffer): void {
  const { format = 'raw' } = source
  const found = formatByMagic(header)
  if (MARKED_FORMATS.has(format) && found !== format) throw notOf(source, format, found)
}

function parsed(source: StorageSource, format: 'qcow2' | 'qed', bytes: Buffer): ImageInfo {
  const magic = formatByMagic(bytes)
  const isNewerQcow2 = format === 'qcow2' && bytes.toString('latin1', 0, 4) === 'QFI\xfb' && magic === undefined
  if (magic !== format && !isNewerQcow2) throw notOf(source, format, magic)
  return toInfo(source, headerOf(source, format, bytes))
}

function headerOf(source: StorageSource, format: 'qcow2' | 'qed', bytes: Buffer): ImageHeader {
  try {
    return parseHeader(format, bytes)
  } catch (error) {
    if (!(error instanceof ImageHeaderError)) throw error
    const name = describe(source)
    if (error.unsupported)
      throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `${format} image '${name}': ${error.message}`, error)
    throw fail('VIR_ERR_INTERNAL_ERROR', `${format} image '${name}' is broken: ${error.message}`, error)
  }
}

function toInfo(source: StorageSource, header: ImageHeader): ImageInfo {
  const virtualSize = Number(header.virtualSize)
  if (!Number.isSafeInteger(virtualSize)) {
    throw fail('VIR_ERR_OVERFLOW', `size ${header.virtualSize.toString()} of image '${describe(source)}' is too large`)
  }
  return { ...header, virtualSize }
}
