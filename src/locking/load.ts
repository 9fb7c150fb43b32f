import type { LockDriverName, LockDriverOptions } from './drivers.js'
import type { LockDriver } from './lock-driver.js'

/**
 * A lock driver that comes with virstream, for `OpenOptions.lockManager`. Loaded when it is used, since it needs the native
 * addon.
 */
export async function lockDriver(name: LockDriverName, options: LockDriverOptions = {}): Promise<LockDriver> {
  return (await import('./drivers.js')).lockDriver(name, options)
}
