import { failFrom } from '../error.js'
import type { LockDriver } from './lock-driver.js'
import { ofdLocks } from './ofd.js'
import { sanlockLocks } from './sanlock.js'
import { virtlockdLocks } from './virtlockd.js'

const fail = failFrom('VIR_FROM_LOCKING')

export const lockDriverNames = ['ofd', 'virtlockd', 'sanlock'] as const
export type LockDriverName = (typeof lockDriverNames)[number]

/** What each driver needs to know; those of other drivers are not looked at. */
export interface LockDriverOptions {
  /** 'ofd', 'sanlock': absolute path of the directory with the lock files or leases, shared by all who share images */
  directory?: string
  /** 'virtlockd': its socket; default: where libvirt looks for it */
  socket?: string
  /** 'virtlockd': `file_lockspace_dir` of libvirt's qemu-lockd.conf, where that is set */
  fileLockspace?: string
  /** 'sanlock': number of this host among those that share the leases, 1 to 2000, as `host_id` of libvirt's qemu-sanlock.conf */
  hostId?: number
  /** 'sanlock': where its daemon's socket is; default: SANLOCK_RUN_DIR of the environment, or '/run/sanlock' */
  runDir?: string
  /** 'sanlock': seconds that its I/O may take; default: 10 */
  ioTimeout?: number
}

/** A lock driver that comes with virstream. */
export function lockDriver(name: LockDriverName, options: LockDriverOptions = {}): LockDriver {
  if (name === 'virtlockd') return virtlockdLocks(options)
  const { directory, hostId, runDir, ioTimeout } = options
  if (directory === undefined) throw fail('VIR_ERR_INVALID_ARG', `lock driver '${name}' needs a directory`)
  if (name === 'ofd') return ofdLocks({ directory })
  if (hostId === undefined)
    throw fail(
      'VIR_ERR_INVALID_ARG',
      `lock driver '${name}' needs the number of this host, 'hostId' (in etc/qemu.json 'sanlockHostId')`,
    )
  return sanlockLocks({ directory, hostId, ...(runDir && { runDir }), ...(ioTimeout && { ioTimeout }) })
}
