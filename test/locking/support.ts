import { randomUUID } from 'node:crypto'
import { closeSync, openSync } from 'node:fs'
import type { TestContext } from 'node:test'
import type { Lease, LockDriver, LockOwner, LockResource } from '../../src/index.js'
import { ofdLocks } from '../../src/locking/ofd.js'
import { sanlockLocks } from '../../src/locking/sanlock.js'
import { virtlockdLocks } from '../../src/locking/virtlockd.js'
import { native } from '../../src/native.js'
import type { Gate } from '../../src/qemu/monitor/process.js'
import { killerOf } from '../support/killer.js'
import { temporaryFolder } from '../support/images.js'
import { requires } from '../support/requires.js'
import { startSanlock } from '../support/sanlock.js'
import { startVirtlockd } from '../support/virtlockd.js'

/** A process in the place of a QEMU, with the locks that it was started with. */
export interface Holding {
  owner: LockOwner
  leases: Lease[]
  /** kills it, and waits until it is gone */
  kill: () => Promise<void>
  /** gives its locks back, and kills it */
  free: () => Promise<void>
}

/** A lock driver under test, with all that it needs; `start` skips the test and answers nothing where that is missing. */
export interface LockManager {
  name: string
  /** does it know whether another had a lock meanwhile? */
  remembers: boolean
  start: (t: TestContext) => Promise<LockDriver | undefined>
}

export const lockManagers: readonly LockManager[] = [
  {
    name: 'ofd',
    remembers: true,
    start: async (t) => ofdLocks({ directory: await temporaryFolder(t) }),
  },
  {
    name: 'virtlockd',
    remembers: false,
    start: async (t) => {
      if (!requires(t, 'program:virtlockd')) return undefined
      return virtlockdLocks({ socket: (await startVirtlockd(t)).socket })
    },
  },
  {
    name: 'sanlock',
    remembers: true,
    start: async (t) => {
      if (!requires(t, 'root', 'program:sanlock')) return undefined
      const { runDir, directory } = await startSanlock(t)
      const locks = sanlockLocks({ runDir, directory, hostId: 1, ioTimeout: 1 })
      const reason = await locks.probe?.()
      if (reason !== undefined) throw new Error(reason)
      return locks
    },
  },
]

/** Starts a process as a domain is started: held, given its locks, let go. When a lock is refused, no process is left. */
export async function startHolding(
  t: TestContext,
  locks: LockDriver,
  name: string,
  resources: readonly LockResource[],
): Promise<Holding> {
  const holder = await locks.hold?.(resources)
  let owner: LockOwner | undefined
  const leases: Lease[] = []
  const kill = await startGated(t, {
    inherit: holder?.inherit ?? [],
    connect: holder?.connect,
    async admit(pid, connection) {
      owner = { name, uuid: randomUUID(), id: 1, pid }
      await holder?.attach?.(owner, connection)
      for (const resource of resources) leases.push(await locks.acquire(owner, [resource], undefined, holder))
    },
    close: () => holder?.close(),
  })
  const free = async (): Promise<void> => {
    for (const lease of leases) await locks.release(lease)
    await kill()
  }
  if (owner === undefined) throw new Error('it was not admitted')
  return { owner, leases, kill, free }
}

/** Starts a process in the place of a QEMU through a gate; what it answers kills it. */
export async function startGated(t: TestContext, gate: Gate | undefined): Promise<() => Promise<void>> {
  const idle = openSync('/dev/null', 'r+')
  const inherit = (gate?.inherit ?? []).map((fd) => ({ source: fd, target: fd }))
  const fds = [...[0, 1, 2].map((target) => ({ source: idle, target })), ...inherit]
  const plan = { file: '/bin/sleep', args: ['sleep', '600'], env: {}, fds }
  const { pid, connection } = native.spawnHeld(plan, gate?.connect)
  try {
    await gate?.admit(pid, connection)
    native.resumeHeld(pid)
    return killerOf(t, pid)
  } catch (error) {
    native.dropHeld(pid)
    throw error
  } finally {
    gate?.close()
    closeSync(idle)
  }
}

export const exclusive = (path: string): LockResource => ({ path, mode: 'exclusive' })
export const shared = (path: string): LockResource => ({ path, mode: 'shared' })
export const readOnly = (path: string): LockResource => ({ path, mode: 'read-only' })
