/** The lock protocol of virtlockd: its numbers, and the arguments of its calls, none of which answers anything. */
import { XdrWriter } from '../util/xdr.js'
import type { LockOwner } from './lock-driver.js'

export const LOCK_PROGRAM = 0xea7beef
export const LOCK_VERSION = 1
const MAX_STRING = 65_536

/** The order is that of the numbers on the wire, which begin with 1. */
export const lockProcedures = [
  'register',
  'restrict',
  'new',
  'createResource',
  'deleteResource',
  'acquireResource',
  'releaseResource',
  'createLockspace',
] as const
export type LockProcedure = (typeof lockProcedures)[number]

export const acquireFlags = { shared: 1, autocreate: 2 } as const

/** A lock of virtlockd. In the lockspace '' the name is the path of the file that is locked itself. */
export interface LockspaceResource {
  lockspace: string
  name: string
}

export function registerArgs(owner: LockOwner): Buffer {
  const writer = new XdrWriter()
    .opaque(Buffer.from(owner.uuid.replaceAll('-', ''), 'hex'))
    .string(owner.name, MAX_STRING)
  // 0 is "not registered" to the daemon
  return writer.uint(Math.max(1, owner.id)).uint(owner.pid).uint(0).finish()
}

export function restrictArgs(): Buffer {
  return new XdrWriter().uint(0).finish()
}

export function resourceArgs({ lockspace, name }: LockspaceResource, flags = 0): Buffer {
  return new XdrWriter().string(lockspace, MAX_STRING).string(name, MAX_STRING).uint(flags).finish()
}

export function lockspaceArgs(path: string): Buffer {
  return new XdrWriter().string(path, MAX_STRING).finish()
}
