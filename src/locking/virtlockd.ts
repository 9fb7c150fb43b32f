/** The driver 'virtlockd': locks are kept by libvirt's lock daemon, so that libvirt's domains and ours respect each other. */
import { createHash } from 'node:crypto'
import { messageOf, VirError } from '../error.js'
import { processStartTime } from '../util/process-start-time.js'
import { Undo } from '../util/undo.js'
import type { LockDriver, LockOwner, LockResource } from './lock-driver.js'
import { busyImage } from './image-users.js'
import { VirtlockdClient } from './virtlockd-client.js'
import {
  acquireFlags,
  lockspaceArgs,
  type LockspaceResource,
  registerArgs,
  resourceArgs,
  restrictArgs,
} from './virtlockd-protocol.js'

interface VirtlockdData {
  /** of the owner's process */
  startTime: string
  names: LockspaceResource[]
}

export interface VirtlockdOptions {
  /** default: where libvirt looks for it */
  socket?: string
  /**
   * directory of lock files named by a hash of the image's path, `file_lockspace_dir` of libvirt's qemu-lockd.conf; absent, as
   * by libvirt's default: the images themselves are locked. Must be what libvirtd has, or the two do not see each other
   */
  fileLockspace?: string
}

/**
 * The connection that QEMU has from its birth on makes it the owner: virtlockd frees all of its locks when the connection ends,
 * and tells owners by the pid that connected. Whatever else is said about its locks comes over connections of ours.
 */
export function virtlockdLocks(options: VirtlockdOptions = {}): LockDriver {
  const { socket = defaultSocket(), fileLockspace } = options
  const namesOf = (resource: LockResource): LockspaceResource[] => lockNames(resource, fileLockspace)

  return {
    name: 'virtlockd',

    async probe() {
      try {
        using client = await VirtlockdClient.connect(socket)
        if (fileLockspace !== undefined) await client.call('createLockspace', lockspaceArgs(fileLockspace))
        return undefined
      } catch (error) {
        return messageOf(error)
      }
    },

    hold: () =>
      Promise.resolve({
        connect: socket,
        async attach(owner, connection) {
          if (connection === undefined) throw new Error('the process did not connect')
          using client = VirtlockdClient.over(connection)
          await client.call('register', registerArgs(owner))
          // so that QEMU can do nothing with it
          await client.call('restrict', restrictArgs())
        },
        close: () => undefined,
      }),

    async acquire(owner, resources) {
      const wanted = resources.filter(({ mode }) => mode !== 'read-only')
      if (wanted.length === 0) return { owner, resources }
      using client = await clientFor(socket, owner)
      await using undo = new Undo()
      for (const resource of wanted)
        for (const name of namesOf(resource)) {
          await acquireOne(client, resource, name, fileLockspace !== undefined)
          undo.add(() => client.call('releaseResource', resourceArgs(name)))
        }
      undo.commit()
      const data: VirtlockdData = { startTime: processStartTime(owner.pid) ?? '', names: wanted.flatMap(namesOf) }
      return { owner, resources, data: JSON.stringify(data) }
    },

    async release({ owner, data }) {
      if (data === undefined) return undefined
      const { startTime, names } = JSON.parse(data) as VirtlockdData
      const now = processStartTime(owner.pid)
      // the pid is another's by now: whatever the daemon has for it is not ours
      if (now !== undefined && now !== startTime) return undefined
      // of a process that is gone as well: the daemon may not have noticed yet
      using client = await clientFor(socket, owner)
      for (const name of names) await releaseOne(client, name)
      return undefined
    },

    async inquire({ owner, resources, data }) {
      if (data === undefined) return true
      using client = await clientFor(socket, owner)
      for (const resource of resources)
        for (const name of namesOf(resource)) {
          if (await isFree(client, resource, name, fileLockspace !== undefined)) return false
        }
      return true
    },
  }
}

function defaultSocket(): string {
  if (process.geteuid?.() === 0) return '/run/libvirt/virtlockd-sock'
  const runtime = process.env['XDG_RUNTIME_DIR'] ?? `/run/user/${process.geteuid?.() ?? 0}`
  return `${runtime}/libvirt/virtlockd-sock`
}

/** libvirt takes the path as the definition spells it; another definition may spell it in full. */
function lockNames({ path, alias }: LockResource, fileLockspace: string | undefined): LockspaceResource[] {
  const paths = alias === undefined ? [path] : [path, alias]
  if (fileLockspace === undefined) return paths.map((name) => ({ lockspace: '', name }))
  const hash = (text: string): string => createHash('sha256').update(text).digest('hex')
  return paths.map((name) => ({ lockspace: fileLockspace, name: hash(name) }))
}

/** A connection that speaks for `owner`, without being what its locks hang on. */
async function clientFor(socket: string, owner: LockOwner): Promise<VirtlockdClient> {
  const client = await VirtlockdClient.connect(socket)
  try {
    await client.call('register', registerArgs(owner))
    return client
  } catch (error) {
    client[Symbol.dispose]()
    throw error
  }
}

const isBusy = (error: unknown): boolean => error instanceof VirError && error.code === 'VIR_ERR_RESOURCE_BUSY'

async function acquireOne(
  client: VirtlockdClient,
  resource: LockResource,
  name: LockspaceResource,
  indirect: boolean,
): Promise<void> {
  const flags = (resource.mode === 'shared' ? acquireFlags.shared : 0) | (indirect ? acquireFlags.autocreate : 0)
  try {
    await client.call('acquireResource', resourceArgs(name, flags))
  } catch (error) {
    throw isBusy(error) ? busyImage(resource, error) : error
  }
}

/** Whoever has died meanwhile does not have it any more, and another may have it. */
async function releaseOne(client: VirtlockdClient, name: LockspaceResource): Promise<void> {
  try {
    await client.call('releaseResource', resourceArgs(name))
  } catch (error) {
    const gone = isBusy(error) || /owner \d+ does not hold/.test(messageOf(error))
    if (!gone) throw error
  }
}

/** The daemon cannot be asked, only be asked for the lock: who gets it had lost it. */
async function isFree(
  client: VirtlockdClient,
  resource: LockResource,
  name: LockspaceResource,
  indirect: boolean,
): Promise<boolean> {
  if (resource.mode === 'read-only') return false
  try {
    await client.call('acquireResource', resourceArgs(name, indirect ? acquireFlags.autocreate : 0))
  } catch (error) {
    if (isBusy(error)) return false
    throw error
  }
  await releaseOne(client, name)
  return true
}
