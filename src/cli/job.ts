/** Commands about what is being done to a domain as a whole: a migration. */
import * as c from '../constants.gen.js'
import type { DomainJobStats } from '../driver.js'
import type { Domain } from '../api/domain.js'
import { VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST } from '../stream-flags.js'
import { CommandError } from './context.js'
import type { Context } from './context.js'
import { formatSize } from './output.js'
import { domainArgument, jsonOption } from './spec.js'
import type { CommandSpec } from './spec.js'
import type { Values } from './values.js'

const types: Readonly<Record<number, string>> = {
  [c.VIR_DOMAIN_JOB_NONE]: 'None',
  [c.VIR_DOMAIN_JOB_BOUNDED]: 'Bounded',
  [c.VIR_DOMAIN_JOB_UNBOUNDED]: 'Unbounded',
  [c.VIR_DOMAIN_JOB_COMPLETED]: 'Completed',
  [c.VIR_DOMAIN_JOB_FAILED]: 'Failed',
  [c.VIR_DOMAIN_JOB_CANCELLED]: 'Cancelled',
}

const operations: Readonly<Record<number, string>> = {
  [c.VIR_DOMAIN_JOB_OPERATION_START]: 'Start',
  [c.VIR_DOMAIN_JOB_OPERATION_SAVE]: 'Save',
  [c.VIR_DOMAIN_JOB_OPERATION_RESTORE]: 'Restore',
  [c.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN]: 'Incoming migration',
  [c.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT]: 'Outgoing migration',
  [c.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT]: 'Snapshot',
  [c.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_REVERT]: 'Snapshot revert',
  [c.VIR_DOMAIN_JOB_OPERATION_DUMP]: 'Dump',
  [c.VIR_DOMAIN_JOB_OPERATION_BACKUP]: 'Backup',
  [c.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_DELETE]: 'Snapshot delete',
}

/** How many bytes of memory one on the link stands for. */
function ratioOf({ memProcessed, transportBytes = 0 }: DomainJobStats): number | undefined {
  return transportBytes === 0 ? undefined : memProcessed / transportBytes
}

/** What virsh prints of a job, and a line for each disk that moves with the domain. */
export function jobLines(stats: DomainJobStats): string[] {
  const { type } = stats
  const line = (title: string, value: string): string => `${`${title}:`.padEnd(17)} ${value}`
  const first = line('Job type', (types[type] ?? 'Unknown').padEnd(12))
  if (type === c.VIR_DOMAIN_JOB_NONE) return [first]
  const size = (title: string, bytes: number): string => line(title, formatSize(bytes))
  const optional = (title: string, value: number | undefined, text: (value: number) => string): string[] =>
    value === undefined ? [] : [line(title, text(value))]
  const ms = (value: number): string => `${String(value).padEnd(12)} ms`
  const over = type !== c.VIR_DOMAIN_JOB_BOUNDED && type !== c.VIR_DOMAIN_JOB_UNBOUNDED
  const amounts = (title: string, total: number, processed: number, remaining: number): string[] =>
    total === 0
      ? []
      : [size(`${title} processed`, processed), size(`${title} remaining`, remaining), size(`${title} total`, total)]
  return [
    first,
    line('Operation', operations[stats.operation] ?? 'Unknown'),
    line('Time elapsed', ms(stats.timeElapsed)),
    ...amounts('Data', stats.dataTotal, stats.dataProcessed, stats.dataRemaining),
    ...amounts('Memory', stats.memTotal, stats.memProcessed, stats.memRemaining),
    ...optional('Memory bandwidth', stats.memBps, (bps) => `${formatSize(bps)}/s`),
    ...optional('Iteration', stats.memIteration, String),
    ...optional('Postcopy requests', stats.memPostcopyRequests, String),
    ...(stats.transport === undefined ? [] : [line('Transport', stats.transport)]),
    ...optional('Data on link', stats.transportBytes, formatSize),
    ...optional('Compression', ratioOf(stats), (ratio) => `${ratio.toFixed(1)} : 1`),
    ...amounts('File', stats.diskTotal, stats.diskProcessed, stats.diskRemaining),
    ...stats.disks.map(({ disk, offset, size: all }) =>
      line(`Disk ${disk}`, `${formatSize(offset)} of ${formatSize(all)}`),
    ),
    ...optional(over ? 'Total downtime' : 'Expected downtime', stats.downtime, ms),
    ...optional('Compression cache', stats.compressionCache, formatSize),
    ...optional('Compressed data', stats.compressionBytes, formatSize),
    ...optional('Compressed pages', stats.compressionPages, String),
    ...optional('Compression cache misses', stats.compressionCacheMisses, String),
    ...optional('Compression overflows', stats.compressionOverflow, String),
    ...(stats.error === undefined ? [] : [line('Error message', stats.error)]),
  ]
}

async function jobInfo(context: Context, what: string, options: Values): Promise<undefined> {
  const domain = await context.domain(what)
  const keep = options.flag('keep-completed') ? c.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED : 0
  const completed = options.flag('completed') || keep !== 0 ? c.VIR_DOMAIN_JOB_STATS_COMPLETED : 0
  const failure = `Failed to get the job of domain '${domain.name}'`
  const stats = await context.attempt(failure, () => domain.getJobStats(completed | keep))
  if (options.flag('json')) context.printJson(stats)
  else context.print(...jobLines(stats))
  if (!options.flag('json')) context.say('')
  return undefined
}

const jobInfoCommand: CommandSpec = {
  name: 'domjobinfo',
  group: 'Migration',
  summary: 'tell how far the job of a domain is',
  arguments: [domainArgument],
  options: [
    ['--completed', 'of the last job that has ended; it is forgotten then'],
    ['--keep-completed', 'the same, and it is not forgotten'],
    jsonOption,
  ],
  description: [
    'Prints what is being done to the domain as a whole: its kind, how long it has taken, how much memory and how much of each disk has gone over, and how long the guest stands still.',
  ],
  examples: [['domjobinfo web1', 'how far the migration of web1 is']],
  seeAlso: ['migrate', 'domjobabort', 'stream-info'],
  run: (context, [what = ''], options) => jobInfo(context, what, options),
}

const jobAbortCommand: CommandSpec = {
  name: 'domjobabort',
  group: 'Migration',
  summary: 'abort the job of a domain',
  arguments: [domainArgument],
  options: [['--postcopy', 'interrupt the post-copy phase of memory; the migration can be resumed afterwards']],
  description: [
    'Aborts a migration; to be asked where the domain comes from. Before the guest has moved it goes on there as if nothing had been. While its disks are still being streamed to the destination it comes back, with all that it has written since, see migrate-rollback.',
  ],
  examples: [['domjobabort web1', 'web1 stays here']],
  seeAlso: ['migrate', 'domjobinfo', 'migrate-rollback'],
  async run(context, [what = ''], options) {
    const domain = await context.domain(what)
    const flags = options.flag('postcopy') ? c.VIR_DOMAIN_ABORT_JOB_POSTCOPY : 0
    await context.attempt(`Failed to abort the job of domain '${domain.name}'`, () => domain.abortJob(flags))
    return undefined
  },
}

const moved: readonly number[] = [c.VIR_DOMAIN_PAUSED_POSTCOPY, c.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED]

async function giveUpDestination(context: Context, domain: Domain): Promise<undefined> {
  const failure = `Failed to give up the destination of domain '${domain.name}'`
  await context.whole(failure, () => domain.abortJob(VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST))
  context.say(`The destination of domain '${domain.name}' was given up`, '')
  return undefined
}

const rollbackCommand: CommandSpec = {
  name: 'migrate-rollback',
  group: 'Migration',
  summary: 'let a guest come back whose disks are still on their way',
  arguments: [domainArgument],
  options: [
    [
      '--destination-is-lost',
      'the destination will not come back: the domain is shut off here, with its disks as they were when the guest left',
    ],
  ],
  description: [
    'Ends a migration with --stream-disks after the guest has moved and before all of its disks have: the guest stops at the destination, what it has written there is written to the images here, and it goes on here. To be asked where the domain came from; the destination must be reachable.',
    'A destination that is lost for good can be given up with --destination-is-lost: what the guest has written there is lost with it, and the domain can be started here again. Should that host come back after all, it is told so and pauses its guest.',
  ],
  examples: [
    ['migrate-rollback web1', 'web1 comes back'],
    ['migrate-rollback web1 --destination-is-lost', 'web1 can be started here again, as it was when it left'],
  ],
  seeAlso: ['migrate', 'domjobabort', 'domjobinfo'],
  async run(context, [what = ''], options) {
    const domain = await context.domain(what)
    if (options.flag('destination-is-lost')) return giveUpDestination(context, domain)
    const failure = `Failed to bring domain '${domain.name}' back`
    const { state, reason } = await context.attempt(failure, () => domain.getState())
    if (state !== c.VIR_DOMAIN_PAUSED || !moved.includes(reason))
      throw new CommandError(`Domain '${domain.name}' is not at another host with its disks still here`)
    await context.whole(failure, () => domain.abortJob())
    context.say(`Domain '${domain.name}' is back`, '')
    return undefined
  },
}

export const jobCommands: readonly CommandSpec[] = [jobInfoCommand, jobAbortCommand, rollbackCommand]
