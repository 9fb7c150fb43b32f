/** A domain moves from one connection to another: libvirt's five phases, driven from here. */
import * as c from '../constants.gen.js'
import type { DomainRef, MigrateParams } from '../driver.js'
import { failFrom, messageOf } from '../error.js'
import { VIR_MIGRATE_STREAM_DISKS } from '../stream-flags.js'
import type { Arguments } from './arguments.js'
import type { Session } from './session.js'

const fail = failFrom('VIR_FROM_DOM')

/** libvirt's flags, VIR_MIGRATE_LIVE to _ZEROCOPY, and ours */
const knownFlags = (c.VIR_MIGRATE_ZEROCOPY * 2 - 1) | VIR_MIGRATE_STREAM_DISKS

type Checked = Omit<MigrateParams, 'bandwidth' | 'bandwidthPostcopy'> & MigrateParams

/** The flags of libvirt that exclude each other, and those that mean nothing without another. */
export function checkMigrateFlags(check: Arguments, flags: unknown): number {
  const given = check.flags(flags, knownFlags)
  const pair = (one: keyof typeof named, other: keyof typeof named): void =>
    check.exclusive(given, [one, named[one]], [other, named[other]])
  pair('VIR_MIGRATE_NON_SHARED_DISK', 'VIR_MIGRATE_NON_SHARED_INC')
  pair('VIR_MIGRATE_STREAM_DISKS', 'VIR_MIGRATE_NON_SHARED_DISK')
  pair('VIR_MIGRATE_STREAM_DISKS', 'VIR_MIGRATE_NON_SHARED_INC')
  pair('VIR_MIGRATE_OFFLINE', 'VIR_MIGRATE_LIVE')
  pair('VIR_MIGRATE_OFFLINE', 'VIR_MIGRATE_POSTCOPY')
  if ((given & c.VIR_MIGRATE_POSTCOPY_RESUME) !== 0 && (given & c.VIR_MIGRATE_POSTCOPY) === 0)
    throw fail('VIR_ERR_INVALID_ARG', 'flag VIR_MIGRATE_POSTCOPY_RESUME needs the flag VIR_MIGRATE_POSTCOPY')
  return given
}

const named = {
  VIR_MIGRATE_NON_SHARED_DISK: c.VIR_MIGRATE_NON_SHARED_DISK,
  VIR_MIGRATE_NON_SHARED_INC: c.VIR_MIGRATE_NON_SHARED_INC,
  VIR_MIGRATE_STREAM_DISKS,
  VIR_MIGRATE_OFFLINE: c.VIR_MIGRATE_OFFLINE,
  VIR_MIGRATE_LIVE: c.VIR_MIGRATE_LIVE,
  VIR_MIGRATE_POSTCOPY: c.VIR_MIGRATE_POSTCOPY,
} as const

const texts = [
  'destinationName',
  'destinationXML',
  'persistXML',
  'uri',
  'listenAddress',
  'compression',
  'transport',
] as const

/**
 * Only what was given, and what was given is legal. Bandwidths of memory come out in bytes/s; `inBytes`: they are in
 * bytes/s already.
 */
export function checkMigrateParams(check: Arguments, params: MigrateParams, inBytes = false): Checked {
  const known = new Set<string>([...texts, ...others])
  for (const key of Object.keys(params))
    if (!known.has(key)) throw fail('VIR_ERR_INVALID_ARG', `there is no migration parameter '${key}'`)
  const { bandwidth, bandwidthPostcopy, diskStreamBandwidth, downtime, migrateDisks, serve, diskStreamEngine } = params
  const { compressionXbzrleCache: cache } = params
  if (serve !== undefined && !['embedded', 'external'].includes(serve))
    throw fail('VIR_ERR_INVALID_ARG', `serve must be 'embedded' or 'external', not '${serve as string}'`)
  if (diskStreamEngine !== undefined && !['auto', 'job', 'pull'].includes(diskStreamEngine))
    throw fail(
      'VIR_ERR_INVALID_ARG',
      `diskStreamEngine must be 'auto', 'job' or 'pull', not '${diskStreamEngine as string}'`,
    )
  if (migrateDisks !== undefined && !Array.isArray(migrateDisks))
    throw fail('VIR_ERR_INVALID_ARG', 'migrateDisks must be a list of target devs')
  const given = texts.flatMap((key) =>
    params[key] === undefined ? [] : [[key, check.text(key, params[key])] as const],
  )
  const flags = (['writeBack', 'releaseRam'] as const).flatMap((key) =>
    params[key] === undefined ? [] : [[key, check.boolean(key, params[key])] as const],
  )
  return {
    ...(Object.fromEntries([...given, ...flags]) as Checked),
    ...(bandwidth !== undefined && { bandwidth: check.bandwidth(bandwidth, inBytes) }),
    ...(bandwidthPostcopy !== undefined && { bandwidthPostcopy: check.bandwidth(bandwidthPostcopy, inBytes) }),
    ...(diskStreamBandwidth !== undefined && { diskStreamBandwidth: check.bandwidth(diskStreamBandwidth, true) }),
    ...(downtime !== undefined && { downtime: check.count('downtime', downtime) }),
    ...(cache !== undefined && { compressionXbzrleCache: check.count('compressionXbzrleCache', cache) }),
    ...(migrateDisks && { migrateDisks: migrateDisks.map((disk) => check.text('migrateDisks', disk)) }),
    ...(serve && { serve }),
    ...(diskStreamEngine && { diskStreamEngine }),
  }
}

const others: readonly (keyof MigrateParams)[] = [
  'bandwidth',
  'bandwidthPostcopy',
  'downtime',
  'compressionXbzrleCache',
  'migrateDisks',
  'diskStreamBandwidth',
  'diskStreamEngine',
  'writeBack',
  'serve',
  'releaseRam',
]

/** 'zstd+tls://host/': a transport before the scheme that it is to go by */
const TRANSPORT_URI = /^(?!virstream\+|qemu\+)([a-z][a-z0-9-]*)\+(?:virstream\+)?((?:tls|tcp|unix):.*)$/s

/** The transport that `uri` names is a parameter, and 'xbzrle' is what libvirt calls a compression. */
function withTransport({ uri, transport, ...others }: MigrateParams): MigrateParams {
  const [, named, rest] = (typeof uri === 'string' ? TRANSPORT_URI.exec(uri) : null) ?? []
  if (named !== undefined && transport !== undefined && transport !== named)
    throw fail('VIR_ERR_INVALID_ARG', `uri '${uri ?? ''}' names another transport than '${transport}'`)
  const chosen = named ?? transport
  const { compression } = others
  if (chosen === 'xbzrle' && compression !== undefined && compression !== chosen)
    throw fail('VIR_ERR_INVALID_ARG', `transport 'xbzrle' does not go with compression '${compression}'`)
  return {
    ...others,
    ...(uri !== undefined && { uri: rest === undefined ? uri : `virstream+${rest}` }),
    ...(chosen !== undefined && (chosen === 'xbzrle' ? { compression: chosen } : { transport: chosen })),
  }
}

/**
 * Moves `domain`. When it rejects the guest runs where it did, unless the message says that this is not known yet: then
 * the source finds out by itself as soon as it reaches the destination.
 */
export async function migrateDomain(
  source: Session,
  domain: DomainRef,
  destination: Session,
  given: MigrateParams,
  flags: number,
  signal?: AbortSignal,
): Promise<DomainRef> {
  const params = withTransport(given)
  if (source === destination)
    throw fail('VIR_ERR_INVALID_ARG', `domain '${domain.name}' cannot be migrated to the connection that it is on`)
  let checked: Checked = {}
  const begun = await source.call('domainMigrateBegin', (check) => {
    checked = checkMigrateParams(check, params)
    return [domain, checked, checkMigrateFlags(check, flags)]
  })
  if ((flags & c.VIR_MIGRATE_POSTCOPY_RESUME) !== 0) {
    await source.call('domainMigrateConfirm', () => [domain, checked, flags, begun.cookie, false])
    return destination.call('domainLookupByUUID', () => [domain.uuid])
  }
  const prepared = await destination
    .call('domainMigratePrepare', () => [checked, flags, begun.cookie, begun.xml])
    .catch(async (error: unknown) => {
      await confirmCancelled(source, domain, checked, flags, '').catch(noteFor(source))
      throw error
    })
  const uri = params.uri ?? prepared.uri
  let performed: { cookie: string }
  try {
    const tunnel = destination.has('connectTunnel') ? await destination.call('connectTunnel', () => []) : undefined
    // until now the driver had nothing that it could have aborted
    if (signal?.aborted === true)
      throw fail('VIR_ERR_OPERATION_ABORTED', `migration of domain '${domain.name}' was canceled`, signal.reason)
    performed = await source.call('domainMigratePerform', () => [domain, checked, flags, prepared.cookie, uri, tunnel])
  } catch (error) {
    await destination
      .call('domainMigrateFinish', () => [checked, flags, prepared.cookie, true])
      .catch(noteFor(destination))
    await confirmCancelled(source, domain, checked, flags, prepared.cookie).catch(noteFor(source))
    throw error
  }
  let arrived: DomainRef | undefined
  try {
    arrived = await destination.call('domainMigrateFinish', () => [checked, flags, performed.cookie, false])
  } catch (error) {
    await confirmCancelled(source, domain, checked, flags, performed.cookie).catch((unknown: unknown) => {
      throw fail('VIR_ERR_OPERATION_FAILED', `${messageOf(error)}; ${messageOf(unknown)}`, error)
    })
    if (await hasGone(source, domain)) return foundThere(destination, domain)
    throw error
  }
  await source.call('domainMigrateConfirm', () => [domain, checked, flags, performed.cookie, false])
  if (arrived === undefined)
    throw fail('VIR_ERR_INTERNAL_ERROR', `the destination did not say what became of domain '${domain.name}'`)
  return arrived
}

/** Its source has asked the destination, and serves its disks, or has let go of it. */
async function hasGone(source: Session, domain: DomainRef): Promise<boolean> {
  const { state, reason } = await source.call('domainGetState', () => [domain])
  if (state === c.VIR_DOMAIN_SHUTOFF) return reason === c.VIR_DOMAIN_SHUTOFF_MIGRATED
  return state === c.VIR_DOMAIN_PAUSED && reason === c.VIR_DOMAIN_PAUSED_POSTCOPY
}

async function foundThere(destination: Session, { name, uuid }: DomainRef): Promise<DomainRef> {
  return destination
    .call('domainLookupByUUID', () => [uuid])
    .catch((error: unknown) => {
      const text = `domain '${name}' runs at the destination, which cannot be reached from here any more: ${messageOf(error)}`
      throw fail('VIR_ERR_OPERATION_FAILED', text, error)
    })
}

/** The source is told that the domain does not move. */
function confirmCancelled(
  source: Session,
  domain: DomainRef,
  params: Checked,
  flags: number,
  cookie: string,
): Promise<void> {
  return source.call('domainMigrateConfirm', () => [domain, params, flags, cookie, true])
}

/** What went wrong before is what the caller has to hear; what goes wrong now is logged. */
const noteFor =
  (session: Session) =>
  (error: unknown): undefined => {
    session.logger.warn({ err: error }, `a migration could not be wound up: ${messageOf(error)}`)
    return undefined
  }
