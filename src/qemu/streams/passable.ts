/** Requests to a base that is away: can QEMU's graph be changed below them? */
import type { DiskDef, StorageSource } from '../../conf/domain-def.js'
import { VIR_DOMAIN_PAUSED, VIR_DOMAIN_PAUSED_IOERROR } from '../../constants.gen.js'
import { isNbd, linkProblem } from '../blocks/link-watch.js'
import { isServed, StandIn } from './stand-in.js'
import type { StreamHost, Vm } from '../core/vm.js'

/** ms since a stream moved last: its base answers */
const LIVELY = 1_000

/**
 * QEMU waits for requests that are under way before it changes its graph, so they must have a way to end: `fresh` answers
 * those to `old` until the stand-in is disposed of. Undefined: they end by themselves.
 */
export async function makePassable(
  vm: Vm,
  host: StreamHost,
  { disk, old, fresh }: { disk: DiskDef; old: StorageSource; fresh: StorageSource },
): Promise<StandIn | undefined> {
  if (!isNbd(old)) return undefined
  const job = host.blockJobs.ofDisk(disk.target)
  const moves = job !== undefined && job.waiting === undefined && performance.now() - job.movedAt < LIVELY
  // a server may take one client only, and QEMU is that; one that is gone takes none
  const serves = moves ? (await linkProblem(old)) === undefined : await isServed(old)
  if (serves || failsAtOnce(vm, host, disk, old)) return undefined
  return StandIn.open(vm, host, old, fresh)
}

/** The base has been away for longer than its timeout: requests to it fail. */
function failsAtOnce(vm: Vm, host: StreamHost, disk: DiskDef, old: StorageSource & { type: 'network' }): boolean {
  if (old.reconnectDelay === undefined && disk.baseTimeout === undefined) return false
  const { state, reason } = vm.state
  const paused = state === VIR_DOMAIN_PAUSED && reason === VIR_DOMAIN_PAUSED_IOERROR
  return paused || host.blockJobs.ofDisk(disk.target)?.stuck === true
}
