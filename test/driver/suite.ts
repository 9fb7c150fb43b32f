/** What every hypervisor driver has to do alike. It runs on each driver; none of it needs a guest that boots. */
import { describe, test } from 'node:test'
import { definitions, inspection, transients } from './suite-definitions.js'
import { lifecycle, savedStates, wrongCalls } from './suite-lifecycle.js'
import { commits } from './suite-commits.js'
import { resizes } from './suite-resizes.js'
import { streams } from './suite-streams.js'
import { updates } from './suite-updates.js'
import type { Each, Open } from './support.js'

/**
 * `inMemory`: a domain that was started by the suite has a guest, which goes down when it is asked to, and its disks have no
 * images.
 */
export function driverSuite(name: string, inMemory: boolean, open: Open): void {
  const each: Each = (sentence, body) => {
    test(sentence, async (t) => {
      const opened = await open(t)
      if (opened !== undefined) await body(opened, t)
    })
  }
  describe(`driver ${name}`, () => {
    definitions(each)
    lifecycle(each, inMemory)
    transients(each)
    savedStates(each)
    wrongCalls(each)
    streams(each)
    inspection(each)
    if (inMemory) return
    resizes(each)
    commits(each)
    updates(each)
  })
}
