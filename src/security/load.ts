import type { DacOptions } from './dac.js'
import type { SecurityDriverName } from './drivers.js'
import type { SecurityDriver } from './security-driver.js'
import type { SelinuxOptions } from './selinux.js'

export type SecurityDriverOptions = DacOptions & SelinuxOptions

/**
 * A security driver that comes with virstream ('dac', 'selinux', 'apparmor'), for `OpenOptions.security`. Loaded when it is
 * used, since it needs the native addon.
 */
export async function securityDriver(
  name: SecurityDriverName,
  options: SecurityDriverOptions = {},
): Promise<SecurityDriver> {
  return (await import('./drivers.js')).securityDriver(name, options)
}
