/** From a disk's image down to the one without a backing image. */
import { stat } from 'node:fs/promises'
import type { StorageSource } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { formatBackingString, parseBackingString } from './backing-string.js'
import { describe, withImage } from './image-file.js'
import { isRaw, probeImage } from './probe.js'
import type { ImageInfo } from './probe.js'

const fail = failFrom('VIR_FROM_STORAGE')

export interface ResolveOptions {
  /** images in a chain at most, default 200 (as libvirt) */
  maxDepth?: number
  /** milliseconds that each remote image may take to answer, default 30 000 */
  timeout?: number
  signal?: AbortSignal
}

/**
 * Fills in `backingStore` of `source` and of all images below, down to null. What the XML says (`<backingStore>`) is taken
 * as it is; elsewhere the headers decide. Every local image has been opened afterwards, and its header agrees with its
 * declared format. On failure nothing has changed.
 *
 * VIR_ERR_SYSTEM_ERROR: an image is missing or unreadable; VIR_ERR_INTERNAL_ERROR: a header is broken or of another
 * format, or the chain loops or is too deep; VIR_ERR_OPERATION_INVALID: a header names a backing image without its format
 * (guessing it from the content would let a guest choose which files of the host it gets to read).
 */
export async function resolveBackingChain(source: StorageSource, options: ResolveOptions = {}): Promise<void> {
  const { maxDepth = 200 } = options
  const found: { image: StorageSource; next: StorageSource | null }[] = []
  const seen = new Set<string>()
  let image = source
  for (;;) {
    requireFormat(image, source)
    await requireNew(image, source, seen)
    if (seen.size > maxDepth) {
      throw fail('VIR_ERR_INTERNAL_ERROR', `backing chain of '${describe(source)}' has more than ${maxDepth} images`)
    }
    const next = await nextOf(image, source, options)
    found.push({ image, next })
    if (next === null) break
    image = next
  }
  for (const { image: of, next } of found) of.backingStore = next
}

function requireFormat(image: StorageSource, top: StorageSource): void {
  if (image === top || image.format !== undefined) return
  const text = `format of backing image '${describe(image)}' of image '${describe(top)}' is not given`
  throw fail('VIR_ERR_OPERATION_INVALID', text)
}

async function requireNew(image: StorageSource, top: StorageSource, seen: Set<string>): Promise<void> {
  const identity = await identityOf(image, top)
  if (seen.has(identity)) {
    const text = `backing chain of '${describe(top)}' loops: '${describe(image)}' is in it twice`
    throw fail('VIR_ERR_INTERNAL_ERROR', text)
  }
  seen.add(identity)
}

async function identityOf(image: StorageSource, top: StorageSource): Promise<string> {
  if (image.type === 'network') return formatBackingString(image)
  const slice = image.slice === undefined ? '' : `@${image.slice.offset}`
  return await withImage(image, top, (_, stats) =>
    Promise.resolve(stats.isBlockDevice() ? `disk ${stats.rdev}${slice}` : `file ${stats.dev}:${stats.ino}${slice}`),
  )
}

async function nextOf(
  image: StorageSource,
  top: StorageSource,
  options: ResolveOptions,
): Promise<StorageSource | null> {
  const given = image.backingStore
  // behind a network only what is not known is worth a question
  if (image.type === 'network' && (given !== undefined || isRaw(image.format))) return given ?? null
  const info = await probeImage(image, { ...options, top })
  if (given !== undefined) return given
  return info.backing === undefined ? null : await backingOf(image, info.backing)
}

async function backingOf(image: StorageSource, backing: NonNullable<ImageInfo['backing']>): Promise<StorageSource> {
  const next = parseBackingString(backing.string, image)
  const format = backing.format ?? next.format
  if (format === undefined) {
    const text = `format of backing image '${backing.string}' of image '${describe(image)}' was not specified in the image metadata`
    const remedy = "'qemu-img rebase -u -b BACKING -F FORMAT' sets it, or <backingStore> in the XML gives it"
    throw fail('VIR_ERR_OPERATION_INVALID', `${text} (${remedy})`)
  }
  if (next.type === 'file' && (await isHostDisk(next.path))) return { ...next, type: 'block', format }
  return { ...next, format }
}

/** Whether QEMU needs its driver for host devices; what is missing is found out when it is opened. */
async function isHostDisk(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isBlockDevice()
  } catch {
    return false
  }
}
