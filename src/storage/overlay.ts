/** Thin images on top of others. */
import { open, rm } from 'node:fs/promises'
import type { StorageSource } from '../conf/domain-def.js'
import { errnoOf, failFrom, wordsOf } from '../error.js'
import { run, RunError } from '../util/run.js'
import { Undo } from '../util/undo.js'
import { formatBackingString, MAX_BACKING_STRING } from './backing-string.js'
import { probeImage } from './probe.js'
import type { ImageInfo } from './probe.js'
import { qemuWords } from './qemu-img.js'

const fail = failFrom('VIR_FROM_STORAGE')

export interface OverlayRequest {
  /** absolute path of the new file */
  path: string
  format: 'qcow2' | 'qed'
  /** its format must be known; QED can only note down 'raw', so a chain with another needs `<backingStore>` in the XML */
  backing: StorageSource
  /** bytes, default: as the backing image */
  size?: number
  /** false: the backing image is noted down as it is said to be, it need not be there yet; then `size` must be given */
  openBacking?: boolean
  options?: {
    /** bytes, a power of two */
    clusterSize?: number
    /** room for the tables of the whole disk at once; of qcow2 */
    preallocation?: 'off' | 'metadata'
    /** reference counts may lag behind until the image is closed; of qcow2 */
    lazyRefcounts?: boolean
  }
  /** milliseconds, default 60 000 */
  timeout?: number
  signal?: AbortSignal
}

/**
 * Makes an empty image whose content is that of `backing` (qemu-img create). VIR_ERR_OPERATION_FAILED when there is a file
 * of that name already, which stays as it is, or with qemu-img's words; no half-made file remains.
 */
export async function createOverlay(request: OverlayRequest): Promise<void> {
  const { path, size, timeout = 60_000, signal } = request
  const args = [
    'create',
    '-q',
    '-f',
    request.format,
    ...(request.openBacking === false ? ['-u'] : []),
    ...backingArgs(request),
    ...formatArgs(request),
    path,
  ]
  if (size !== undefined) args.push(String(size))
  await using undo = new Undo()
  await claim(path)
  undo.add(() => rm(path, { force: true }))
  try {
    await run('qemu-img', args, { timeout, ...(signal && { signal }) })
  } catch (error) {
    const words = error instanceof RunError ? qemuWords(error) : String(error)
    throw fail('VIR_ERR_OPERATION_FAILED', `cannot create image '${path}': ${words}`, error)
  }
  undo.commit()
}

/**
 * Makes the header of a local image name `backing`, whatever that holds (qemu-img rebase -u). VIR_ERR_OPERATION_FAILED
 * with qemu-img's words, e.g. when a process has the image open.
 */
export async function rebaseHeader(image: StorageSource, backing: StorageSource): Promise<void> {
  if (image.type === 'network') throw fail('VIR_ERR_CONFIG_UNSUPPORTED', 'the header of a remote image stays as it is')
  const { path, format = 'raw' } = image
  if (format !== 'qcow2' && format !== 'qed')
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `the header of image '${path}' has no place for a base`)
  try {
    await run('qemu-img', ['rebase', '-u', '-f', format, ...backingArgs({ path, format, backing }), path])
  } catch (error) {
    const words = error instanceof RunError ? qemuWords(error) : String(error)
    throw fail('VIR_ERR_OPERATION_FAILED', `cannot change the base of image '${path}': ${words}`, error)
  }
}

/** Makes an empty image. VIR_ERR_OPERATION_FAILED when there is a file of that name already, or with qemu-img's words. */
export async function createImage({
  path,
  format,
  size,
}: {
  path: string
  format: string
  size: number
}): Promise<void> {
  await using undo = new Undo()
  await claim(path)
  undo.add(() => rm(path, { force: true }))
  try {
    await run('qemu-img', ['create', '-q', '-f', format, path, String(size)], { timeout: 60_000 })
  } catch (error) {
    const words = error instanceof RunError ? qemuWords(error) : String(error)
    throw fail('VIR_ERR_OPERATION_FAILED', `cannot create image '${path}': ${words}`, error)
  }
  undo.commit()
}

/** The facts in the header of a local image. */
export function imageInfo(path: string, format: string): Promise<ImageInfo> {
  return probeImage({ type: 'file', path, format })
}

/** The name is ours alone from here on: qemu-img by itself would write over whatever is there. */
async function claim(path: string): Promise<void> {
  if (!path.startsWith('/')) throw fail('VIR_ERR_INVALID_ARG', `path '${path}' is not absolute`)
  try {
    await (await open(path, 'wx', 0o600)).close()
  } catch (error) {
    const exists = errnoOf(error) === 'EEXIST'
    if (exists) throw fail('VIR_ERR_OPERATION_FAILED', `image '${path}' exists already`, error)
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot create image '${path}': ${wordsOf(error)}`, error)
  }
}

function backingArgs({ backing, format }: OverlayRequest): string[] {
  if (backing.format === undefined) throw fail('VIR_ERR_INVALID_ARG', 'the format of the backing image is not given')
  const string = formatBackingString(backing)
  if (Buffer.byteLength(string) > MAX_BACKING_STRING) {
    throw fail('VIR_ERR_INVALID_ARG', `backing string '${string}' is too long for a ${format} header`)
  }
  return ['-b', string, '-F', backing.format]
}

function formatArgs({ format, options = {} }: OverlayRequest): string[] {
  const { clusterSize, preallocation, lazyRefcounts } = options
  const settings: string[] = []
  if (clusterSize !== undefined) settings.push(`cluster_size=${clusterSize}`)
  if (preallocation !== undefined) settings.push(`preallocation=${preallocation}`)
  if (lazyRefcounts === true) settings.push('lazy_refcounts=on')
  if (format === 'qed' && (preallocation !== undefined || lazyRefcounts !== undefined)) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', "format 'qed' has no preallocation and no lazy refcounts")
  }
  return settings.length === 0 ? [] : ['-o', settings.join(',')]
}
