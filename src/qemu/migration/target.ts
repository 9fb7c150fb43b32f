/** A domain arrives: prepare of a migration, and its memory until the guest may run. */
import { parseDomainXml } from '../../conf/parse.js'
import type { DomainDef } from '../../conf/domain-def.js'
import * as c from '../../constants.gen.js'
import type { MigrateParams } from '../../driver.js'
import { failFrom } from '../../error.js'
import { Undo } from '../../util/undo.js'
import { checkAbi } from '../../machine/abi.js'
import { match, readDefinition, requireStill } from '../domain/define.js'
import { type MigrationCookie, readCookie, thisHost, writeCookie } from '../../migration/cookie.js'
import { storageOf } from './flags.js'
import { listenForMigrations } from './listener.js'
import { type MigrationRecord, saveRecord } from './record.js'
import { makeDisks, openRelay, requireShared } from './target-disks.js'
import { MigrationWatch } from './watch.js'
import type { Qemu } from '../core/qemu.js'
import { startIncoming } from '../domain/start.js'
import { saveStatus } from '../core/status.js'
import { type Live, Vm } from '../core/vm.js'
import { Incoming, waitsForSource } from './incoming.js'
import { cancel, endWaiting, removeMade } from './arrive.js'
import { followRest, preparePostcopy, stateIsHere } from './postcopy-target.js'

const fail = failFrom('VIR_FROM_QEMU')

/** A QEMU that waits for the guest; what cannot be run here is refused. */
export async function prepare(
  qemu: Qemu,
  params: MigrateParams,
  flags: number,
  { cookie: text, xml }: { cookie: string; xml: string },
): Promise<{ cookie: string; uri: string }> {
  const cookie = await readCookie(text)
  const def = await readDefinition(qemu, xml, false)
  if (cookie.abi !== undefined) checkAbi(parseDomainXml(cookie.abi), def)
  if (params.destinationName !== undefined) def.name = params.destinationName
  if (params.persistXML !== undefined) await checkKept(qemu, def, cookie)
  await qemu.transports.require(params.transport)
  if (storageOf(flags) === 'shared') requireShared(def, cookie, flags)
  const vm = match(qemu, def) ?? new Vm(def.name, def.uuid)
  if (qemu.outgoing.has(cookie.id))
    throw fail('VIR_ERR_INVALID_ARG', `domain '${vm.name}' cannot be migrated to the root that it is in`)
  qemu.add(vm)
  const uri = qemu.host.tunnels === true ? '' : await listenForMigrations(qemu)
  await vm.jobs.run('migrate', async () => {
    await endForerunners(qemu, vm, cookie)
    requireStill(qemu, def, vm)
    qemu.add(vm)
    try {
      refuseActive(vm)
      await receive(qemu, vm, def, recordOf(cookie, def, params, flags))
    } catch (error) {
      qemu.forgetIfNothing(vm)
      throw error
    }
  })
  const { id, key } = cookie
  return { cookie: writeCookie({ version: 1, id, key, host: thisHost() }), uri }
}

/** The definition that somebody wants to be kept here: it would be too late to find out when the guest has come. */
async function checkKept(qemu: Qemu, def: DomainDef, { persistentXml }: MigrationCookie): Promise<void> {
  if (persistentXml === undefined) return
  const { uuid } = await readDefinition(qemu, persistentXml, false)
  if (uuid !== def.uuid)
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `the definition to keep has uuid '${uuid}', not '${def.uuid}'`)
}

/** Its source begins anew, so it has given up what it had begun; nobody would come for that any more. */
async function endForerunners(qemu: Qemu, vm: Vm, { host }: MigrationCookie): Promise<void> {
  for (const incoming of qemu.incomingsOf(vm))
    if (waitsForSource(incoming.record) && incoming.record.peer === host.name)
      await cancel(qemu, incoming, 'its source has begun anew')
}

function refuseActive(vm: Vm): void {
  if (vm.live !== undefined) throw fail('VIR_ERR_OPERATION_INVALID', `domain '${vm.name}' is already active`)
  if (vm.offline !== undefined || vm.remains !== undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `disks of domain '${vm.name}' are being streamed here`)
}

function recordOf(cookie: MigrationCookie, def: DomainDef, params: MigrateParams, flags: number): MigrationRecord {
  const { id, key, running = true, disks = [], host, persistentXml } = cookie
  return {
    ...{ version: 1, role: 'destination', id, key, phase: 'incoming', name: def.name, uuid: def.uuid, flags, params },
    ...{ disks, peer: host.name, running, startedAt: Date.now(), made: [] },
    ...(persistentXml !== undefined && { persistentXml }),
  }
}

/** Under the domain's job. */
async function receive(qemu: Qemu, vm: Vm, def: DomainDef, record: MigrationRecord): Promise<void> {
  const incoming = new Incoming(qemu, vm, record)
  await using undo = new Undo()
  saveRecord(qemu.root, record)
  undo.add(() => incoming.forget())
  undo.add(() => removeMade(record))
  await makeDisks(qemu, incoming, def)
  const postcopy = (record.flags & c.VIR_MIGRATE_POSTCOPY) !== 0
  const live = await startIncoming(qemu, vm, def, { unlocked: unlockedDisks(def, record), postcopy })
  undo.add(() => endWaiting(live))
  incoming.relay = await openRelay(qemu, incoming, live.def)
  if (postcopy) await preparePostcopy(qemu, incoming, live)
  qemu.incoming.set(record.id, incoming)
  incoming.watch = new MigrationWatch(live)
  qemu.inBackground(`the migration of domain '${vm.name}'`, () => followMemory(qemu, incoming, live))
  incoming.waitForSource()
  undo.commit()
}

/** Until the guest may run here, and with post-copy until all memory is here; or it will never be. */
async function followMemory(qemu: Qemu, incoming: Incoming, live: Live): Promise<void> {
  const { vm, record } = incoming
  const seen = await incoming.watch?.until(['postcopy-active'])
  if (seen === 'closed' || record.phase !== 'incoming' || !qemu.incoming.has(record.id)) return
  const follows =
    seen === 'postcopy-active' &&
    (await stateIsHere(live).then(
      () => true,
      () => false,
    ))
  if (seen !== 'completed' && !follows) {
    await cancel(qemu, incoming, 'its state did not arrive')
    return
  }
  record.memoryFollows = follows
  vm.state = { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_MIGRATION }
  incoming.unlessItMustCome(() => saveStatus(vm, live))
  incoming.enter('loaded')
  incoming.sourceIsHere()
  if (incoming.messages === undefined) incoming.waitForSource()
  incoming.arrived()
  if (follows) await followRest(qemu, incoming, live)
}

/** Images that both hosts see are locked by the source still. */
function unlockedDisks(def: DomainDef, { flags }: MigrationRecord): string[] {
  return storageOf(flags) === 'shared' ? def.disks.map(({ target }) => target) : []
}
