/** A domain leaves: begin and perform of a migration. */
import { setTimeout as delay } from 'node:timers/promises'
import { formatDomainXml } from '../../conf/format.js'
import * as c from '../../constants.gen.js'
import type { MigrateParams } from '../../driver.js'
import { failFrom, messageOf } from '../../error.js'
import type { Tunnel } from '../../tunnel/tunnel.js'
import { capabilitiesFor, parametersFor, requireEncrypted } from './flags.js'
import { MigrationCommands, type MigrationStatus } from '../monitor/migration-commands.js'
import { newId, newKey, readCookie, thisHost, writeCookie } from '../../migration/cookie.js'
import { chooseDisks, type SourceStorage, sourceStorage } from './disks.js'
import { comeBack } from './go-on.js'
import { seeThrough, sendMemory } from './memory.js'
import { type MigrationRecord } from './record.js'
import { MigrationWatch } from './watch.js'
import type { Qemu } from '../core/qemu.js'
import { untilAnswers } from '../core/standing-still.js'
import { requireAtHome } from '../core/vm-job.js'
import type { Live, Vm } from '../core/vm.js'
import { Outgoing, requireOutgoing } from './outgoing.js'
import { linkFor, resolveLater } from './leave.js'
import { FollowingMemory, refusePostcopyAbort, switchToPostcopy } from './postcopy.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms after which nobody is expected any more to say what is to become of a guest that stands still on both sides */
const CONFIRMATION = 15_000
/** ms between two looks at a migration that is being cancelled */
const CANCEL_POLL = 20

/** Not a job: a migration that is under way holds the domain. VIR_ERR_OPERATION_INVALID while there is one. */
export function refuseSecond(qemu: Qemu, vm: Vm): void {
  const phase = qemu.outgoingOf(vm)?.record.phase
  if (phase !== undefined && phase !== 'begun')
    throw fail('VIR_ERR_OPERATION_INVALID', `domain '${vm.name}' is being migrated already`)
}

/** Under the domain's job: what the destination has to know. The guest runs on as it did. */
export async function begin(
  qemu: Qemu,
  vm: Vm,
  params: MigrateParams,
  flags: number,
): Promise<{ xml: string; cookie: string }> {
  const live = vm.requireLive()
  refuseSecond(qemu, vm)
  // one that was begun and not gone on with: whoever began it is gone
  qemu.outgoingOf(vm)?.forget()
  requireAtHome(qemu, vm)
  if (vm.remains !== undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `disks of domain '${vm.name}' are still on their way from its former host`)
  refuseJobs(live)
  const disks = await chooseDisks(live, params, flags)
  await qemu.transports.require(params.transport)
  const running = vm.state.state === c.VIR_DOMAIN_RUNNING
  const persist = (flags & c.VIR_MIGRATE_PERSIST_DEST) !== 0
  const record: MigrationRecord = {
    ...{ version: 1, role: 'source', id: newId(), key: newKey(), phase: 'begun' },
    ...{ name: vm.name, uuid: vm.uuid, flags, params, disks, peer: '', running, startedAt: Date.now() },
  }
  const keep = params.persistXML ?? (vm.config && formatDomainXml(vm.config, { inactive: true, secure: true }))
  const outgoing = new Outgoing(qemu, vm, record)
  outgoing.begunOn = live
  qemu.outgoing.set(record.id, outgoing)
  return {
    xml: params.destinationXML ?? formatDomainXml(live.def, { inactive: true, secure: true, migratable: true }),
    cookie: writeCookie({
      ...{ version: 1, id: record.id, key: record.key, host: thisHost(), name: vm.name, uuid: vm.uuid, running, disks },
      abi: formatDomainXml(live.def, { inactive: true, migratable: true }),
      ...(persist && keep !== undefined && { persistentXml: keep }),
    }),
  }
}

function refuseJobs(live: Live): void {
  if (live.blockJobs.all.length > 0) throw fail('VIR_ERR_OPERATION_INVALID', 'domain has active block job')
}

/** Under the domain's job: the guest's memory goes over. Whatever fails, the guest is left as it was. */
export async function perform(
  qemu: Qemu,
  vm: Vm,
  { cookie, uri, tunnel }: { cookie: string; uri: string; tunnel: Tunnel | undefined },
): Promise<{ cookie: string }> {
  const outgoing = requireOutgoing(qemu, vm)
  const live = vm.requireLive()
  const { record } = outgoing
  if (record.phase !== 'begun')
    throw fail('VIR_ERR_OPERATION_INVALID', `the migration of domain '${vm.name}' is past that phase`)
  const { id, host } = await readCookie(cookie)
  if (id !== record.id) throw fail('VIR_ERR_INVALID_ARG', 'the cookie is of another migration')
  requireEncrypted(uri, record.flags)
  // streams may have begun, and the domain, since the destination was told
  if (live !== outgoing.begunOn)
    throw fail('VIR_ERR_OPERATION_FAILED', `domain '${vm.name}' has been stopped or changed since its migration began`)
  refuseJobs(live)
  if (outgoing.aborted) throw aborted(vm)
  record.peer = host.name
  record.uri = uri
  const storage = sourceStorage(qemu, outgoing, live)
  try {
    outgoing.enter('memory')
    heedErrors(outgoing, live)
    outgoing.link = linkFor(qemu, outgoing, tunnel)
    await connect(outgoing)
    await outgoing.link.request('disks')
    await storage.before()
    await transfer(qemu, outgoing, live, storage)
    vm.requireSame(live)
    await storage.switched()
    outgoing.enterSwitched(live.def)
    outgoing.link.last()
    outgoing.expectConfirmation(CONFIRMATION, () => resolveLater(qemu, outgoing))
  } catch (thrown) {
    const error = outgoing.ioError ? ioError(vm) : thrown
    outgoing.stats.fail(error)
    await stay(qemu, outgoing, live, storage)
    throw error
  } finally {
    delete live.onIoPause
  }
  const { key } = record
  const { locks } = record
  return { cookie: writeCookie({ version: 1, id, key, host: thisHost(), ...(locks && { locks }) }) }
}

const ioError = (vm: Vm): Error =>
  fail('VIR_ERR_OPERATION_FAILED', `migration of domain '${vm.name}' failed due to I/O error`)

/** VIR_MIGRATE_ABORT_ON_ERROR: a guest that an I/O error has paused, or pauses now, stays here. */
function heedErrors(outgoing: Outgoing, live: Live): void {
  const { vm, record } = outgoing
  if ((record.flags & c.VIR_MIGRATE_ABORT_ON_ERROR) === 0) return
  const { state, reason } = vm.state
  if (state === c.VIR_DOMAIN_PAUSED && reason === c.VIR_DOMAIN_PAUSED_IOERROR) throw ioError(vm)
  live.onIoPause = () => {
    // memory that follows its guest already can't stay
    if (outgoing.switching || outgoing.record.memoryFollows === true) return
    outgoing.ioError = true
    outgoing.aborted = true
    void outgoing.commands?.cancel().catch(() => undefined)
  }
}

async function connect({ link, record }: Outgoing): Promise<void> {
  try {
    await link?.connect()
  } catch (error) {
    const text = `destination '${record.peer}' of domain '${record.name}' cannot be reached at '${record.uri ?? ''}': ${messageOf(error)}`
    throw fail('VIR_ERR_OPERATION_FAILED', text, error)
  }
}

/** The guest goes over, with all of its memory or what is needed first; it stands still on both sides then. */
async function transfer(qemu: Qemu, outgoing: Outgoing, live: Live, storage: SourceStorage): Promise<void> {
  const { record, link, vm } = outgoing
  const { flags, params } = record
  const commands = new MigrationCommands(live.monitor)
  const watch = new MigrationWatch(live)
  const capabilities = capabilitiesFor(flags, params)
  try {
    if ((flags & c.VIR_MIGRATE_LIVE) === 0 && record.running) await live.monitor.stop()
    live.pauseReason = c.VIR_DOMAIN_PAUSED_MIGRATION
    await link?.request('incoming', { capabilities })
    await commands.setCapabilities({ ...capabilities, 'pause-before-switchover': true })
    await commands.setParameters(parametersFor(params, vm.migrationSpeed))
    const way = await link?.openMemory(qemu.transports, params.transport)
    if (way === undefined || outgoing.aborted) throw aborted(vm)
    await sendMemory(live, commands, way)
    outgoing.commands = commands
    outgoing.stats.follow(commands)
    outgoing.stats.goBy(way)
    // by who could not see it yet a moment ago
    if (isAborted(outgoing)) await commands.cancel()
    await switchToPostcopy(outgoing)
    const seen = await seeThrough(commands, watch, async () => {
      await storage.atSwitch()
      outgoing.switching = true
    })
    if (seen === 'postcopy-active') {
      record.memoryFollows = true
      outgoing.memory = new FollowingMemory(qemu, outgoing, live, watch)
      outgoing.memory.channel = way.channel
      return
    }
    if (seen !== 'completed') throw await whyNot(outgoing, commands, seen)
    await outgoing.stats.memoryDone(commands)
  } finally {
    outgoing.commands = undefined
    outgoing.switching = false
    delete live.pauseReason
    if (outgoing.memory === undefined) watch.close()
  }
}

const isAborted = (outgoing: Outgoing): boolean => outgoing.aborted
const aborted = (vm: Vm): Error => fail('VIR_ERR_OPERATION_ABORTED', `migration of domain '${vm.name}' was canceled`)

async function whyNot(outgoing: Outgoing, commands: MigrationCommands, seen: string | undefined): Promise<Error> {
  const { vm, link, record } = outgoing
  if (seen === 'gone') return fail('VIR_ERR_OPERATION_FAILED', `domain '${vm.name}' stopped while it was migrated`)
  if (seen === 'cancelled' || outgoing.aborted) return aborted(vm)
  const own = await commands.query().then(
    (info) => info['error-desc'],
    () => undefined,
  )
  const theirs = await link?.request('reason', {}, 2_000).catch(() => undefined)
  const words = [own, theirs].filter((text) => typeof text === 'string' && text !== '')
  const why = words.length === 0 ? (link?.problem ?? 'QEMU gave no reason') : words.join('; at the destination: ')
  return fail('VIR_ERR_OPERATION_FAILED', `domain '${vm.name}' could not be migrated to '${record.peer}': ${why}`)
}

const UNDER_WAY: readonly MigrationStatus[] = ['active', 'setup', 'pre-switchover', 'device']

/** It did not go: the guest is here, as it was. */
async function stay(qemu: Qemu, outgoing: Outgoing, live: Live, storage: SourceStorage): Promise<void> {
  const { vm, record } = outgoing
  const warn = (error: unknown): void =>
    qemu.warn(`domain '${vm.name}' after a migration that failed: ${messageOf(error)}`)
  // one that stands still has still to do what it was told last
  if (vm.live === live && (await untilAnswers(live))) {
    const commands = new MigrationCommands(live.monitor)
    await commands.query().then(({ status }) => {
      return status !== undefined && UNDER_WAY.includes(status) ? cancelled(commands) : undefined
    }, warn)
    await storage.undo().catch(warn)
    if (vm.live === live && record.running) await comeBack(qemu, outgoing, live).catch(warn)
  }
  // whoever began it may be gone, and a domain whose QEMU died is nobody's
  outgoing.forget()
}

async function cancelled(commands: MigrationCommands): Promise<void> {
  await commands.cancel()
  for (;;) {
    const { status } = await commands.query()
    if (status !== 'cancelling' && status !== 'active' && status !== 'pre-switchover' && status !== 'device') return
    await delay(CANCEL_POLL)
  }
}

/** Not a job: it has to get through while the migration holds the domain. */
export async function abort(outgoing: Outgoing): Promise<void> {
  const { record, vm } = outgoing
  if (record.phase === 'begun') {
    outgoing.aborted = true
    // whoever goes on with it at this moment heeds that; nobody else comes to it any more
    await vm.jobs.run('migrate', () => forgetBegun(outgoing))
    return
  }
  if (record.phase !== 'memory')
    throw fail('VIR_ERR_OPERATION_INVALID', `domain '${vm.name}' has no migration that could be canceled`)
  refusePostcopyAbort(outgoing)
  outgoing.aborted = true
  await outgoing.commands?.cancel()
}

function forgetBegun(outgoing: Outgoing): Promise<void> {
  if (outgoing.record.phase === 'begun') outgoing.forget()
  return Promise.resolve()
}
