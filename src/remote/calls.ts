/**
 * The operations that a client may ask for, each by the public call that checks its arguments: what comes over the wire is
 * believed no more than what any other application says. Bandwidths are in bytes/s here.
 */
import { existsSync } from 'node:fs'
import type { Arguments } from '../api/arguments.js'
import type { Connect } from '../api/connect.js'
import { Domain } from '../api/domain.js'
import { checkMigrateFlags, checkMigrateParams } from '../api/migrate.js'
import type { Session } from '../api/session.js'
import * as c from '../constants.gen.js'
import type { DomainRef, HypervisorOps, MigrateParams } from '../driver.js'
import { failFrom } from '../error.js'
import { VIR_STREAM_DISK_ONE } from '../stream-flags.js'
import { wireError } from './errors.js'
import { isObject, type WireOperation } from './protocol.js'
import { withPki } from './uri.js'

const fail = failFrom('VIR_FROM_REMOTE')

/** What a client's calls work on. */
export interface Served {
  readonly connect: Connect
  readonly session: Session
  /** of this call: the client does not wait for it any more */
  readonly signal: AbortSignal
  /** folder of the daemon's certificates; undefined: where libvirt keeps them */
  readonly pki: string | undefined
}

/** All but the consoles, whose answer is no JSON. */
export type PlainOperation = Exclude<WireOperation, 'domainOpenConsole'>

type Calls = {
  readonly [Name in PlainOperation]: (
    on: Served,
    ...args: Parameters<HypervisorOps[Name]>
  ) => Promise<Awaited<ReturnType<HypervisorOps[Name]>>>
}

/** Cookies are opaque, but not endless. */
const COOKIE_MAX = 256 * 1024

/** A domain as the client names it. VIR_ERR_INVALID_DOMAIN for what names none. */
export function domainOf({ session }: Pick<Served, 'session'>, ref: unknown): Domain {
  if (!isObject(ref)) throw fail('VIR_ERR_INVALID_DOMAIN', 'a domain is named by its name, uuid and id')
  const { name, uuid, id } = ref
  if (typeof name !== 'string' || typeof uuid !== 'string' || typeof id !== 'number')
    throw fail('VIR_ERR_INVALID_DOMAIN', 'a domain is named by its name, uuid and id')
  return new Domain(session, { name, uuid, id })
}

function refOf({ name, uuid, id }: DomainRef): DomainRef {
  return { name, uuid, id }
}

/** The parameters of a migration, of which the bandwidths are in bytes/s already, and its flags. */
function migration(check: Arguments, given: MigrateParams, flags: number): { params: MigrateParams; flags: number } {
  if (!isObject(given)) throw fail('VIR_ERR_INVALID_ARG', 'the parameters of a migration are an object')
  return { params: checkMigrateParams(check, given, true), flags: checkMigrateFlags(check, flags) }
}

function cookieOf(cookie: unknown): string {
  if (typeof cookie !== 'string' || cookie.length > COOKIE_MAX)
    throw fail('VIR_ERR_INVALID_ARG', `a cookie is a text of at most ${COOKIE_MAX} characters`)
  return cookie
}

/** A daemon shows the other one its own certificates; the client's only where they are on this host. */
function destination({ pki }: Served, uri: unknown): string {
  if (typeof uri !== 'string') throw fail('VIR_ERR_INVALID_ARG', 'uri must be a string')
  if (!uri.startsWith('virstream+')) return uri
  try {
    return withPki(uri, (given) => pki ?? (given !== undefined && existsSync(given) ? given : undefined))
  } catch (error) {
    throw wireError(error, 'the destination cannot be reached')
  }
}

export const calls: Calls = {
  connectGetType: ({ connect }) => connect.getType(),
  connectGetHostname: ({ connect }) => connect.getHostname(),
  connectGetVersion: ({ connect }) => connect.getVersion(),
  connectGetLibVersion: ({ connect }) => connect.getLibVersion(),
  connectGetCapabilities: ({ connect }) => connect.getCapabilities(),
  connectGetDomainCapabilities: ({ connect }, ...args) => connect.getDomainCapabilities(...args),
  connectListAllDomains: async ({ connect }, flags) => (await connect.listAllDomains(flags)).map(refOf),

  domainLookupByName: async ({ connect }, name) => refOf(await connect.domainLookupByName(name)),
  domainLookupByUUID: async ({ connect }, uuid) => refOf(await connect.domainLookupByUUIDString(uuid)),
  domainLookupByID: async ({ connect }, id) => refOf(await connect.domainLookupByID(id)),
  domainDefineXML: async ({ connect }, xml, flags) => refOf(await connect.domainDefineXML(xml, flags)),
  domainCreateXML: async ({ connect }, xml, flags) => refOf(await connect.domainCreateXML(xml, flags)),
  domainRestore: async ({ connect }, from, xml, flags) => refOf(await connect.domainRestore(from, xml, flags)),

  async domainCreate(on, ref, flags) {
    const domain = domainOf(on, ref)
    await domain.create(flags)
    return refOf(domain)
  },
  domainDestroy: (on, ref, flags) => domainOf(on, ref).destroy(flags),
  domainShutdown: (on, ref, flags) => domainOf(on, ref).shutdown(flags),
  domainReboot: (on, ref, flags) => domainOf(on, ref).reboot(flags),
  domainReset: (on, ref, flags) => domainOf(on, ref).reset(flags),
  domainSuspend: (on, ref) => domainOf(on, ref).suspend(),
  domainResume: (on, ref) => domainOf(on, ref).resume(),
  domainUndefine: (on, ref, flags) => domainOf(on, ref).undefine(flags),
  domainSave: (on, ref, ...args) => domainOf(on, ref).save(...args),
  domainManagedSave: (on, ref, flags) => domainOf(on, ref).managedSave(flags),
  domainHasManagedSaveImage: (on, ref) => domainOf(on, ref).hasManagedSaveImage(),
  domainManagedSaveRemove: (on, ref) => domainOf(on, ref).managedSaveRemove(),
  domainSetAutostart: (on, ref, autostart) => domainOf(on, ref).setAutostart(autostart),
  domainGetAutostart: (on, ref) => domainOf(on, ref).getAutostart(),

  domainGetXMLDesc: (on, ref, flags) => domainOf(on, ref).getXMLDesc(flags),
  domainGetState: (on, ref) => domainOf(on, ref).getState(),
  domainGetInfo: (on, ref) => domainOf(on, ref).getInfo(),
  domainIsActive: (on, ref) => domainOf(on, ref).isActive(),
  domainIsPersistent: (on, ref) => domainOf(on, ref).isPersistent(),

  domainAttachDevice: (on, ref, ...args) => domainOf(on, ref).attachDevice(...args),
  domainDetachDevice: (on, ref, ...args) => domainOf(on, ref).detachDevice(...args),

  domainUpdateDevice: (on, ref, ...args) => domainOf(on, ref).updateDevice(...args),

  domainGetBlockInfo: (on, ref, ...args) => domainOf(on, ref).blockInfo(...args),
  domainBlockStats: (on, ref, disk) => domainOf(on, ref).blockStats(disk),
  domainBlockResize: (on, ref, disk, size) =>
    domainOf(on, ref).blockResize(disk, size, c.VIR_DOMAIN_BLOCK_RESIZE_BYTES),
  domainBlockPull: (on, ref, disk, bandwidth) =>
    domainOf(on, ref).blockPull(disk, bandwidth, c.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES),
  domainBlockRebase: (on, ref, disk, base, bandwidth, flags) =>
    domainOf(on, ref).blockRebase(disk, base, bandwidth, flags | c.VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES),
  domainBlockCommit: (on, ref, disk, base, top, bandwidth, flags) =>
    domainOf(on, ref).blockCommit(disk, base, top, bandwidth, flags | c.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES),
  domainGetBlockJobInfo: (on, ref, disk) =>
    domainOf(on, ref).blockJobInfo(disk, c.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES),
  domainBlockJobAbort: (on, ref, ...args) => domainOf(on, ref).blockJobAbort(...args),
  domainBlockJobSetSpeed: (on, ref, disk, bandwidth) =>
    domainOf(on, ref).blockJobSetSpeed(disk, bandwidth, c.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES),

  domainStreamDisk(on, ref, disk, offset, flags, options) {
    if (!isObject(options)) throw fail('VIR_ERR_INVALID_ARG', 'the options of a stream are an object')
    // a whole stream is stopped by a call; who asked for a unit and has gone does not want it any more
    const how = flags === VIR_STREAM_DISK_ONE ? { ...options, signal: on.signal } : options
    return domainOf(on, ref).streamDisk(disk, offset, flags, how)
  },
  domainStreamDiskSetBase: (on, ref, disk, base, image, flags) =>
    domainOf(on, ref).streamDiskSetBase(disk, base, image === undefined ? {} : { image }, flags),
  domainStreamDiskInfo: (on, ref, flags) => domainOf(on, ref).streamDiskInfo(flags),

  domainMigrateBegin: (on, ref, params, flags) =>
    on.session.call('domainMigrateBegin', (check) => {
      const checked = migration(check, params, flags)
      return [domainOf(on, ref), checked.params, checked.flags]
    }),
  domainMigratePrepare: (on, params, flags, cookie, xml) =>
    on.session.call('domainMigratePrepare', (check) => {
      const checked = migration(check, params, flags)
      return [checked.params, checked.flags, cookieOf(cookie), check.text('dom_xml', xml)]
    }),
  domainMigratePerform: (on, ref, params, flags, cookie, uri) =>
    on.session.call('domainMigratePerform', (check) => {
      const checked = migration(check, params, flags)
      return [domainOf(on, ref), checked.params, checked.flags, cookieOf(cookie), destination(on, uri)]
    }),
  domainMigrateFinish: (on, params, flags, cookie, cancelled) =>
    on.session.call('domainMigrateFinish', (check) => {
      const checked = migration(check, params, flags)
      return [checked.params, checked.flags, cookieOf(cookie), check.boolean('cancelled', cancelled)]
    }),
  domainMigrateConfirm: (on, ref, params, flags, cookie, cancelled) =>
    on.session.call('domainMigrateConfirm', (check) => {
      const checked = migration(check, params, flags)
      return [domainOf(on, ref), checked.params, checked.flags, cookieOf(cookie), check.boolean('cancelled', cancelled)]
    }),
  domainMigrateStartPostCopy: (on, ref, flags) => domainOf(on, ref).migrateStartPostCopy(flags),
  domainMigrateSetMaxDowntime: (on, ref, ...args) => domainOf(on, ref).migrateSetMaxDowntime(...args),
  domainMigrateGetMaxDowntime: (on, ref, flags) => domainOf(on, ref).migrateGetMaxDowntime(flags),
  domainMigrateSetMaxSpeed: (on, ref, ...args) => domainOf(on, ref).migrateSetMaxSpeed(...args),
  domainMigrateGetMaxSpeed: (on, ref, flags) => domainOf(on, ref).migrateGetMaxSpeed(flags),
  domainMigrateSetCompressionCache: (on, ref, ...args) => domainOf(on, ref).migrateSetCompressionCache(...args),
  domainMigrateGetCompressionCache: (on, ref, flags) => domainOf(on, ref).migrateGetCompressionCache(flags),
  domainAbortJob: (on, ref, flags) => domainOf(on, ref).abortJob(flags),
  domainGetJobStats: (on, ref, flags) => domainOf(on, ref).getJobStats(flags),

  qemuMonitorCommand: (on, ref, ...args) => domainOf(on, ref).qemuMonitorCommand(...args),
}

/** The operation of that name, if there is one that goes over the wire. */
export function callNamed(name: string): ((on: Served, ...args: unknown[]) => Promise<unknown>) | undefined {
  if (!Object.hasOwn(calls, name)) return undefined
  return calls[name as PlainOperation] as (on: Served, ...args: unknown[]) => Promise<unknown>
}
