/**
 * A domain leaves a libvirtd for a driver of ours, its images being where they are. libvirtd goes through the phases of its
 * own migration, as it does with its own client, and is what keeps the domain from running twice; the memory goes from its
 * QEMU to a socket of ours, and through the migration's link to the QEMU at the destination.
 */
import * as c from '../constants.gen.js'
import type { DomainRef, HypervisorOps, MigrateParams } from '../driver.js'
import { failFrom } from '../error.js'
import { newId, newKey, readCookie, thisHost, writeCookie } from '../migration/cookie.js'
import { Undo } from '../util/undo.js'
import type { Tunnel } from '../tunnel/tunnel.js'
import type { Connection } from './connection.js'
import { Leaving } from './leaving.js'
import { MemoryDoor } from './memory-door.js'
import { checkLeaving, libvirtFlags } from './migration-flags.js'
import { fillIn } from './numbers.js'
import { withTypedParams } from './typed-params.js'
import { forDestination, forOtherHost } from './xml.js'

const fail = failFrom('VIR_FROM_QEMU')

type MigrationOps = Pick<HypervisorOps, 'domainMigrateBegin' | 'domainMigratePerform' | 'domainMigrateConfirm'>

export function migrationOps(conn: Connection): MigrationOps {
  const leaving = new Map<string, Leaving>()
  conn.onClose(() => {
    for (const each of leaving.values()) each.link?.destroy()
    return Promise.resolve()
  })
  return {
    domainMigrateBegin: (ref, params, flags) =>
      conn.withDomain(ref, (domain) => begin(conn, leaving, { ref, domain, params, flags })),
    domainMigratePerform: (ref, _params, _flags, cookie, uri, tunnel) =>
      conn.withDomain(ref, (domain) => perform(conn, requireLeaving(leaving, ref), { domain, cookie, uri, tunnel })),
    domainMigrateConfirm: (ref, _params, _flags, _cookie, isCancelled) =>
      conn.withDomain(ref, async (domain) => {
        if (isCancelled && !leaving.has(ref.uuid)) return
        const known = requireLeaving(leaving, ref)
        try {
          await confirm(conn, known, domain, isCancelled)
        } finally {
          if (known.phase === 'over') leaving.delete(ref.uuid)
        }
      }),
  }
}

function requireLeaving(leaving: ReadonlyMap<string, Leaving>, { uuid, name }: DomainRef): Leaving {
  const found = leaving.get(uuid)
  if (found === undefined) throw fail('VIR_ERR_OPERATION_INVALID', `domain '${name}' is not being migrated`)
  return found
}

interface Begin {
  ref: DomainRef
  domain: bigint
  params: MigrateParams
  flags: number
}

/** From now on libvirtd keeps others from changing the domain. */
async function begin(
  conn: Connection,
  leaving: Map<string, Leaving>,
  { ref, domain, params, flags }: Begin,
): Promise<{ xml: string; cookie: string }> {
  checkLeaving(conn, params, flags)
  await conn.transports.require(params.transport)
  if (leaving.has(ref.uuid)) throw fail('VIR_ERR_OPERATION_INVALID', `domain '${ref.name}' is being migrated already`)
  const gone = new Leaving(ref, newId(), newKey(), libvirtFlags(params, flags), params)
  leaving.set(ref.uuid, gone)
  await using undo = new Undo()
  undo.add(() => leaving.delete(ref.uuid))
  const [cookieAt, length] = [fillIn(8), fillIn(4)]
  const begun = ['virDomainMigrateBegin3Params', domain, null, 0, cookieAt.bytes, length.bytes, gone.flags] as const
  const xml = conn.lib.takeText(await conn.call(...begun))
  undo.add(() => confirm(conn, gone, domain, true))
  // what it says is for another libvirtd
  conn.lib.free(cookieAt.address(0))
  const live = await conn.text('virDomainGetXMLDesc', domain, 0)
  const cookie = await cookieFor(conn, gone, domain, flags, live)
  const there = forDestination(params.destinationXML ?? xml, { begun: xml, live })
  undo.commit()
  return { xml: there, cookie }
}

async function cookieFor(
  conn: Connection,
  gone: Leaving,
  domain: bigint,
  flags: number,
  live: string,
): Promise<string> {
  const { id, key, params } = gone
  const { name, uuid } = gone.ref
  const running = (await stateOf(conn, domain)) === c.VIR_DOMAIN_RUNNING
  const abi = forOtherHost(live)
  const persistentXml = await definitionToKeep(conn, domain, params, flags)
  return writeCookie({
    ...{ version: 1, id, key, host: thisHost(), name, uuid, running, disks: [], abi },
    ...(persistentXml !== undefined && { persistentXml }),
  })
}

async function stateOf(conn: Connection, domain: bigint): Promise<number> {
  const out = fillIn(8)
  await conn.call('virDomainGetState', domain, out.bytes.subarray(0, 4), out.bytes.subarray(4), 0)
  return out.int(0)
}

async function definitionToKeep(
  conn: Connection,
  domain: bigint,
  { persistXML }: MigrateParams,
  flags: number,
): Promise<string | undefined> {
  if ((flags & c.VIR_MIGRATE_PERSIST_DEST) === 0) return undefined
  if (persistXML !== undefined) return forOtherHost(persistXML)
  if ((await conn.call('virDomainIsPersistent', domain)) !== 1) return undefined
  const how = c.VIR_DOMAIN_XML_INACTIVE | c.VIR_DOMAIN_XML_SECURE | c.VIR_DOMAIN_XML_MIGRATABLE
  return forOtherHost(await conn.text('virDomainGetXMLDesc', domain, how))
}

interface Perform {
  domain: bigint
  cookie: string
  uri: string
  tunnel: Tunnel | undefined
}

/** The guest's memory goes over. Whatever fails, libvirtd lets the guest go on as it was. */
async function perform(
  conn: Connection,
  gone: Leaving,
  { domain, cookie, uri, tunnel }: Perform,
): Promise<{ cookie: string }> {
  const { id, key } = gone
  if (gone.phase !== 'begun')
    throw fail('VIR_ERR_OPERATION_INVALID', `the migration of domain '${gone.ref.name}' is past that phase`)
  const prepared = await readCookie(cookie)
  if (prepared.id !== id) throw fail('VIR_ERR_INVALID_ARG', 'the cookie is of another migration')
  gone.peer = prepared.host.name
  await gone.connect(uri, tunnel, (text) => conn.host.logger.warn({ domain: gone.ref.name }, text))
  await sendMemory(conn, gone, domain)
  gone.phase = 'performed'
  gone.link?.last()
  return { cookie: writeCookie({ version: 1, id, key, host: thisHost() }) }
}

async function sendMemory(conn: Connection, gone: Leaving, domain: bigint): Promise<void> {
  const { link, ref, flags, params } = gone
  const xbzrle = (flags & c.VIR_MIGRATE_COMPRESSED) !== 0
  const capabilities = { events: true, 'return-path': false, xbzrle, 'auto-converge': false }
  await link?.request('incoming', { capabilities })
  const way = await link?.openMemory(conn.transports, params.transport)
  if (way === undefined) throw fail('VIR_ERR_OPERATION_ABORTED', `migration of domain '${ref.name}' was canceled`)
  await using door = MemoryDoor.open(way)
  const { bandwidth = 0, compressionXbzrleCache: cache } = params
  const said = {
    migrate_uri: door.uri,
    // MiB/s, where ours is in bytes/s
    ...(bandwidth > 0 && { bandwidth: Math.max(1, Math.round(bandwidth / (1 << 20))) }),
    ...(xbzrle && { compression: 'xbzrle' }),
    ...(cache !== undefined && { 'compression.xbzrle.cache': cache }),
  }
  const [cookieAt, length] = [fillIn(8), fillIn(4)]
  const cookie = gone.libvirtCookie()
  // from here on libvirtd has ended its job when this fails
  gone.phase = 'over'
  try {
    await withTypedParams(said, (bytes, count) =>
      conn.call(
        'virDomainMigratePerform3Params',
        domain,
        null,
        bytes,
        count,
        cookie,
        Buffer.byteLength(cookie) + 1,
        cookieAt.bytes,
        length.bytes,
        flags,
      ),
    )
  } catch (error) {
    throw await gone.withReason(error)
  }
  conn.lib.free(cookieAt.address(0))
}

/** While it is not known where the guest runs this can be asked again, and libvirtd goes on waiting. */
async function confirm(conn: Connection, gone: Leaving, domain: bigint, isCancelled: boolean): Promise<void> {
  const { phase, flags, ref } = gone
  if (!isCancelled && phase !== 'performed')
    throw fail('VIR_ERR_OPERATION_INVALID', `domain '${ref.name}' has not been migrated, it cannot be let go of`)
  const stays = isCancelled && !(await gone.runsThere())
  gone.phase = 'over'
  gone.link?.close()
  if (phase === 'over') return
  const cookie = phase === 'performed' ? gone.libvirtCookie() : null
  const length = cookie === null ? 0 : Buffer.byteLength(cookie) + 1
  await conn.call('virDomainMigrateConfirm3Params', domain, null, 0, cookie, length, flags, stays ? 1 : 0)
}
