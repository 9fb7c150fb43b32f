/** One lock file of the driver 'ofd': byte 0 is the lock, byte 1 guards the file's content, which names the holders. */
import { createHash } from 'node:crypto'
import { closeSync, constants, fstatSync, ftruncateSync, openSync, readFileSync, statSync, writeSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { failFrom, messageOf } from '../error.js'
import { native } from '../native.js'
import { processStartTime } from '../util/process-start-time.js'
import type { LockOwner, LockResource } from './lock-driver.js'

const fail = failFrom('VIR_FROM_LOCKING')

const LOCK = { start: 0, length: 1 }
const CONTENT = { start: 1, length: 1 }
/** times that the content is tried, 5 ms apart */
const PATIENCE = 200

/** Who has a lock, as the file tells others. */
interface LockHolderNote {
  name: string
  uuid: string
  pid: number
  /** of the process, see `processStartTime` */
  startTime: string
  host: string
}

/** The lock file of an image: named by a hash, since paths are longer than names of files may be. */
export function lockFilePath(directory: string, imagePath: string): string {
  return join(directory, createHash('sha256').update(imagePath).digest('hex'))
}

export function openLockFile(path: string): number {
  try {
    return openSync(path, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o660)
  } catch (error) {
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot open lock file '${path}': ${messageOf(error)}`, error)
  }
}

/** Locks the image and writes down for whom. VIR_ERR_RESOURCE_BUSY names who has it. */
export async function takeLock(fd: number, path: string, owner: LockOwner, resource: LockResource): Promise<void> {
  const type = resource.mode === 'exclusive' ? 'write' : 'read'
  if (!native.lockFile(fd, { type, ...LOCK })) throw busy(resource, await withContent(fd, () => readHolders(fd)))
  try {
    // a lock on a file that someone has removed is no lock
    if (fstatSync(fd).ino !== statSync(path).ino) throw new Error('it was replaced')
    await withContent(fd, () => writeHolders(fd, [...(type === 'write' ? [] : livingHolders(fd)), noteOf(owner)]))
  } catch (error) {
    dropLock(fd)
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot use lock file '${path}': ${messageOf(error)}`, error)
  }
}

/** For all copies of this descriptor, in whichever process. */
export function dropLock(fd: number): void {
  native.unlockFile(fd, LOCK.start, LOCK.length)
}

/** Does `owner` hold the lock of this file? */
export async function holdsLock(path: string, owner: LockOwner): Promise<boolean> {
  const fd = openLockFile(path)
  try {
    if (native.testLock(fd, { type: 'write', ...LOCK }) === undefined) return false
    const holders = await withContent(fd, () => livingHolders(fd))
    return holders.some(({ uuid, pid, host }) => uuid === owner.uuid && pid === owner.pid && host === hostname())
  } finally {
    closeSync(fd)
  }
}

function noteOf({ name, uuid, pid }: LockOwner): LockHolderNote {
  return { name, uuid, pid, startTime: processStartTime(pid) ?? '', host: hostname() }
}

function busy(resource: LockResource, notes: LockHolderNote[]): Error {
  const living = notes.filter(isAlive)
  // a helper may survive the process that it is for by a moment
  const who = (living.length > 0 ? living : notes).map(
    ({ name, pid, host }) => `domain '${name}' (process ${pid} on host '${host}')`,
  )
  const whom = who.length === 0 ? 'someone who has not written down a name' : who.join(', ')
  return fail('VIR_ERR_RESOURCE_BUSY', `image '${resource.path}' is in use by ${whom}`)
}

/** Those of other hosts are taken for alive. */
function isAlive({ host, pid, startTime }: LockHolderNote): boolean {
  return host !== hostname() || processStartTime(pid) === startTime
}

function livingHolders(fd: number): LockHolderNote[] {
  return readHolders(fd).filter(isAlive)
}

function readHolders(fd: number): LockHolderNote[] {
  try {
    // read by a descriptor of its own position
    const found: unknown = JSON.parse(readFileSync(`/proc/self/fd/${fd}`, 'utf8'))
    return Array.isArray(found) ? (found as LockHolderNote[]) : []
  } catch {
    return [] // empty, or from a process that died while it wrote
  }
}

function writeHolders(fd: number, holders: LockHolderNote[]): void {
  ftruncateSync(fd)
  writeSync(fd, `${JSON.stringify(holders)}\n`, 0)
}

/** One at a time: who shares a lock reads and writes the same list. */
async function withContent<T>(fd: number, work: () => T): Promise<T> {
  for (let tries = 0; !native.lockFile(fd, { type: 'write', ...CONTENT }); tries++) {
    if (tries === PATIENCE) throw new Error('someone has its content and does not let go')
    await delay(5)
  }
  try {
    return work()
  } finally {
    native.unlockFile(fd, CONTENT.start, CONTENT.length)
  }
}
