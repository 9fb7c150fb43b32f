/**
 * Ends of mirrors that the guest's own writes go through (copy-mode 'write-blocking'). QEMU frees what such a job keeps of
 * requests as soon as it is cancelled or fails, and writes of the guest that are under way go on using it (block/mirror.c,
 * from 3.0 to 8.2 at least): QEMU crashes, and the guest is gone. So these jobs stop at errors instead of failing, and are
 * cancelled while the guest stands still; once they are, no write goes through them any more.
 */
import * as c from '../../constants.gen.js'
import { letRun } from './standing-still.js'
import { saveStatus } from './status.js'
import type { Live, Vm } from './vm.js'

/**
 * Under the domain's job: does `work` while the guest writes nothing. QEMU waits for the requests of a guest that runs, which
 * may wait for a host that is away: `check` throws then.
 */
export async function whileHalted(
  vm: Vm,
  live: Live,
  work: () => Promise<unknown>,
  check: () => void = () => undefined,
): Promise<void> {
  if (!(await live.monitor.queryStatus()).running) {
    await work()
    return
  }
  check()
  live.halted = true
  saveStatus(vm, live)
  try {
    live.pauseReason = c.VIR_DOMAIN_PAUSED_MIGRATION
    await live.monitor.stop()
    await work()
  } finally {
    delete live.pauseReason
    await goOn(vm, live)
  }
}

/** The guest was halted, by this process or by one that is no more, and runs again. */
export async function goOn(vm: Vm, live: Live): Promise<void> {
  await letRun(live)
  delete live.halted
  saveStatus(vm, live)
}
