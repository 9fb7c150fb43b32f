/** Locks can get lost while a domain runs: they are asked for again and again, and what has none must not write. */
import { VIR_DOMAIN_PAUSED_IOERROR, VIR_DOMAIN_RUNNING } from '../../constants.gen.js'
import { messageOf, VirError } from '../../error.js'
import { killHard } from '../monitor/process.js'
import type { Qemu } from '../core/qemu.js'
import type { StreamHost, Vm } from '../core/vm.js'

/** ms */
const PERIOD = 5_000

/** From now on, until the function that it answers is called. */
export function watchLocks(qemu: Qemu): () => void {
  if (qemu.access.locks === undefined) return () => undefined
  let busy = false
  const timer = setInterval(() => {
    if (busy) return
    busy = true
    qemu.inBackground('looking after locks', () =>
      lookAfterAll(qemu).finally(() => {
        busy = false
      }),
    )
  }, PERIOD)
  timer.unref()
  return () => clearInterval(timer)
}

async function lookAfterAll(qemu: Qemu): Promise<void> {
  for (const vm of qemu.vms) {
    if (vm.host?.access.hasLocks !== true) continue
    // as a job: a migration changes locks, too. Who is in the middle of something long is asked the next time
    const look = vm.jobs.run('settle', async () => {
      if (vm.host !== undefined) await keepLocks(qemu, vm, vm.host)
    })
    await look.catch((error: unknown) => qemu.warn(`locks of domain '${vm.name}': ${messageOf(error)}`))
  }
}

/** As `acquire` of a lock driver says that another has an image, or had it meanwhile; otherwise it could not be asked. */
const isLost = (error: unknown): boolean =>
  error instanceof VirError && ['VIR_ERR_RESOURCE_BUSY', 'VIR_ERR_OPERATION_FAILED'].includes(error.code)

/**
 * What was lost is had again. A guest that has lost a lock to someone else must not write any more: it is paused, for its
 * owner to decide; streams without a guest fail.
 */
export async function keepLocks(qemu: Qemu, vm: Vm, host: StreamHost): Promise<void> {
  try {
    await host.access.confirmLocks()
  } catch (error) {
    const what = !isLost(error)
      ? 'a lock cannot be looked after now'
      : host.mode === 'full'
        ? 'a lock was lost and cannot be had again: the guest is paused'
        : 'a lock was lost and cannot be had again: streams end'
    qemu.host.logger.error({ err: error, domain: vm.name }, what)
    if (isLost(error) && vm.host === host) await stopWriting(vm, host)
  }
}

async function stopWriting(vm: Vm, host: StreamHost): Promise<void> {
  if (host.mode === 'offline') {
    killHard(host.process)
    await host.ended
  } else if (vm.state.state === VIR_DOMAIN_RUNNING) {
    host.pauseReason = VIR_DOMAIN_PAUSED_IOERROR
    await host.monitor.stop()
  }
}
