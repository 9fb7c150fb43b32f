/** The driver 'ofd': open-file-description locks on files in one directory, held by QEMU itself. */
import { closeSync, openSync, readlinkSync } from 'node:fs'
import { isAbsolute } from 'node:path'
import { fileURLToPath } from 'node:url'
import { errnoOf, failFrom, messageOf, wordsOf } from '../error.js'
import { native } from '../native.js'
import { makeFolder } from '../util/folders.js'
import { processStartTime } from '../util/process-start-time.js'
import { Undo } from '../util/undo.js'
import type { LockDriver, LockHolder, LockOwner, LockResource } from './lock-driver.js'
import { changeLock, dropLock, holdsLock, lockFilePath, openLockFile, takeLock } from './lock-file.js'

const fail = failFrom('VIR_FROM_LOCKING')
const HELPER = fileURLToPath(new URL('./ofd-helper.js', import.meta.url))
const SIGTERM = 15

export interface OfdOptions {
  /** absolute path; whoever shares images shares it: other roots, and other hosts by a file system with locks (NFS 4) */
  directory: string
}

/** Where a lease's lock is: in a process, by descriptors that it has under these numbers. */
interface OfdData {
  pid: number
  startTime: string
  files: { path: string; fd: number }[]
  /** the process has no other purpose than to hold them */
  helper: boolean
}

/**
 * A lock is a descriptor that QEMU inherits and knows nothing of: the kernel gives it back when QEMU ends, however that
 * is, and it does not depend on any other process. For images that a QEMU gets while it runs, a helper process holds
 * the descriptors as long as QEMU lives. Locks of `exclusive` resources are write locks, of `shared` ones read locks.
 */
export function ofdLocks({ directory }: OfdOptions): LockDriver {
  if (!isAbsolute(directory))
    throw fail('VIR_ERR_INVALID_ARG', `the directory of locks must be an absolute path, not '${directory}'`)
  const fileOf = (resource: LockResource): string => lockFilePath(directory, resource.path)
  /** of processes that are about to start: what we hold as well */
  const open = new Set<OfdHolder>()

  return {
    name: 'ofd',

    probe() {
      try {
        makeFolder(directory)
        return Promise.resolve(undefined)
      } catch (error) {
        return Promise.resolve(`cannot make '${directory}': ${wordsOf(error)}`)
      }
    },

    hold(resources) {
      const holder = new OfdHolder(writable(resources).map(fileOf), (closed) => open.delete(closed))
      open.add(holder)
      return Promise.resolve(holder)
    },

    async acquire(owner, resources, state, holder) {
      const wanted = writable(resources).map((resource) => ({ resource, path: fileOf(resource) }))
      if (wanted.length === 0) return { owner, resources }
      const turns = turnsOf(state)
      const files = wanted.map(({ resource, path }) => ({ resource, path, fd: inherited(holder, path) }))
      const taken = files.every(({ fd }) => fd !== undefined)
        ? await takeAll(owner, files as Taken[], turns)
        : await takeByHelper(owner, wanted, turns)
      return { owner, resources, data: JSON.stringify(taken.data), state: JSON.stringify(taken.turns) }
    },

    async convert(lease, mode) {
      const resources = lease.resources.map((resource) => ({ ...resource, mode }))
      if (lease.data === undefined) return { ...lease, resources }
      const { pid, files } = JSON.parse(lease.data) as OfdData
      const turns: number[] = []
      await using undo = new Undo()
      for (const { path, fd } of files) {
        const was = lease.resources.find((resource) => fileOf(resource) === path)
        if (was === undefined) continue
        const change = (resource: LockResource): Promise<number> =>
          withCopy(pid, fd, (copy) => changeLock(copy, lease.owner, resource))
        turns.push(await change({ ...was, mode }))
        undo.add(() => change(was))
      }
      undo.commit()
      return { ...lease, resources, state: JSON.stringify(turns) }
    },

    async release({ data: text }) {
      if (text === undefined) return undefined
      const data = JSON.parse(text) as OfdData
      if (processStartTime(data.pid) !== data.startTime) return undefined
      const ours = [...open].find((holder) => data.files.every(({ path, fd }) => holder.fds.get(path) === fd))
      if (data.helper) await endHelper(data)
      else for (const file of data.files) await dropIn(data.pid, file, ours !== undefined)
      return undefined
    },

    async inquire({ owner, data: text }) {
      if (text === undefined) return true
      for (const { path } of (JSON.parse(text) as OfdData).files) if (!(await holdsLock(path, owner))) return false
      return true
    },
  }
}

const writable = (resources: readonly LockResource[]): LockResource[] =>
  resources.filter(({ mode }) => mode !== 'read-only')

class OfdHolder implements LockHolder {
  readonly fds = new Map<string, number>()
  readonly #closed: (holder: OfdHolder) => void

  constructor(paths: readonly string[], closed: (holder: OfdHolder) => void) {
    this.#closed = closed
    try {
      for (const path of paths) if (!this.fds.has(path)) this.fds.set(path, openLockFile(path))
    } catch (error) {
      this.close()
      throw error
    }
  }

  get inherit(): number[] {
    return [...this.fds.values()]
  }

  close(): void {
    for (const fd of this.fds.values()) closeSync(fd)
    this.fds.clear()
    this.#closed(this)
  }
}

function inherited(holder: LockHolder | undefined, path: string): number | undefined {
  return holder instanceof OfdHolder ? holder.fds.get(path) : undefined
}

interface Taken {
  resource: LockResource
  path: string
  fd: number
}

/** By image, in their order: see `takeLock`. */
const turnsOf = (state: string | undefined): (number | undefined)[] =>
  state === undefined ? [] : (JSON.parse(state) as number[])

interface TakenFiles {
  data: OfdData
  turns: number[]
}

async function takeAll(
  owner: LockOwner,
  files: readonly Taken[],
  states: readonly (number | undefined)[],
): Promise<TakenFiles> {
  const { pid } = owner
  const turns: number[] = []
  await using undo = new Undo()
  for (const [nth, { resource, path, fd }] of files.entries()) {
    turns.push(await takeLock(fd, path, owner, resource, states[nth]))
    undo.add(() => dropLock(fd))
  }
  undo.commit()
  const named = files.map(({ path, fd }) => ({ path, fd }))
  return { data: { pid, startTime: startTimeOf(pid), files: named, helper: false }, turns }
}

/** A process that lives as long as the owner's, since nothing can be given to that one any more. */
async function takeByHelper(
  owner: LockOwner,
  wanted: readonly Omit<Taken, 'fd'>[],
  states: readonly (number | undefined)[],
): Promise<TakenFiles> {
  const fds: number[] = []
  const idle = openSync('/dev/null', 'r+')
  try {
    const files = wanted.map(({ resource, path }) => {
      const fd = openLockFile(path)
      fds.push(fd)
      return { resource, path, fd }
    })
    const { data, turns } = await takeAll(owner, files, states)
    const pid = native.spawn({
      file: process.execPath,
      args: ['virstream-lock', HELPER, String(owner.pid), data.startTime],
      env: {},
      cwd: '/',
      fds: [...[0, 1, 2].map((target) => ({ source: idle, target })), ...fds.map((fd) => ({ source: fd, target: fd }))],
      newSession: true,
    })
    // so that it is reaped when it ends
    native.watchProcess(pid, () => undefined).unref()
    return { data: { ...data, pid, startTime: startTimeOf(pid), helper: true }, turns }
  } finally {
    for (const fd of [idle, ...fds]) closeSync(fd)
  }
}

function startTimeOf(pid: number): string {
  const found = processStartTime(pid)
  if (found === undefined) throw fail('VIR_ERR_OPERATION_FAILED', `process ${pid}, which was to hold a lock, is gone`)
  return found
}

async function endHelper({ pid }: OfdData): Promise<void> {
  await new Promise<void>((resolve) => {
    try {
      const watch = native.watchProcess(pid, () => {
        watch.close()
        resolve()
      })
      watch.kill(SIGTERM)
    } catch {
      resolve() // it was gone
    }
  })
}

/** Unlocks in a process that goes on: through our own copy of the descriptor, or one that we take from it. */
async function dropIn(pid: number, { path, fd }: { path: string; fd: number }, ours: boolean): Promise<void> {
  if (ours) {
    dropLock(fd)
    return
  }
  try {
    await withCopy(pid, fd, (copy) => {
      if (readlinkSync(`/proc/self/fd/${copy}`) === path) dropLock(copy)
    })
  } catch (error) {
    if (['ESRCH', 'EBADF'].includes(errnoOf(error) ?? '')) return
    throw fail(
      'VIR_ERR_OPERATION_FAILED',
      `process ${pid} keeps its lock '${path}' until it ends: ${messageOf(error)}`,
      error,
    )
  }
}

/** Another process's descriptor, with its locks. */
async function withCopy<T>(pid: number, fd: number, work: (copy: number) => Promise<T> | T): Promise<T> {
  const copy = native.copyFd(pid, fd)
  try {
    return await work(copy)
  } finally {
    native.close(copy)
  }
}
