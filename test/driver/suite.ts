/** What every hypervisor driver has to do alike. It runs on each driver; none of it needs a guest that boots. */
import { describe, test } from 'node:test'
import { definitions, inspection, transients } from './suite-definitions.js'
import { lifecycle, savedStates, wrongCalls } from './suite-lifecycle.js'
import { streams } from './suite-streams.js'
import type { Each, Open } from './support.js'

/** `guestReacts`: a domain that was started by the suite goes down when it is asked to, which takes a guest. */
export function driverSuite(name: string, guestReacts: boolean, open: Open): void {
  const each: Each = (sentence, body) => {
    test(sentence, async (t) => {
      const opened = await open(t)
      if (opened !== undefined) await body(opened, t)
    })
  }
  describe(`driver ${name}`, () => {
    definitions(each)
    lifecycle(each, guestReacts)
    transients(each)
    savedStates(each)
    wrongCalls(each)
    streams(each)
    inspection(each)
  })
}
