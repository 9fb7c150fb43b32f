import type { HypervisorDriver } from './driver.js'

/** The drivers that come with virstream, in the order of asking. */
export const drivers: readonly HypervisorDriver[] = []
