/** A guest that was on its way goes on at the source after all. */
import * as c from '../../constants.gen.js'
import { setState } from '../domain/events.js'
import { sourceStorage } from './disks.js'
import type { MigrationRecord } from './record.js'
import type { Outgoing } from './outgoing.js'
import type { Qemu } from '../core/qemu.js'
import { letRun } from '../core/standing-still.js'
import type { Live } from '../core/vm.js'

/** The guest could not go on here, whoever wants it to. */
export const keptNothing = ({ memoryFollows, params }: MigrationRecord): boolean =>
  memoryFollows === true && params.releaseRam === true

/** Under the domain's job: the guest goes on here with what is here, its memory included. */
export async function goOnHere(qemu: Qemu, outgoing: Outgoing, live: Live): Promise<void> {
  const goesOn = (await outgoing.memory?.stop()) ?? true
  await sourceStorage(qemu, outgoing, live).undo()
  if (goesOn && outgoing.record.running) await comeBack(qemu, outgoing, live)
}

/** Under the domain's job: it runs again, unless an error had paused it. */
export async function comeBack(qemu: Qemu, { vm }: Outgoing, live: Live): Promise<void> {
  // it would only meet the same error again
  if (vm.state.state === c.VIR_DOMAIN_PAUSED && vm.state.reason === c.VIR_DOMAIN_PAUSED_IOERROR) return
  if (!(await live.monitor.queryStatus()).running) await letRun(live)
  setState(qemu, vm, live, c.VIR_DOMAIN_RUNNING, c.VIR_DOMAIN_RUNNING_MIGRATION_CANCELED)
}
