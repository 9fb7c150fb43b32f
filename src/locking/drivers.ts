import { failFrom } from '../error.js'
import type { LockDriver } from './lock-driver.js'
import { ofdLocks } from './ofd.js'

const fail = failFrom('VIR_FROM_LOCKING')

export const lockDriverNames = ['ofd'] as const
export type LockDriverName = (typeof lockDriverNames)[number]

/** What each driver needs to know; those of other drivers are not looked at. */
export interface LockDriverOptions {
  /** 'ofd': absolute path of the directory with the lock files, shared by all who share images */
  directory?: string
}

/** A lock driver that comes with virstream. */
export function lockDriver(name: LockDriverName, options: LockDriverOptions = {}): LockDriver {
  const { directory } = options
  if (directory === undefined) throw fail('VIR_ERR_INVALID_ARG', `lock driver '${name}' needs a directory`)
  return ofdLocks({ directory })
}
