import { failFrom } from '../error.js'
import type { LockDriver } from './lock-driver.js'
import { ofdLocks } from './ofd.js'
import { virtlockdLocks } from './virtlockd.js'

const fail = failFrom('VIR_FROM_LOCKING')

export const lockDriverNames = ['ofd', 'virtlockd'] as const
export type LockDriverName = (typeof lockDriverNames)[number]

/** What each driver needs to know; those of other drivers are not looked at. */
export interface LockDriverOptions {
  /** 'ofd': absolute path of the directory with the lock files, shared by all who share images */
  directory?: string
  /** 'virtlockd': its socket; default: where libvirt looks for it */
  socket?: string
  /** 'virtlockd': `file_lockspace_dir` of libvirt's qemu-lockd.conf, where that is set */
  fileLockspace?: string
}

/** A lock driver that comes with virstream. */
export function lockDriver(name: LockDriverName, options: LockDriverOptions = {}): LockDriver {
  if (name === 'virtlockd') return virtlockdLocks(options)
  const { directory } = options
  if (directory === undefined) throw fail('VIR_ERR_INVALID_ARG', `lock driver '${name}' needs a directory`)
  return ofdLocks({ directory })
}
