import { readFile } from 'node:fs/promises'
import type { Domain } from '../api/domain.js'
import * as c from '../constants.gen.js'
import type { MigrateParams, StreamEngine } from '../driver.js'
import { wordsOf } from '../error.js'
import { ensureDaemon } from '../remote/embedded.js'
import { embeddedRoot } from '../remote/uri.js'
import { VIR_MIGRATE_STREAM_DISKS } from '../stream-flags.js'
import { CommandError } from './context.js'
import type { Context } from './context.js'
import { DETACHED } from './follow.js'
import { followDisks, move } from './migrate-follow.js'
import type { Haste } from './migrate-switch.js'
import { makeMigrationView } from './migrate-view.js'
import { domainArgument } from './spec.js'
import type { CommandSpec } from './spec.js'
import { parseBandwidth, UsageError } from './values.js'
import type { Values } from './values.js'

const MIB = 1024 * 1024

const flagOptions: Readonly<Record<string, number>> = {
  live: c.VIR_MIGRATE_LIVE,
  offline: c.VIR_MIGRATE_OFFLINE,
  p2p: c.VIR_MIGRATE_PEER2PEER,
  tunnelled: c.VIR_MIGRATE_TUNNELLED,
  persistent: c.VIR_MIGRATE_PERSIST_DEST,
  undefinesource: c.VIR_MIGRATE_UNDEFINE_SOURCE,
  suspend: c.VIR_MIGRATE_PAUSED,
  'stream-disks': VIR_MIGRATE_STREAM_DISKS,
  'copy-storage-all': c.VIR_MIGRATE_NON_SHARED_DISK,
  'copy-storage-inc': c.VIR_MIGRATE_NON_SHARED_INC,
  'change-protection': c.VIR_MIGRATE_CHANGE_PROTECTION,
  unsafe: c.VIR_MIGRATE_UNSAFE,
  'abort-on-error': c.VIR_MIGRATE_ABORT_ON_ERROR,
  'auto-converge': c.VIR_MIGRATE_AUTO_CONVERGE,
  compressed: c.VIR_MIGRATE_COMPRESSED,
  postcopy: c.VIR_MIGRATE_POSTCOPY,
  'postcopy-resume': c.VIR_MIGRATE_POSTCOPY_RESUME,
  tls: c.VIR_MIGRATE_TLS,
}

export function migrateFlags(options: Values): number {
  return Object.entries(flagOptions).reduce((flags, [name, flag]) => flags | (options.flag(name) ? flag : 0), 0)
}

/** MiB/s, as libvirt counts the memory's bandwidth. */
function megabytes(options: Values, name: string): number | undefined {
  const bytes = parseBandwidth(options.text(name), false)
  return bytes === 0 ? undefined : Math.max(1, Math.round(bytes / MIB))
}

async function document(options: Values, name: string): Promise<string | undefined> {
  const path = options.text(name)
  if (path === undefined) return undefined
  return readFile(path, 'utf8').catch((error: unknown) => {
    throw new CommandError(`cannot read file '${path}': ${wordsOf(error)}`)
  })
}

/** Only what was given. */
export async function migrateParams(options: Values): Promise<MigrateParams> {
  const disks = options.text('migrate-disks')
  const all = {
    destinationName: options.text('dname'),
    destinationXML: await document(options, 'xml'),
    persistXML: await document(options, 'persistent-xml'),
    uri: options.text('migrateuri'),
    compression: options.text('comp-methods'),
    compressionXbzrleCache: options.bytes('comp-xbzrle-cache'),
    transport: options.text('transport'),
    bandwidth: megabytes(options, 'bandwidth'),
    bandwidthPostcopy: megabytes(options, 'postcopy-bandwidth'),
    downtime: options.count('downtime'),
    migrateDisks: disks?.split(',').map((disk) => disk.trim()),
    diskStreamBandwidth: parseBandwidth(options.text('disk-bandwidth'), false) || undefined,
    // what is no engine is refused below, with the names of those that are
    diskStreamEngine: options.text('disk-engine') as StreamEngine | 'auto' | undefined,
    writeBack: options.flag('write-back') || undefined,
    serve: options.flag('external') ? ('external' as const) : undefined,
    releaseRam: options.flag('release-ram') || undefined,
  }
  return Object.fromEntries(Object.entries(all).filter(([, value]) => value !== undefined))
}

function checkUsage(options: Values): void {
  options.exclusive('stream-disks', 'copy-storage-all', 'copy-storage-inc')
  const timeout = options.seconds('timeout')
  if (timeout !== undefined && !options.flag('live'))
    throw new UsageError('migrate: Unexpected timeout for offline migration')
  options.exclusive('timeout-suspend', 'timeout-postcopy')
  options.exclusive('postcopy-after-precopy', 'timeout-postcopy')
  for (const name of ['timeout-suspend', 'timeout-postcopy'] as const)
    if (options.flag(name) && timeout === undefined) throw new UsageError(`option --${name} requires --timeout`)
  for (const name of [
    'postcopy-after-precopy',
    'postcopy-resume',
    'timeout-postcopy',
    'release-ram',
    'postcopy-bandwidth',
  ] as const)
    if ((options.flag(name) || options.text(name) !== undefined) && !options.flag('postcopy'))
      throw new UsageError(`option --${name} requires --postcopy`)
  if (options.text('persistent-xml') !== undefined && !options.flag('persistent'))
    throw new UsageError('option --persistent-xml requires --persistent')
  const streams = options.flag('stream-disks')
  const streaming = ['wait', 'write-back', 'external', 'disk-bandwidth', 'disk-engine'] as const
  for (const name of streaming)
    if (!streams && (options.flag(name) || options.text(name) !== undefined))
      throw new UsageError(`option --${name} requires --stream-disks`)
}

function hasteOf(options: Values): Haste {
  return {
    timeout: options.seconds('timeout'),
    onTimeout: options.flag('timeout-postcopy') ? 'postcopy' : 'suspend',
    postcopyAfterPass: options.flag('postcopy-after-precopy'),
  }
}

/** What goes on without this process needs one that stays: a daemon on each root of this host. */
async function leaveToDaemons(context: Context, uris: readonly string[]): Promise<void> {
  for (const uri of uris) {
    const root = embeddedRoot(uri)
    if (root !== undefined) await context.attempt(`failed to serve root '${root}'`, () => ensureDaemon(root))
  }
}

async function migrate(context: Context, what: string, uri: string, options: Values): Promise<number | undefined> {
  checkUsage(options)
  const flags = migrateFlags(options)
  const params = await migrateParams(options)
  if ((flags & c.VIR_MIGRATE_OFFLINE) === 0) await leaveToDaemons(context, [context.uri, uri])
  const domain = await context.domain(what)
  const destination = await context.connectionTo(uri)
  const view = options.flag('verbose') && !context.quiet ? makeMigrationView(context) : undefined
  let arrived: Domain
  let end: 'interrupted' | undefined
  try {
    arrived = await move(context, { domain, destination, params, flags, haste: hasteOf(options) }, view)
    if (options.flag('wait')) end = await followDisks(context, { source: domain, arrived }, view)
  } finally {
    view?.end()
  }
  const goesOn = end === undefined && options.flag('wait') ? undefined : await followers(domain)
  if (goesOn === undefined && end === undefined) {
    const becomes = (flags & c.VIR_MIGRATE_OFFLINE) === 0 ? 'runs' : 'is defined'
    context.say(`Domain '${arrived.name}' ${becomes} at '${uri}'`, '')
    return undefined
  }
  const lines = hints(context, { name: domain.name, arrived: arrived.name, uri, disks: goesOn ?? [] })
  if (end === undefined) context.say(...lines, '')
  else for (const line of lines) context.err.line(line)
  return end === undefined ? undefined : DETACHED
}

/** The disks that are still to follow; undefined: the source serves none any more. */
async function followers(source: Domain): Promise<string[] | undefined> {
  const state = await source.getState().catch(() => undefined)
  if (state?.state !== c.VIR_DOMAIN_PAUSED) return undefined
  const stats = await source.getJobStats().catch(() => undefined)
  return (stats?.disks ?? []).filter(({ offset, size }) => offset < size).map(({ disk }) => disk)
}

interface Moved {
  name: string
  arrived: string
  uri: string
  disks: readonly string[]
}

function hints(context: Context, { name, arrived, uri, disks }: Moved): string[] {
  const source = `virstream -c '${context.uri}'`
  const what =
    disks.length === 0
      ? 'its disks go'
      : disks.length === 1
        ? `disk ${disks[0] ?? ''} goes`
        : `disks ${disks.join(', ')} go`
  return [
    `Domain '${arrived}' runs at '${uri}'; ${what} on being streamed there, in the background.`,
    `See it:   virstream -c '${uri}' stream-info ${arrived}`,
    `          ${source} domjobinfo ${name}`,
    `Go back:  ${source} migrate-rollback ${name}`,
  ]
}

export const migrateCommand: CommandSpec = {
  name: 'migrate',
  group: 'Migration',
  summary: 'move a running domain to another host',
  arguments: [
    domainArgument,
    ['<desturi>', "connection URI of the destination, as this host sees it: 'virstream+tls://host2/'"],
  ],
  options: [
    ['--live', 'while the guest runs; otherwise it stands still'],
    ['--stream-disks', 'the guest moves first, its disks follow while it runs there'],
    ['--copy-storage-all', 'copy the disks first, whole, then move the guest'],
    ['--copy-storage-inc', 'the same, but the destination has the backing images'],
    ['--migrate-disks <disks>', "targets of the disks to move, 'vda,vdb'; default: all that can be written"],
    ['--persistent', 'define the domain at the destination'],
    ['--undefinesource', 'undefine it here afterwards'],
    ['--suspend', 'leave its CPUs stopped at the destination'],
    ['--offline', 'move the definition of a domain that does not run; needs --persistent'],
    ['--p2p', 'taken for the sake of virsh'],
    ['--tunnelled', 'everything in one connection between the hosts; a daemon does so anyway'],
    ['--postcopy', 'memory may follow its guest: from --timeout on, by migrate-postcopy, or as the next option says'],
    ['--postcopy-after-precopy', 'with --postcopy: as soon as all memory has gone over once'],
    [
      '--postcopy-resume',
      'with --postcopy: go on with a migration that was interrupted in that phase, and wait for its end',
    ],
    ['--postcopy-bandwidth <rate>', 'MiB/s for memory that follows; default: no limit'],
    ['--release-ram', 'with --postcopy: free memory here as soon as it has gone over'],
    ['--unsafe', 'even where the caches of disks make it unsafe'],
    ['--change-protection', 'taken for the sake of virsh: a domain that moves is protected'],
    ['--abort-on-error', 'abort when a disk has an I/O error'],
    ['--auto-converge', 'slow the guest down until its memory can be copied'],
    ['--compressed', 'compress memory'],
    ['--comp-methods <method>', "how: 'xbzrle'"],
    [
      '--comp-xbzrle-cache <bytes>',
      'bytes of pages that it keeps to compare with, a power of two; or a number with K, M or G',
    ],
    [
      '--transport <name>',
      "how memory goes over: 'plain' (the default), 'zstd' (compressed), 'auto' (on links that are slower than that) or 'xbzrle'",
    ],
    ['--tls', 'refuse a connection that is not encrypted, as all of virstream+tls:// are'],
    ['--bandwidth <rate>', 'MiB/s for memory, or a number with K, M or G; default: no limit'],
    ['--disk-bandwidth <rate>', 'with --stream-disks: MiB/s for each disk; default: no limit'],
    ['--disk-engine <name>', "with --stream-disks: 'job', 'pull' or 'auto' as in stream-disk"],
    [
      '--write-back',
      'with --stream-disks: what the guest writes there is written here, too, until all has gone over: the domain survives the loss of the destination',
    ],
    ['--external', 'with --stream-disks: serve the disks by a program of its own, for a QEMU that cannot stay'],
    ['--downtime <ms>', 'how long the guest may stand still; default: 300'],
    ['--timeout <seconds>', 'with --live: suspend the guest if it has not moved after so long, so that it does'],
    ['--timeout-suspend', 'that is what --timeout does anyway'],
    ['--timeout-postcopy', 'with --postcopy: after --timeout let it run there, its memory follows'],
    ['--migrateuri <uri>', 'where the hosts find each other, if not at <desturi>'],
    ['--xml <file>', 'definition for the destination, with other paths; the same hardware'],
    [
      '--persistent-xml <file>',
      'with --persistent: definition to keep there; default: that of here, its disks where they went',
    ],
    ['--dname <name>', 'name at the destination'],
    ['--wait', 'with --stream-disks: wait until the disks are there, too'],
    ['--verbose', 'show how far memory and disks are: bars on a terminal, lines elsewhere'],
  ],
  description: [
    'Without an option for disks both hosts share their images. With --stream-disks nothing is copied first: the guest runs at the destination within seconds, reads there what it needs over the network, and the rest follows in the background. Until all is there the domain here is paused and serves its images; then it is shut off.',
    'Without --wait the command ends when the guest runs there. Where a root of this host is involved (qemu:///embed), a virstreamd is started on it if none serves it, and ends by itself when all is done.',
    'Ctrl-C before the guest has moved aborts the migration, and the guest goes on here. Afterwards it lets go: the disks go on, and it says how to see them and how to go back.',
  ],
  examples: [
    ['migrate web1 virstream+tls://host2/ --live --stream-disks --wait --verbose', 'move it with its disks, and watch'],
    ['migrate web1 virstream+tls://host2/ --live', 'move a guest whose images are shared'],
  ],
  exit: [[String(DETACHED), 'Ctrl-C after the guest has moved; its disks go on']],
  seeAlso: ['domjobinfo', 'domjobabort', 'migrate-postcopy', 'migrate-setspeed', 'migrate-rollback', 'stream-info'],
  run: (context, [what = '', uri = ''], options) => migrate(context, what, uri, options),
}
