import type { HypervisorDriver } from './driver.js'
import { testDriver } from './test-driver/driver.js'

/** Loaded when it is used, since it needs the native addon, which the others can do without. */
const qemuDriver: HypervisorDriver = {
  name: 'qemu',
  uriSchemes: ['qemu'],
  open: async (uri, host) => (await import('./qemu/driver.js')).qemuDriver.open(uri, host),
}

/** The drivers that come with virstream, in the order of asking. */
export const drivers: readonly HypervisorDriver[] = [qemuDriver, testDriver]
