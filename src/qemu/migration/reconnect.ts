/** Migrations that an earlier process left: what it began is gone on with or undone, by how far it was. */
import type { DomainDef } from '../../conf/domain-def.js'
import * as c from '../../constants.gen.js'
import { messageOf } from '../../error.js'
import { setState } from '../domain/events.js'
import { applyFinals } from '../streams/final-image.js'
import { MigrationCommands, type MigrationInfo } from '../monitor/migration-commands.js'
import { storageOf } from './flags.js'
import { sourceStorage } from './disks.js'
import { closeListener, listenForMigrations } from './listener.js'
import { loadRecords, type MigrationRecord } from './record.js'
import { serveAgainLater, serveAside } from './serve.js'
import { beginStreams, openRelay } from './target-disks.js'
import type { Qemu } from '../core/qemu.js'
import { letRun } from '../core/standing-still.js'
import { type Live, Vm } from '../core/vm.js'
import { linkFor, resume } from './leave.js'
import { letGo } from './release.js'
import { Outgoing } from './outgoing.js'
import { Incoming } from './incoming.js'
import { settleAbandoned } from './abandoned.js'
import { cancel, run } from './arrive.js'
import { letReach } from './reach.js'
import { finishAbandoning } from './abandon.js'
import { runAgain } from './return.js'
import { FollowingMemory, guestHasGone } from './postcopy.js'
import { watchRest } from './postcopy-target.js'
import { MigrationWatch } from './watch.js'

/** Before QEMUs are taken over: those that read from a source find their way to it again. */
export async function reopenRelays(qemu: Qemu): Promise<void> {
  for (const record of loadRecords(qemu.root, (text) => qemu.warn(text))) {
    const vm = qemu.find(record.uuid) ?? new Vm(record.name, record.uuid)
    if (record.role === 'source') {
      const outgoing = new Outgoing(qemu, vm, record)
      qemu.outgoing.set(record.id, outgoing)
      outgoing.keepDomain()
      continue
    }
    if (record.def !== undefined && record.phase !== 'abandoned') {
      vm.remains = record.def
      qemu.add(vm)
    }
    const incoming = new Incoming(qemu, vm, record)
    applyFinals(qemu, incoming)
    qemu.incoming.set(record.id, incoming)
    if (record.phase === 'abandoned')
      await incoming.refuseReads().catch((error: unknown) => qemu.warn(messageOf(error)))
    else if (record.def !== undefined) incoming.relay = await relayAgain(qemu, incoming, record.def)
  }
}

function relayAgain(qemu: Qemu, incoming: Incoming, def: DomainDef): ReturnType<typeof openRelay> {
  return openRelay(qemu, incoming, def).catch((error: unknown) => {
    qemu.warn(messageOf(error))
    return undefined
  })
}

/** After QEMUs have been taken over. */
export async function reconnectMigrations(qemu: Qemu): Promise<void> {
  const attempt = async (name: string, work: () => Promise<void>): Promise<void> =>
    work().catch((error: unknown) =>
      qemu.warn(`the migration of domain '${name}' is left as it is: ${messageOf(error)}`),
    )
  for (const incoming of [...qemu.incoming.values()])
    await attempt(incoming.record.name, () => reconnectIncoming(qemu, rebound(qemu, incoming)))
  for (const outgoing of [...qemu.outgoing.values()])
    await attempt(outgoing.record.name, () => reconnectOutgoing(qemu, rebound(qemu, outgoing)))
  const waiting = [...qemu.incoming.values()].length > 0
  if (waiting && qemu.host.tunnels !== true) await listenForMigrations(qemu)
}

/** A transient domain is known only once its QEMU was taken over. */
function rebound<T extends { vm: Vm }>(qemu: Qemu, migration: T & { record: MigrationRecord }): T {
  const vm = qemu.find(migration.record.uuid)
  if (vm !== undefined) migration.vm = vm
  return migration
}

async function reconnectIncoming(qemu: Qemu, incoming: Incoming): Promise<void> {
  const { record, vm } = incoming
  const { live } = vm
  // one that waits to be let run has read nothing yet
  if (record.phase === 'loaded' && live !== undefined) incoming.relay = await relayAgain(qemu, incoming, live.def)
  await reopenWay(qemu, incoming)
  await whenItAnswers(qemu, incoming, async () => {
    if (vm.live === live && qemu.incoming.has(record.id)) await goOn(qemu, incoming)
  })
}

/** At once, unless its QEMU stands still: nobody knows how far it is before it answers. */
async function whenItAnswers(
  qemu: Qemu,
  { record, vm }: Incoming | Outgoing,
  work: () => Promise<void>,
): Promise<void> {
  const { catchingUp } = vm.live ?? {}
  if (catchingUp === undefined) return work()
  qemu.inBackground(`the migration of domain '${record.name}'`, async () => {
    await catchingUp.catch((error: unknown) => qemu.warn(messageOf(error)))
    if (!qemu.closing) await work()
  })
}

async function goOn(qemu: Qemu, incoming: Incoming): Promise<void> {
  const { record, vm } = incoming
  const { live } = vm
  if (record.phase === 'abandoned') {
    await vm.jobs.run('migrate', () => settleAbandoned(qemu, incoming))
    return
  }
  // while it waits for its memory a QEMU is one of a start that was broken off, and has been ended, but for a moment
  if (record.phase === 'incoming' || (record.phase === 'loaded' && live === undefined)) {
    await cancel(qemu, incoming, 'the process that waited for it ended')
    return
  }
  incoming.waitForSource()
  if (record.memoryFollows === true && live !== undefined) watchRest(qemu, incoming, live)
  if (record.phase !== 'streaming') return
  // the process that was to let it run died just before
  const { state, reason } = vm.state
  if (live !== undefined && state === c.VIR_DOMAIN_PAUSED && reason === c.VIR_DOMAIN_PAUSED_MIGRATION)
    await vm.jobs.run('migrate', () => run(qemu, incoming, live))
  // its disks when all of its memory is here
  if (record.memoryFollows === true && live !== undefined) return
  if (record.memoryFollows === true && storageOf(record.flags) !== 'stream') await incoming.forget()
  else await beginStreams(qemu, incoming)
}

/** Memory follows the guest still, by what QEMU says. */
function followLeft(qemu: Qemu, outgoing: Outgoing, live: Live, { status = 'none' }: MigrationInfo): void {
  const watch = new MigrationWatch(live)
  watch.now(status)
  outgoing.memory = new FollowingMemory(qemu, outgoing, live, watch)
  outgoing.stats.follow(new MigrationCommands(live.monitor))
}

/** The socket is another one by now. */
async function reopenWay(qemu: Qemu, { record, vm, relay }: Incoming): Promise<void> {
  const def = vm.live?.def ?? record.def
  if (def === undefined || relay === undefined) return
  await letReach(qemu, def, record.id, relay.path).catch((error: unknown) => qemu.warn(messageOf(error)))
}

async function reconnectOutgoing(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { record, vm } = outgoing
  if (record.phase === 'released') {
    outgoing.link = linkFor(qemu, outgoing)
    await vm.jobs.run('migrate', () => letGo(qemu, outgoing))
    return
  }
  await whenItAnswers(qemu, outgoing, async () => {
    if (qemu.outgoing.has(record.id)) await goOnLeaving(qemu, outgoing)
  })
}

async function goOnLeaving(qemu: Qemu, outgoing: Outgoing): Promise<void> {
  const { record, vm } = outgoing
  const { live } = vm
  const asks = live !== undefined && (record.phase === 'memory' || record.memoryFollows === true)
  const status = asks ? await new MigrationCommands(live.monitor).query() : {}
  if (record.memoryFollows === true && live !== undefined) followLeft(qemu, outgoing, live, status)
  if (record.phase === 'abandoning') await vm.jobs.run('migrate', () => finishAbandoning(qemu, outgoing))
  if (record.phase === 'memory' && !guestHasGone(status)) {
    if (live !== undefined) await vm.jobs.run('migrate', () => callOff(qemu, outgoing, live))
    outgoing.forget()
    return
  }
  if (record.phase === 'memory' && live !== undefined) {
    record.memoryFollows = status.status !== 'completed'
    outgoing.enterSwitched(live.def)
    if (record.memoryFollows) followLeft(qemu, outgoing, live, status)
  }
  if (record.phase === 'returning') outgoing.enter('serving')
  if (record.phase === 'returned' && live !== undefined && vm.state.state === c.VIR_DOMAIN_PAUSED)
    await vm.jobs.run('migrate', () => runAgain(qemu, outgoing, live))
  if (live === undefined && !outgoing.isOver)
    vm.state = { state: c.VIR_DOMAIN_SHUTOFF, reason: c.VIR_DOMAIN_SHUTOFF_MIGRATED }
  await vm.jobs.run('migrate', () => serveAside(qemu, outgoing))
  serveAgainLater(qemu, outgoing)
  outgoing.link = linkFor(qemu, outgoing)
  qemu.inBackground(`the migration of domain '${vm.name}'`, () => resume(qemu, outgoing))
}

/** Under the domain's job: the connection that its memory went over died with our process. */
async function callOff(qemu: Qemu, outgoing: Outgoing, live: Live): Promise<void> {
  await new MigrationCommands(live.monitor).cancel()
  await sourceStorage(qemu, outgoing, live).undo()
  if (!outgoing.record.running) return
  if (!(await live.monitor.queryStatus()).running) await letRun(live)
  setState(qemu, outgoing.vm, live, c.VIR_DOMAIN_RUNNING, c.VIR_DOMAIN_RUNNING_MIGRATION_CANCELED)
}

/** The connections end; what goes on goes on when the root is opened again. */
export async function closeMigrations(qemu: Qemu): Promise<void> {
  for (const { link, memory } of qemu.outgoing.values()) {
    memory?.close()
    link?.destroy()
  }
  for (const incoming of qemu.incoming.values()) await incoming.close()
  await closeListener(qemu)
}
