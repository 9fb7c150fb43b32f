/** What the destination of a migration does once the guest has come, or will not: lets it run, pulls its disks, or ends it. */
import { rmSync } from 'node:fs'
import type { DomainDef } from '../../conf/domain-def.js'
import { parseDomainXml } from '../../conf/parse.js'
import type { Incoming } from './incoming.js'
import * as c from '../../constants.gen.js'
import type { DomainRef } from '../../driver.js'
import { failFrom } from '../../error.js'
import type { LockCookie } from '../../locking/lock-driver.js'
import { deleteConfig, saveConfig } from '../core/config.js'
import { emitLifecycle } from '../core/emit.js'
import { nameOverlays, removeFinals } from './final.js'
import { storageOf } from './flags.js'
import { sharedDisks } from './disks.js'
import { leaveToHeaders, remainsOf } from './guestless.js'
import { NOTICE } from './memory.js'
import { type MigrationRecord } from './record.js'
import { beginStreams, closeDisks, disksLeft } from './target-disks.js'
import { beginWriteBack } from './write-back.js'
import { killHard } from '../monitor/process.js'
import type { Qemu } from '../core/qemu.js'
import { letRun } from '../core/standing-still.js'
import { saveStatus } from '../core/status.js'
import { type Live } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms from the source's last word about memory to the end of it here */
const LOADING = 60_000

/** Finish: the guest runs here. */
export async function finish(qemu: Qemu, incoming: Incoming, locks?: LockCookie): Promise<DomainRef> {
  const { vm, record } = incoming
  if (record.phase === 'streaming') return vm.ref
  await incoming.whenLoaded(LOADING)
  await vm.jobs.run('migrate', async () => {
    const live = vm.requireLive()
    await closeDisks(incoming, live)
    if (isStreaming(record)) return
    if (record.phase !== 'loaded')
      throw fail('VIR_ERR_OPERATION_FAILED', `the state of domain '${vm.name}' has not arrived`)
    await beginWriteBack(qemu, incoming, live)
    if (storageOf(record.flags) === 'shared') await live.access.setDiskLocks(sharedDisks(live), 'held', locks)
    // who called it off was told that it would not run here
    if (incoming.cancelling !== undefined) throw fail('VIR_ERR_OPERATION_FAILED', 'it was called off meanwhile')
    if ((record.flags & c.VIR_MIGRATE_PERSIST_DEST) !== 0)
      incoming.unlessItMustCome(() => keepDefinition(qemu, incoming, live))
    if (storageOf(record.flags) === 'stream') record.def = remainsOf(live.def, record)
    incoming.enter('streaming')
    vm.remains = record.def
    await run(qemu, incoming, live)
  })
  // what the guest waits for in its memory goes before what it may never read of its disks
  if (record.memoryFollows !== true) await followDisks(qemu, incoming)
  return vm.ref
}

/** All of its memory is here. */
export async function followDisks(qemu: Qemu, incoming: Incoming): Promise<void> {
  await beginStreams(qemu, incoming)
  // without a disk that follows the source is told at once
  incoming.streamEnded()
}

const isReleasing = ({ releasing }: Incoming): boolean => releasing
const isStreaming = ({ phase }: MigrationRecord): boolean => phase === 'streaming'

/** Under the domain's job; the phase that it is in is written down. */
export async function run(qemu: Qemu, incoming: Incoming, live: Live): Promise<void> {
  const { vm, record } = incoming
  const paused = (record.flags & c.VIR_MIGRATE_PAUSED) !== 0 || !record.running
  // a guest that powers down before its disks are here leaves a QEMU that goes on pulling
  emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_STARTED, c.VIR_DOMAIN_EVENT_STARTED_MIGRATED)
  if (paused) {
    vm.state = { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_USER }
    emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_SUSPENDED, c.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED)
  } else {
    const [reason, detail] =
      record.memoryFollows === true
        ? [c.VIR_DOMAIN_RUNNING_POSTCOPY, c.VIR_DOMAIN_EVENT_RESUMED_POSTCOPY]
        : [c.VIR_DOMAIN_RUNNING_MIGRATED, c.VIR_DOMAIN_EVENT_RESUMED_MIGRATED]
    vm.state = { state: c.VIR_DOMAIN_RUNNING, reason }
    await letRun(live)
    emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_RESUMED, detail)
  }
  saveStatus(vm, live)
}

function keepDefinition(qemu: Qemu, { vm, record }: Incoming, live: Live): void {
  const def = record.persistentXml === undefined ? structuredClone(live.def) : parseDomainXml(record.persistentXml)
  def.name = vm.name
  if (record.params.persistXML === undefined) placeDisks(def, live.def, record)
  nameOverlays(def, record)
  if (storageOf(record.flags) === 'stream') leaveToHeaders(def, record)
  const known = vm.config !== undefined
  record.defined = !known
  saveConfig(qemu.root, def)
  vm.config = def
  const detail = known ? c.VIR_DOMAIN_EVENT_DEFINED_UPDATED : c.VIR_DOMAIN_EVENT_DEFINED_ADDED
  emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_DEFINED, detail)
}

/** A definition that comes from the source names the places that disks have there. */
function placeDisks(def: DomainDef, here: DomainDef, { disks }: MigrationRecord): void {
  for (const { disk: target } of disks) {
    const [disk, moved] = [def, here].map((each) => each.disks.find((candidate) => candidate.target === target))
    if (disk !== undefined && moved?.source !== undefined) disk.source = structuredClone(moved.source)
  }
}

/** The guest will not come: nothing of it remains here. */
export function cancel(qemu: Qemu, incoming: Incoming, why: string): Promise<void> {
  const { record } = incoming
  if (record.phase === 'streaming') return Promise.resolve()
  // whoever comes second waits for the first one
  return (incoming.cancelling ??= end(qemu, incoming, why))
}

async function end(qemu: Qemu, incoming: Incoming, why: string): Promise<void> {
  const { vm, record } = incoming
  incoming.reason ||= why
  if (vm.live !== undefined) await endWaiting(vm.live)
  undefineMade(qemu, incoming)
  removeMade(record)
  await incoming.forget()
  qemu.forgetIfNothing(vm)
}

/** A QEMU that waits for a guest which will not come. */
export async function endWaiting(live: Live): Promise<void> {
  live.exitCause = { reason: c.VIR_DOMAIN_SHUTOFF_FAILED, detail: c.VIR_DOMAIN_EVENT_STOPPED_FAILED }
  killHard(live.process)
  await live.ended
}

/** Where the disks are, for those who ask at the source. */
export async function tellProgress({ vm, record, messages, stats }: Incoming): Promise<void> {
  if (record.phase !== 'streaming' || messages === undefined) return
  const disks = (vm.host?.blockJobs.all ?? []).map(({ record: { disk }, offset, size }) => ({ disk, offset, size }))
  if (disks.length === 0) return
  stats.takeDisks({ disks })
  await messages.request('progress', { disks: stats.now.disks }, { timeout: 5_000 })
}

/** A stream of this domain ended, or its source is back: when no disk needs the source any more it may go. */
export async function releaseWhenDone(qemu: Qemu, incoming: Incoming): Promise<void> {
  const { record, messages } = incoming
  if (record.phase !== 'streaming' || messages === undefined || incoming.releasing) return
  if (record.memoryFollows === true && incoming.vm.live !== undefined) return
  if ((await disksLeft(incoming)).length > 0) return
  // while that was looked at the guest may have been wanted back
  if (!isStreaming(record) || isReleasing(incoming)) return
  incoming.releasing = true
  try {
    await messages.request('released', {}, { timeout: 30_000 })
  } finally {
    incoming.releasing = false
  }
  await done(qemu, incoming)
}

/** 'let-go': the source has ended its part. */
export async function letGoOf(qemu: Qemu, incoming: Incoming): Promise<void> {
  // its QEMU has heard that all memory is here: ours is about to say so
  await incoming.whenMemoryFollowed(NOTICE)
  if (!isStreaming(incoming.record) || (await disksLeft(incoming)).length > 0)
    throw fail('VIR_ERR_OPERATION_INVALID', `domain '${incoming.record.name}' still needs its source`)
  await done(qemu, incoming)
}

/** Nothing of it is needed from its source any more. */
async function done(qemu: Qemu, incoming: Incoming): Promise<void> {
  const { vm, stats } = incoming
  if (!qemu.incoming.has(incoming.record.id)) return
  stats.complete()
  qemu.finishedJobs.set(vm.uuid, stats.now)
  removeFinals(incoming.record, false)
  await incoming.forget()
  vm.remains = undefined
  qemu.forgetIfNothing(vm)
  const { operation } = stats.now
  qemu.host.emit({ kind: 'job-completed', domain: vm.ref, operation, stats: stats.now })
}
/** The definition that was made for a guest that will not come, or has gone again. */
export function undefineMade(qemu: Qemu, { vm, record }: Incoming): void {
  if (record.defined !== true || vm.config === undefined) return
  deleteConfig(qemu.root, vm.name)
  vm.config = undefined
}

/** The images that were made for a guest that will not come. */
export function removeMade(record: MigrationRecord): void {
  for (const path of record.made ?? []) rmSync(path, { force: true })
  removeFinals(record, true)
}
