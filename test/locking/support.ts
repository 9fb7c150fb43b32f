import { randomUUID } from 'node:crypto'
import { closeSync, openSync } from 'node:fs'
import type { TestContext } from 'node:test'
import type { Lease, LockDriver, LockOwner, LockResource } from '../../src/index.js'
import { native } from '../../src/native.js'

/** A process in the place of a QEMU, with the locks that it was started with. */
export interface Holding {
  owner: LockOwner
  leases: Lease[]
  /** kills it, and waits until it is gone */
  kill: () => Promise<void>
}

/** Starts a process as a domain is started: held, given its locks, let go. When a lock is refused, no process is left. */
export async function startHolding(
  t: TestContext,
  locks: LockDriver,
  name: string,
  resources: readonly LockResource[],
): Promise<Holding> {
  const holder = await locks.hold?.(resources)
  const idle = openSync('/dev/null', 'r+')
  const inherit = (holder?.inherit ?? []).map((fd) => ({ source: fd, target: fd }))
  const fds = [...[0, 1, 2].map((target) => ({ source: idle, target })), ...inherit]
  const plan = { file: '/bin/sleep', args: ['sleep', '600'], env: {}, fds }
  const { pid, connection } = native.spawnHeld(plan, holder?.connect)
  try {
    const owner = { name, uuid: randomUUID(), id: 1, pid }
    await holder?.attach?.(owner, connection)
    const leases: Lease[] = []
    for (const resource of resources) leases.push(await locks.acquire(owner, [resource], undefined, holder))
    native.resumeHeld(pid)
    return { owner, leases, kill: killer(t, pid) }
  } catch (error) {
    native.dropHeld(pid)
    throw error
  } finally {
    holder?.close()
    closeSync(idle)
  }
}

function killer(t: TestContext, pid: number): () => Promise<void> {
  let ended!: () => void
  const gone = new Promise<void>((resolve) => {
    ended = resolve
  })
  const watch = native.watchProcess(pid, () => ended())
  watch.unref()
  const kill = async (): Promise<void> => {
    watch.ref()
    watch.kill(9)
    await gone
  }
  t.after(kill)
  return kill
}

export const exclusive = (path: string): LockResource => ({ path, mode: 'exclusive' })
export const shared = (path: string): LockResource => ({ path, mode: 'shared' })
export const readOnly = (path: string): LockResource => ({ path, mode: 'read-only' })
