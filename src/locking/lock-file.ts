/** One lock file of the driver 'ofd': byte 0 is the lock, byte 1 guards the file's content, which names the holders. */
import { createHash } from 'node:crypto'
import { closeSync, constants, fstatSync, ftruncateSync, openSync, readFileSync, statSync, writeSync } from 'node:fs'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { failFrom, VirError, wordsOf } from '../error.js'
import { native } from '../native.js'
import { processStartTime } from '../util/process-start-time.js'
import type { LockOwner, LockResource } from './lock-driver.js'

const fail = failFrom('VIR_FROM_LOCKING')

const LOCK = { start: 0, length: 1 }
const CONTENT = { start: 1, length: 1 }
/** times that the content is tried, 5 ms apart */
const PATIENCE = 200

/** What the file tells others. */
interface LockNote {
  /** of the domain that had the lock last; domains that share it are one after the other */
  last?: string
  /** how often that has changed */
  turn: number
  holders: LockHolderNote[]
}

/** Who has a lock. */
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
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot open lock file '${path}': ${wordsOf(error)}`, error)
  }
}

/**
 * Locks the image and writes down for whom. VIR_ERR_RESOURCE_BUSY names who has it. Answers the turn, which tells later
 * whether another domain had it meanwhile; with an earlier one as `state`, VIR_ERR_OPERATION_FAILED when another had.
 */
export async function takeLock(
  fd: number,
  path: string,
  owner: LockOwner,
  resource: LockResource,
  state?: number,
): Promise<number> {
  const type = resource.mode === 'exclusive' ? 'write' : 'read'
  if (!native.lockFile(fd, { type, ...LOCK })) throw busy(resource, await withContent(fd, () => readNote(fd).holders))
  try {
    // a lock on a file that someone has removed is no lock
    if (fstatSync(fd).ino !== statSync(path).ino) throw new Error('it was replaced')
    return await withContent(fd, () => enter(fd, owner, resource, state))
  } catch (error) {
    dropLock(fd)
    if (error instanceof VirError) throw error
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot use lock file '${path}': ${wordsOf(error)}`, error)
  }
}

function enter(fd: number, owner: LockOwner, resource: LockResource, state: number | undefined): number {
  const { last, turn: before, holders } = readNote(fd)
  const turn = last === owner.uuid ? before : before + 1
  checkTurn(resource, turn, state)
  const others = resource.mode === 'exclusive' ? [] : holders.filter(isAlive)
  writeNote(fd, { last: owner.uuid, turn, holders: [...others, noteOf(owner)] })
  return turn
}

/** Who shares an image knows that others write it. */
function checkTurn({ path, mode }: LockResource, turn: number, state: number | undefined): void {
  if (mode === 'exclusive' && state !== undefined && state !== turn)
    throw fail('VIR_ERR_OPERATION_FAILED', `another domain had image '${path}' since its lock was let go of`)
}

/**
 * Makes a lock that is held `exclusive` or `shared`, and answers the turn, whoever shared it meanwhile. VIR_ERR_RESOURCE_BUSY,
 * with the lock as it was, when others share it.
 */
export async function changeLock(fd: number, owner: LockOwner, resource: LockResource): Promise<number> {
  const type = resource.mode === 'exclusive' ? 'write' : 'read'
  if (native.lockFile(fd, { type, ...LOCK })) return withContent(fd, () => readNote(fd).turn)
  throw busy(resource, await withContent(fd, () => readNote(fd).holders.filter(({ pid }) => pid !== owner.pid)))
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
    const holders = await withContent(fd, () => readNote(fd).holders.filter(isAlive))
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

function readNote(fd: number): LockNote {
  try {
    // read by a descriptor of its own position
    const [line = ''] = readFileSync(`/proc/self/fd/${fd}`, 'utf8').split('\n')
    const found = JSON.parse(line) as Partial<LockNote>
    const { last, turn, holders } = found
    return {
      ...(typeof last === 'string' && { last }),
      turn: Number.isSafeInteger(turn) ? Number(turn) : 0,
      holders: Array.isArray(holders) ? holders : [],
    }
  } catch {
    return { turn: 0, holders: [] } // empty, or from a process that died while it wrote
  }
}

function writeNote(fd: number, note: LockNote): void {
  ftruncateSync(fd, writeSync(fd, `${JSON.stringify(note)}\n`, 0))
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
