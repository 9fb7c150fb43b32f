/** What the source of a migration does once the guest has gone: serves its disks, lets go of it, or has it back. */
import * as c from '../constants.gen.js'
import { failFrom, messageOf } from '../error.js'
import type { ChannelRequest } from '../tunnel/requests.js'
import type { Tunnel } from '../tunnel/tunnel.js'
import { deleteConfig } from './config.js'
import { emitLifecycle } from './emit.js'
import { setState } from './events.js'
import { storageOf } from './migration-flags.js'
import type { Outgoing } from './outgoing.js'
import { requireOutgoing } from './outgoing.js'
import { sharedDisks, sourceStorage } from './migration-disks.js'
import { MigrationLink, SERVICE, UnknownThereError } from '../migration/link.js'
import { stopServing } from './migration-serve.js'
import { terminate } from './process.js'
import type { Qemu } from './qemu.js'
import type { Live, Vm } from './vm.js'
import { takeMemory } from './migration-commands.js'
import { tellReturned } from './migration-return.js'

const fail = failFrom('VIR_FROM_QEMU')

export function linkFor(qemu: Qemu, outgoing: Outgoing, tunnel?: Tunnel): MigrationLink {
  const { id, key, uri = '', name } = outgoing.record
  return new MigrationLink({
    ...{ id, key, uri },
    ...(tunnel && { tunnel }),
    onOpen: (request) => routeOutgoing(qemu, request),
    onRequest: (method, params) => answer(qemu, outgoing, method, params),
    onRestored: () => qemu.inBackground(`the migration of domain '${name}'`, () => resolve(qemu, outgoing)),
    warn: (text) => qemu.warn(`migration of domain '${name}': ${text}`),
  })
}

/** A channel that a destination opens: it reads a disk. */
export async function routeOutgoing(qemu: Qemu, request: ChannelRequest): Promise<void> {
  const { id, key } = request.params
  const outgoing = typeof id === 'string' ? qemu.outgoing.get(id) : undefined
  if (outgoing === undefined || outgoing.record.key !== key) request.refuse('there is no such migration here')
  else if (request.service === SERVICE.disks) await sourceStorage(qemu, outgoing, outgoing.vm.live).serve(request)
  // it comes back
  else if (request.service === SERVICE.memory)
    await takeMemory(request, outgoing.record.phase === 'returning' ? outgoing.vm.live : undefined)
  else request.refuse(`a migration has no service '${request.service}'`)
}

export async function comeBack(qemu: Qemu, { vm }: Outgoing, live: Live): Promise<void> {
  if (!(await live.monitor.queryStatus()).running) await live.monitor.cont()
  setState(qemu, vm, live, c.VIR_DOMAIN_RUNNING, c.VIR_DOMAIN_RUNNING_MIGRATION_CANCELED)
}

/** Under the domain's job: the guest runs at the destination, or (`isCancelled`) is to go on here. */
export async function confirm(qemu: Qemu, vm: Vm, isCancelled: boolean): Promise<void> {
  const outgoing = requireOutgoing(qemu, vm)
  const { record } = outgoing
  if (isCancelled) {
    if (record.phase === 'begun') outgoing.forget()
    else if (record.phase === 'switched') await resolveSwitched(qemu, outgoing, false)
    return
  }
  if (record.phase !== 'switched')
    throw fail('VIR_ERR_OPERATION_INVALID', `domain '${vm.name}' has not been migrated, it cannot be let go of`)
  await leave(qemu, outgoing)
}

/** The guest runs elsewhere: its QEMU ends, or serves its disks until they have gone over too. */
async function leave(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { vm } = outgoing
  if (storageOf(outgoing.record.flags) !== 'stream') {
    await letGo(qemu, outgoing)
    return
  }
  outgoing.enter('serving')
  const live = vm.live
  if (live === undefined) return
  setState(qemu, vm, live, c.VIR_DOMAIN_PAUSED, c.VIR_DOMAIN_PAUSED_POSTCOPY)
  emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_SUSPENDED, c.VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY)
}

/** Nothing of the domain is needed here any more. */
export async function letGo(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { vm, record, stats } = outgoing
  const { live } = vm
  outgoing.enter('released')
  if (live !== undefined) {
    if (storageOf(record.flags) === 'shared') live.access.keepLabels(sharedDisks(live))
    live.exitCause = { reason: c.VIR_DOMAIN_SHUTOFF_MIGRATED, detail: c.VIR_DOMAIN_EVENT_STOPPED_MIGRATED }
    await terminate(live.process, live.ended, false)
  }
  await stopServing(qemu, outgoing)
  outgoing.forget()
  stats.complete()
  qemu.finishedJobs.set(vm.uuid, stats.now)
  const { operation } = stats.now
  qemu.host.emit({ kind: 'job-completed', domain: vm.ref, operation, stats: stats.now })
  if ((record.flags & c.VIR_MIGRATE_UNDEFINE_SOURCE) !== 0 && vm.config !== undefined) {
    deleteConfig(qemu.root, vm.name)
    vm.config = undefined
    qemu.remove(vm)
    emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_UNDEFINED, c.VIR_DOMAIN_EVENT_UNDEFINED_REMOVED)
  }
}

/** What the destination's driver asks or tells. */
function answer(qemu: Qemu, outgoing: Outgoing, method: string, params: unknown): unknown {
  const { vm, record } = outgoing
  switch (method) {
    case 'progress':
      outgoing.stats.takeDisks(params)
      return {}
    case 'return-closing':
      return closeBack(outgoing)
    case 'released':
      // not before the answer is out: it is the last thing that the link is for
      qemu.inBackground(`letting go of domain '${record.name}'`, () =>
        vm.jobs.run('migrate', () => released(qemu, outgoing), Infinity),
      )
      return {}
    default:
      throw fail('VIR_ERR_NO_SUPPORT', `the source of a migration knows no '${method}'`)
  }
}

/** The guest is about to run on these images again: nobody else writes them any more. */
async function closeBack({ vm, migrated }: Outgoing): Promise<object> {
  for (const { target } of migrated) await vm.live?.exports.unserveBack(target)
  return {}
}

async function released(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  if (!qemu.outgoing.has(outgoing.record.id)) return
  // the destination runs: whoever was to say so did not live to do it
  if (outgoing.record.phase === 'switched') outgoing.enter('serving')
  if (outgoing.record.phase === 'serving') await letGo(qemu, outgoing)
}

/** Of a migration that an earlier process left: the destination is looked for as long as that takes. */
export async function resume(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { link, record } = outgoing
  try {
    await link?.connect()
    await resolve(qemu, outgoing)
  } catch (error) {
    if (error instanceof UnknownThereError && record.phase === 'switched') await resolve(qemu, outgoing)
    else qemu.warn(`migration of domain '${record.name}': ${messageOf(error)}`)
  }
  link?.last()
}

/** The link is there again: if the two sides were cut off from each other in the middle, they find out where they are. */
async function resolve(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  await outgoing.vm.jobs.run(
    'migrate',
    async () => {
      const { record, link, vm } = outgoing
      if (record.phase === 'switched') await resolveSwitched(qemu, outgoing, true)
      else if (record.phase === 'serving') await link?.request('return-failed', {})
      else if (record.phase === 'returned' && vm.live !== undefined) await tellReturned(qemu, outgoing)
    },
    Infinity,
  )
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
    const answered = (await link.request('phase', {})) as { phase?: unknown }
    phase = answered.phase
    if (phase === 'loaded')
      phase = ((await link.request(forward ? 'finish' : 'cancel', { locks: outgoing.locks })) as { phase?: unknown })
        .phase
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

/** Under the domain's job: the guest never ran elsewhere, it goes on here. */
async function returnHome(qemu: Qemu, outgoing: Outgoing, live: Live): Promise<void> {
  await sourceStorage(qemu, outgoing, live).undo()
  if (outgoing.record.running) await comeBack(qemu, outgoing, live)
  outgoing.forget()
}
