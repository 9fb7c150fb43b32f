/**
 * A QEMU that stands still: it was stopped, or waits for its storage. Commands that it did not answer in time it does all the
 * same, in their order, as soon as it goes on.
 */
import { VirError } from '../../error.js'
import type { Live } from './vm.js'

type Asked = Pick<Live, 'monitor'>

/** Whether nobody waited for an answer any more. */
export function isTimeout(error: unknown): boolean {
  return error instanceof VirError && error.code === 'VIR_ERR_OPERATION_TIMEOUT'
}

/** Waits until QEMU answers again; false when nobody waits any more. */
export async function untilAnswers({ monitor }: Asked, isOver: () => boolean = () => false): Promise<boolean> {
  while (!isOver() && !monitor.isClosed) {
    const status = await monitor.queryStatus().catch(() => undefined)
    if (status !== undefined) return true
  }
  return false
}

/** Lets the guest run, however long its QEMU takes to do that. */
export async function letRun(live: Asked): Promise<void> {
  const { monitor } = live
  try {
    await monitor.cont()
  } catch (error) {
    if (!isTimeout(error) || !(await untilAnswers(live))) throw error
    if (!(await monitor.queryStatus()).running) await monitor.cont()
  }
}
