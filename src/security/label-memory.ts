/**
 * What a file was labelled before a domain got it, written on the file itself in the attributes that libvirt uses
 * (security_util.c), so that virstream and libvirt on one host know of each other: the label, the number of domains that use
 * the file, and the time at which the host booted, since nothing that was counted before counts any longer.
 */
import { closeSync, constants, lstatSync, openSync, readFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { errnoOf, failFrom, wordsOf } from '../error.js'
import { native } from '../native.js'

const fail = failFrom('VIR_FROM_SECURITY')

export interface Remembered {
  label: string
  /** domains that use the file */
  count: number
}

/** The memory of one security driver. Paths must have no symbolic link at their end. */
export class LabelMemory {
  readonly #names: { label: string; count: string; boot: string }

  constructor(model: string) {
    const prefix = 'trusted.libvirt.security.'
    this.#names = { label: `${prefix}${model}`, count: `${prefix}ref_${model}`, boot: `${prefix}timestamp_${model}` }
  }

  /** Can files there be given a memory? Needs a file system with such attributes, and root. */
  isPossible(path: string): boolean {
    try {
      native.getxattr(path, this.#names.boot)
      // for those who may not know of them they just aren't there, so only root gets a true answer
      return process.geteuid?.() === 0
    } catch (error) {
      if (['ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EPERM', 'EACCES'].includes(errnoOf(error) ?? '')) return false
      throw error
    }
  }

  /** What is remembered since the host has booted; older memories are removed. */
  read(path: string): Remembered | undefined {
    const { label, count, boot } = this.#names
    const number = Number(this.#get(path, count) ?? 0)
    const text = this.#get(path, label)
    if (text !== undefined && number > 0 && isThisBoot(this.#get(path, boot))) return { label: text, count: number }
    this.#forget(path)
    return undefined
  }

  /** One more domain uses the file; `label` is what it had before the first one. */
  remember(path: string, label: string): void {
    const count = (this.read(path)?.count ?? 0) + 1
    if (count === 1) {
      this.#set(path, this.#names.label, label)
      this.#set(path, this.#names.boot, String(bootTime()))
    }
    this.#set(path, this.#names.count, String(count))
  }

  /** One domain less; the label to go back to when it was the last one. */
  recall(path: string): string | undefined {
    const remembered = this.read(path)
    if (remembered === undefined) return undefined
    if (remembered.count > 1) {
      this.#set(path, this.#names.count, String(remembered.count - 1))
      return undefined
    }
    this.#forget(path)
    return remembered.label
  }

  #get(path: string, name: string): string | undefined {
    const value = native.getxattr(path, name)
    // libvirt writes the final NUL too
    return value && Buffer.from(value).toString('utf8').replace(/\0$/, '')
  }

  #set(path: string, name: string, value: string): void {
    native.setxattr(path, name, Buffer.from(value))
  }

  #forget(path: string): void {
    for (const name of [this.#names.count, this.#names.label, this.#names.boot])
      if (native.getxattr(path, name) !== undefined) native.removexattr(path, name)
  }
}

/** Clocks that are set while the host runs move the computed time of boot a little. */
const isThisBoot = (text: string | undefined): boolean => Math.abs(Number(text ?? NaN) - bootTime()) <= 2

const UTMP_RECORD = 384
const UTMP_SECONDS = 340
const UTMP_BOOT_TIME = 2
let knownBootTime: number | undefined

/** Seconds since 1970, from utmp as libvirt does (virHostGetBootTime), else by the uptime. */
function bootTime(): number {
  knownBootTime ??= bootTimeOfUtmp() ?? bootTimeOfUptime()
  return knownBootTime
}

function bootTimeOfUtmp(): number | undefined {
  let records: Buffer
  try {
    records = readFileSync('/run/utmp')
  } catch {
    return undefined
  }
  for (let at = 0; at + UTMP_RECORD <= records.length; at += UTMP_RECORD)
    if (records.readInt16LE(at) === UTMP_BOOT_TIME) return records.readInt32LE(at + UTMP_SECONDS)
  return undefined
}

function bootTimeOfUptime(): number {
  const uptime = Number(readFileSync('/proc/uptime', 'utf8').split(' ')[0])
  return Math.round(Math.floor(Date.now() / 1000) - uptime)
}

/** the byte that libvirt locks while it changes labels (METADATA_OFFSET) */
const METADATA_LOCK = { type: 'write', start: 1, length: 1 } as const
/** ms */
const LOCK_RETRY = 50
const LOCK_TIMEOUT = 10_000

/** Runs `work`, which must not wait for anything, while no other process, nor libvirt, changes labels of the file. */
export async function withMetadataLock<T>(path: string, work: () => T): Promise<T> {
  const fd = openForLock(path)
  if (fd === undefined) return work()
  try {
    for (let waited = 0; !native.lockFile(fd, METADATA_LOCK); waited += LOCK_RETRY) {
      if (waited >= LOCK_TIMEOUT)
        throw fail('VIR_ERR_OPERATION_TIMEOUT', `another process keeps the labels of '${path}' locked`)
      await delay(LOCK_RETRY)
    }
    return work()
  } finally {
    closeSync(fd)
  }
}

/** Undefined where there is nothing to lock: a read-only file system, a serial line, which opening would disturb. */
function openForLock(path: string): number | undefined {
  try {
    const stat = lstatSync(path)
    if (!stat.isFile() && !stat.isBlockDevice()) return undefined
    return openSync(path, constants.O_RDWR | constants.O_NONBLOCK | constants.O_NOFOLLOW)
  } catch (error) {
    if (['ENXIO', 'EROFS', 'EISDIR', 'ETXTBSY', 'EPERM', 'EACCES'].includes(errnoOf(error) ?? '')) return undefined
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot lock the labels of '${path}': ${wordsOf(error)}`, error)
  }
}
