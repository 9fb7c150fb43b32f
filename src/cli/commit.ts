/** virsh's blockcommit. */
import { resolveDisk } from '../api/disk-names.js'
import type { Domain } from '../api/domain.js'
import type { DomainEvents } from '../api/event-hub.js'
import * as c from '../constants.gen.js'
import type { DomainBlockJobInfo } from '../driver.js'
import { CommandError, type Context } from './context.js'
import { DETACHED, interrupted, late } from './follow.js'
import { makeView, quietView } from './progress.js'
import { bandwidthMeaning, diskArgument, domainArgument } from './spec.js'
import type { CommandSpec } from './spec.js'
import { parseBandwidth } from './values.js'
import type { Values } from './values.js'

/** ms between two looks at the position */
const LOOK_INTERVAL = 1000

const flagOptions: readonly (readonly [string, number])[] = [
  ['shallow', c.VIR_DOMAIN_BLOCK_COMMIT_SHALLOW],
  ['delete', c.VIR_DOMAIN_BLOCK_COMMIT_DELETE],
  ['active', c.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE],
  ['keep-relative', c.VIR_DOMAIN_BLOCK_COMMIT_RELATIVE],
]

function flagsOf(options: Values): number {
  const concludes = options.flag('pivot') || options.flag('keep-overlay')
  const given = flagOptions.flatMap(([name, flag]) => (options.flag(name) ? [flag] : []))
  const all = [...given, ...(concludes ? [c.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE] : [])]
  return all.reduce((flags, flag) => flags | flag, c.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES)
}

interface Commit {
  context: Context
  domain: Domain
  disk: string
  /** target of the disk */
  target: string
  events: DomainEvents<'block-job'>
  options: Values
  label: string
}

/** Until the job is ready, or over. VIR_DOMAIN_BLOCK_JOB_*; undefined: it is over without a word. */
async function statusOf({ target, events }: Commit): Promise<{ status: number; error?: string } | undefined> {
  for await (const event of events) if (event.kind === 'block-job' && event.disk === target) return event
  return undefined
}

async function waitFor(commit: Commit): Promise<number | undefined> {
  const { context, domain, disk, options, label } = commit
  const view = options.flag('verbose') ? makeView(context, label, false) : quietView
  const show = (info: DomainBlockJobInfo | undefined): void => {
    if (info !== undefined) view.at({ offset: info.cur, size: info.end })
  }
  const look = (): void => {
    domain.blockJobInfo(disk).then(show, () => undefined)
  }
  const looking = setInterval(look, LOOK_INTERVAL)
  const ended = new AbortController()
  try {
    const end = await Promise.race([
      statusOf(commit),
      interrupted(context, ended.signal),
      late(options.seconds('timeout'), ended.signal),
    ])
    clearInterval(looking)
    view.end()
    if (end === 'interrupted') return detached(commit)
    if (end === 'late') return await abort(commit)
    await conclude(commit, end)
    return undefined
  } finally {
    clearInterval(looking)
    ended.abort()
    view.end()
  }
}

function detached({ context, domain, disk, options }: Commit): number {
  context.err.line(`Detached: the commit of disk '${disk}' goes on.`)
  context.err.line(`See it:   ${context.program} blockjob ${domain.name} ${disk}`)
  if ((flagsOf(options) & c.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE) !== 0)
    context.err.line(`Pivot:    ${context.program} blockjob ${domain.name} ${disk} --pivot`)
  context.err.line(`Stop it:  ${context.program} blockjob ${domain.name} ${disk} --abort`)
  return DETACHED
}

async function abort({ context, domain, disk, options, label }: Commit): Promise<never> {
  const flags = options.flag('async') ? c.VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC : 0
  await context.attempt(`Failed to abort the job of disk '${disk}'`, () => domain.blockJobAbort(disk, flags))
  throw new CommandError(`${label} aborted after ${options.text('timeout') ?? ''} s; the disk has all its images`)
}

async function conclude(
  { context, domain, disk, options, label }: Commit,
  end: { status: number; error?: string } | undefined,
): Promise<void> {
  if (end?.status === c.VIR_DOMAIN_BLOCK_JOB_COMPLETED) context.say('Commit complete')
  else if (end?.status !== c.VIR_DOMAIN_BLOCK_JOB_READY)
    throw new CommandError(`${label} of disk '${disk}' failed: ${end?.error ?? 'it was aborted'}`)
  else if (options.flag('pivot')) {
    await context.attempt(`failed to pivot job for disk ${disk}`, () =>
      domain.blockJobAbort(disk, c.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT),
    )
    context.say('Successfully pivoted')
  } else if (options.flag('keep-overlay')) {
    await context.attempt(`failed to finish job for disk ${disk}`, () => domain.blockJobAbort(disk))
    context.say('Commit complete, overlay image kept')
  } else context.say('Now in synchronized phase')
}

export const blockcommitCommand: CommandSpec = {
  name: 'blockcommit',
  group: 'Disks and streams',
  summary: 'write what images hold into one below them',
  arguments: [domainArgument, diskArgument, ['[bandwidth]', `${bandwidthMeaning}; 0: no limit`]],
  options: [
    ['--bandwidth <number>', 'the same, not as an argument; default: no limit'],
    ['--bytes', 'the bandwidth is in bytes/s'],
    ['--base <image>', 'the image that is written to; default: the last of the chain'],
    ['--shallow', 'the one right below the top one'],
    ['--top <image>', "the topmost of those that are committed; default: the disk's own"],
    ['--active', "commit the disk's own image; it needs --pivot in the end, or blockjob --pivot"],
    ['--delete', 'delete the files of images that are no longer used'],
    ['--keep-relative', 'the image above names its new base by a relative path, as all did before'],
    ['--wait', 'wait until all is written'],
    ['--verbose', 'with --wait: show the progress'],
    ['--timeout <seconds>', 'with --wait: abort the commit after so many seconds'],
    ['--async', 'with --timeout: do not wait for the end of an aborted commit'],
    ['--pivot', "implies --active --wait: when all is written the base becomes the disk's image"],
    ['--keep-overlay', 'implies --active --wait: when all is written the job ends, and the disk keeps its image'],
  ],
  description: [
    "Writes what the images from the top one down to the one above the base hold into the base, while the domain runs; then the disk does without them. An image is a path, or 'vda[3]' by the index that dumpxml shows.",
    "The disk's own image is written to by the guest all the time. So a commit of it stays when all is written, and keeps up with the guest, until blockjob --pivot makes the base the disk's image or blockjob --abort leaves all as it was.",
    'Other disks that have one of these images below them would read garbage afterwards: QEMU refuses a base that a running guest uses, nobody knows of others.',
    'Ctrl-C while waiting lets go of the commit, which goes on.',
  ],
  examples: [
    ['blockcommit web1 vda --active --pivot --delete', 'vda does with its base alone from now on'],
    ['blockcommit web1 vda --top /images/snap2.qcow2 --base /images/snap1.qcow2 --wait', 'one image less in between'],
  ],
  exit: [[String(DETACHED), 'Ctrl-C while waiting; the commit goes on']],
  seeAlso: ['blockjob', 'blockpull', 'domblklist'],
  async run(context, [what = '', disk = '', argument], options) {
    options.exclusive('pivot', 'keep-overlay')
    const flags = flagsOf(options)
    const wait = ['wait', 'pivot', 'keep-overlay'].some((name) => options.flag(name))
    if (!wait) options.require('--wait', 'timeout', 'verbose', 'async')
    options.seconds('timeout')
    const bandwidth = parseBandwidth(argument ?? options.text('bandwidth'), options.flag('bytes'))
    const domain = await context.domain(what)
    const label = (flags & c.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE) === 0 ? 'Block Commit' : 'Active Block Commit'
    const target = await resolveDisk(domain, disk)
    const events = (await context.connection()).domainEvents({ domain, kinds: ['block-job'] })
    try {
      await context.attempt(`Failed to commit disk '${disk}' of domain '${domain.name}'`, () =>
        domain.blockCommit(disk, options.text('base'), options.text('top'), bandwidth, flags),
      )
      if (wait) return await waitFor({ context, domain, disk, target, events, options, label })
    } finally {
      events.close()
    }
    context.say(`${label} started`, '')
    return undefined
  },
}
