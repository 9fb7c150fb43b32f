/** What only QEMU can tell about an image: those behind a network, and formats that we don't parse. */
import type { StorageSource } from '../conf/domain-def.js'
import { failFrom, VirError } from '../error.js'
import { run, RunError } from '../util/run.js'
import { blockdevString } from './backing-string.js'
import { describe } from './image-file.js'
import type { ImageInfo } from './probe.js'

const fail = failFrom('VIR_FROM_STORAGE')
const DEFAULT_TIMEOUT = 30_000

export interface QemuImgOptions {
  /** milliseconds, default 30 000 */
  timeout?: number
  signal?: AbortSignal
}

export interface QemuImgInfo extends ImageInfo {
  /** bytes on the host's disk, where QEMU knows them */
  actualSize?: number
}

/**
 * `qemu-img info` with the format forced to the declared one; the backing image is not opened.
 * VIR_ERR_OPERATION_FAILED with QEMU's words when it can't be read, VIR_ERR_INTERNAL_ERROR when it is of another format.
 */
export async function askQemuImg(source: StorageSource, options: QemuImgOptions = {}): Promise<QemuImgInfo> {
  requirePlain(source)
  const format = source.format === undefined || source.format === 'iso' ? 'raw' : source.format
  try {
    const { timeout = DEFAULT_TIMEOUT, signal } = options
    const args = ['info', '--output=json', '-U', blockdevString({ ...source, format })]
    const { stdout } = await run('qemu-img', args, { timeout, ...(signal && { signal }) })
    return toInfo(format, JSON.parse(stdout))
  } catch (error) {
    throw translate(source, format, error)
  }
}

/** Credentials are QEMU's business, by secret objects; on a command line everyone could read them. */
function requirePlain(source: StorageSource): void {
  if (source.type !== 'network' || (source.tls !== 'yes' && source.cookies === undefined)) return
  const what = source.tls === 'yes' ? 'TLS' : 'cookies'
  const text = `cannot look into image '${describe(source)}', which needs ${what}: its <backingStore> must be given in the XML`
  throw fail('VIR_ERR_CONFIG_UNSUPPORTED', text)
}

function translate(source: StorageSource, format: string, error: unknown): Error {
  const name = describe(source)
  if (error instanceof VirError) return error
  if (!(error instanceof RunError)) {
    return fail('VIR_ERR_INTERNAL_ERROR', `qemu-img gave no usable answer about image '${name}'`, error)
  }
  if (error.reason === 'timeout')
    return fail('VIR_ERR_OPERATION_TIMEOUT', `image '${name}' did not answer in time`, error)
  if (error.reason === 'abort') return fail('VIR_ERR_OPERATION_ABORTED', `reading image '${name}' was aborted`, error)
  if (/Image (is )?not in .* format|Could not find .* header|not a .* image/i.test(error.stderr)) {
    const text = `image '${name}' is declared as '${format}' but has no such header`
    return fail('VIR_ERR_INTERNAL_ERROR', text, error)
  }
  return fail('VIR_ERR_OPERATION_FAILED', `cannot read image '${name}': ${qemuWords(error)}`, error)
}

/** What qemu-img said, without its own name and without the long name of the image. */
export function qemuWords(error: RunError): string {
  const words = error.stderr.trim().replace(/^qemu-img: /, '')
  return words === '' ? error.message : words.replace(/^Could not open '.*?': (?=\S)/s, '')
}

interface Answer {
  'virtual-size'?: number
  'actual-size'?: number
  'cluster-size'?: number
  encrypted?: boolean
  'dirty-flag'?: boolean
  'backing-filename'?: string
  'backing-filename-format'?: string
  'format-specific'?: { data?: { corrupt?: boolean; 'data-file'?: string } }
}

function toInfo(format: string, value: unknown): QemuImgInfo {
  const answer = value as Answer
  const string = answer['backing-filename']
  const backingFormat = answer['backing-filename-format']
  const data = answer['format-specific']?.data
  const virtualSize = answer['virtual-size']
  if (virtualSize === undefined) throw new TypeError('qemu-img info gave no virtual size')
  if (!Number.isSafeInteger(virtualSize)) throw fail('VIR_ERR_OVERFLOW', `image size ${virtualSize} is too large`)
  if (data?.['data-file'] !== undefined)
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', 'external data files are not supported')
  return {
    format,
    virtualSize,
    ...(answer['cluster-size'] !== undefined && { clusterSize: answer['cluster-size'] }),
    ...(answer['actual-size'] !== undefined && { actualSize: answer['actual-size'] }),
    encrypted: answer.encrypted === true,
    dirty: answer['dirty-flag'] === true,
    corrupt: data?.corrupt === true,
    ...(string !== undefined && { backing: { string, ...(backingFormat !== undefined && { format: backingFormat }) } }),
  }
}
