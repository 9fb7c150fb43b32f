/** What the source of a migration does once the guest has gone: serves its disks, lets go of it, or has it back. */
import * as c from '../../constants.gen.js'
import { failFrom, messageOf } from '../../error.js'
import type { ChannelRequest } from '../../tunnel/requests.js'
import type { Tunnel } from '../../tunnel/tunnel.js'
import { emitLifecycle } from '../core/emit.js'
import { setState } from '../domain/events.js'
import { storageOf } from './flags.js'
import { goOnHere, keptNothing } from './go-on.js'
import { takeMemory } from './memory.js'
import type { Outgoing } from './outgoing.js'
import { requireOutgoing } from './outgoing.js'
import { sourceStorage } from './disks.js'
import { MigrationLink, SERVICE, UnknownThereError } from '../../migration/link.js'
import { serveAside } from './serve.js'
import type { MigrationRecord } from './record.js'
import type { Qemu } from '../core/qemu.js'
import type { Live, Vm } from '../core/vm.js'
import { letGo, takeRelease, tellReleased } from './release.js'
import { tellAbandoned } from './abandon.js'
import { tellReturned, tellStays } from './return.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms that a destination may take to load what it has got, and to let it run */
const FINISHING = 90_000

export function linkFor(qemu: Qemu, outgoing: Outgoing, tunnel?: Tunnel): MigrationLink {
  const { id, key, uri = '', name } = outgoing.record
  return new MigrationLink({
    ...{ id, key, uri },
    ...(tunnel && { tunnel }),
    onOpen: (request) => routeOutgoing(qemu, request),
    onRequest: (method, params) => answer(qemu, outgoing, method, params),
    onRestored: () => resolveLater(qemu, outgoing),
    onUnknown: () => qemu.inBackground(`the migration of domain '${name}'`, () => resolveUnknown(qemu, outgoing)),
    warn: (text) => qemu.warn(`migration of domain '${name}': ${text}`),
  })
}

/** A channel that a destination opens: it reads a disk. */
export async function routeOutgoing(qemu: Qemu, request: ChannelRequest): Promise<void> {
  const { id, key } = request.params
  const outgoing = typeof id === 'string' ? qemu.outgoing.get(id) : undefined
  if (outgoing === undefined || outgoing.record.key !== key) request.refuse('there is no such migration here')
  else if (isGivenUp(outgoing)) request.refuse('the destination was given up')
  else if (request.service === SERVICE.disks) await sourceStorage(qemu, outgoing, outgoing.vm.live).serve(request)
  // it comes back
  else if (request.service === SERVICE.memory)
    await takeMemory(request, outgoing.record.phase === 'returning' ? outgoing.vm.live : undefined, qemu.transports)
  else request.refuse(`a migration has no service '${request.service}'`)
}

const isGivenUp = ({ record: { phase } }: Outgoing): boolean => phase === 'abandoning' || phase === 'abandoned'

/** Under the domain's job: the guest runs at the destination, or (`isCancelled`) is to go on here. */
export async function confirm(qemu: Qemu, vm: Vm, isCancelled: boolean): Promise<void> {
  // the destination was quicker: it has told us that it has all; or it was called off by who noticed first
  if (qemu.outgoingOf(vm) === undefined && (isCancelled || vm.live === undefined)) return
  const outgoing = requireOutgoing(qemu, vm)
  const { record } = outgoing
  if (isCancelled) {
    if (record.phase === 'begun') outgoing.forget()
    else if (record.phase === 'switched') await resolveSwitched(qemu, outgoing, false)
    return
  }
  if (record.phase === 'serving') return
  if (record.phase !== 'switched')
    throw fail('VIR_ERR_OPERATION_INVALID', `domain '${vm.name}' has not been migrated, it cannot be let go of`)
  await leave(qemu, outgoing)
}

const postcopyReasons: readonly number[] = [c.VIR_DOMAIN_PAUSED_POSTCOPY, c.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED]

/** The guest runs elsewhere: its QEMU ends, or serves its disks until they have gone over too. */
async function leave(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { vm } = outgoing
  if (storageOf(outgoing.record.flags) !== 'stream' && outgoing.record.memoryFollows !== true) {
    await letGo(qemu, outgoing)
    return
  }
  outgoing.enter('serving')
  outgoing.memory?.serve()
  const live = vm.live
  if (live === undefined) return
  if (!postcopyReasons.includes(vm.state.reason)) {
    setState(qemu, vm, live, c.VIR_DOMAIN_PAUSED, c.VIR_DOMAIN_PAUSED_POSTCOPY)
    emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_SUSPENDED, c.VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY)
  }
  await serveAside(qemu, outgoing)
}

/** What the destination's driver asks or tells. */
function answer(qemu: Qemu, outgoing: Outgoing, method: string, params: unknown): unknown {
  switch (method) {
    case 'progress':
      outgoing.stats.takeDisks(params)
      return {}
    case 'write-back-over':
      outgoing.endWriteBack()
      return {}
    case 'memory-lost':
      outgoing.memory?.lost('its QEMU there has ended')
      return {}
    case 'return-closing':
      return closeBack(outgoing)
    case 'released':
      return takeRelease(qemu, outgoing)
    default:
      throw fail('VIR_ERR_NO_SUPPORT', `the source of a migration knows no '${method}'`)
  }
}

/** The guest is about to run on these images again: nobody else writes them any more. */
async function closeBack({ vm, migrated }: Outgoing): Promise<object> {
  for (const { target } of migrated) await vm.live?.exports.unserveBack(target)
  return {}
}

/** Of a migration that an earlier process left: the destination is looked for as long as that takes. */
export async function resume(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { link, record } = outgoing
  try {
    await link?.connect()
    await resolve(qemu, outgoing)
  } catch (error) {
    if (error instanceof UnknownThereError) await resolveUnknown(qemu, outgoing)
    else qemu.warn(`migration of domain '${record.name}': ${messageOf(error)}`)
  }
  if (qemu.outgoing.has(record.id)) link?.last()
}

export function resolveLater(qemu: Qemu, outgoing: Outgoing): void {
  qemu.inBackground(`the migration of domain '${outgoing.record.name}'`, () => resolve(qemu, outgoing))
}

/** The destination has nothing of it: where it had the last word, it has said it. */
async function resolveUnknown(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { phase } = outgoing.record
  if (phase === 'switched') await resolve(qemu, outgoing)
  else if (phase === 'serving') outgoing.memory?.lost('it knows nothing of it any more')
  else if (phase === 'returned' || outgoing.isOver) outgoing.forget()
}

/** The link is there again: if the two sides were cut off from each other in the middle, they find out where they are. */
async function resolve(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { record, vm } = outgoing
  await outgoing.underJob(async () => {
    if (record.phase === 'switched') await resolveSwitched(qemu, outgoing, true)
    else if (record.phase === 'serving') {
      outgoing.memory?.recover()
      await tellStays(qemu, outgoing)
    } else if (record.phase === 'returned' && vm.live !== undefined) await tellReturned(qemu, outgoing)
    else if (record.phase === 'abandoned') await tellAbandoned(qemu, outgoing)
    else if (record.phase === 'released') await tellReleased(qemu, outgoing)
  })
}

/**
 * Under the domain's job: neither guest runs as far as we know. The destination decides: if it has the guest it runs there
 * (when `forward`, or when it does already), else it goes on here. While it cannot be asked both wait.
 */
export async function resolveSwitched(qemu: Qemu, outgoing: Outgoing, forward: boolean): Promise<void> {
  const { vm, record, link } = outgoing
  const { live } = vm
  let phase: unknown
  try {
    if (link === undefined) throw fail('VIR_ERR_OPERATION_FAILED', 'there is no link')
    if (!link.isUp) await link.connect()
    const onward = forward || keptNothing(record)
    phase = await decide(link, record, onward ? () => sourceStorage(qemu, outgoing, live).switched() : undefined)
  } catch (error) {
    if (!(error instanceof UnknownThereError)) {
      link?.last()
      const text = `it is not known whether domain '${vm.name}' runs at '${record.peer}': ${messageOf(error)}; it waits here until that is found out`
      throw fail('VIR_ERR_OPERATION_FAILED', text, error)
    }
    phase = 'cancelled'
  }
  if (phase === 'streaming') await leave(qemu, outgoing)
  else if (live !== undefined) await returnHome(qemu, outgoing, live)
}

/** Whether the guest runs there ('streaming'), or never will. */
async function decide(
  link: MigrationLink,
  { locks }: MigrationRecord,
  prepare: (() => Promise<void>) | undefined,
): Promise<unknown> {
  const ask = async (method: string, params: object = {}, timeout?: number): Promise<unknown> =>
    ((await link.request(method, params, timeout)) as { phase?: unknown }).phase
  const phase = await ask('phase')
  if (phase === 'streaming') return phase
  if (prepare !== undefined) {
    try {
      await prepare()
      return await ask('finish', { locks }, FINISHING)
    } catch (error) {
      // it has to be known that it does not run there
      if (!link.isUp) throw error
    }
  }
  return ask('cancel')
}

/** Under the domain's job: the guest never ran elsewhere, it goes on here. */
async function returnHome(qemu: Qemu, outgoing: Outgoing, live: Live): Promise<void> {
  const { memory, record } = outgoing
  if (memory !== undefined && keptNothing(record)) {
    memory.lost(
      `'${record.peer}' does not have it any more, and what had gone over was given back at once (releaseRam)`,
    )
    return
  }
  await goOnHere(qemu, outgoing, live)
  outgoing.forget()
}
