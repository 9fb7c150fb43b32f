import { apparmorDriver } from './apparmor.js'
import { dacDriver, type DacOptions } from './dac.js'
import type { SecurityDriver } from './security-driver.js'
import { selinuxDriver, type SelinuxOptions } from './selinux.js'

/** The drivers that come with virstream. */
export const securityDriverNames = ['dac', 'selinux', 'apparmor'] as const
export type SecurityDriverName = (typeof securityDriverNames)[number]

/** A driver that comes with virstream, by its name. */
export function securityDriver(name: SecurityDriverName, options: DacOptions & SelinuxOptions): SecurityDriver {
  switch (name) {
    case 'dac':
      return dacDriver(options)
    case 'selinux':
      return selinuxDriver(options)
    case 'apparmor':
      return apparmorDriver()
  }
}
