/** virsh's commands for block jobs. */
import type { Domain } from '../api/domain.js'
import * as c from '../constants.gen.js'
import type { Context } from './context.js'
import { DETACHED, follow } from './follow.js'
import { bandwidthMeaning, diskArgument, domainArgument, jsonOption } from './spec.js'
import type { CommandSpec } from './spec.js'
import { parseBandwidth, UsageError } from './values.js'
import type { Values } from './values.js'
import { jobTypeWord } from './words.js'

async function pullAndWait(
  context: Context,
  domain: Domain,
  disk: string,
  options: Values,
  bandwidth: number,
): Promise<number | undefined> {
  const base = options.text('base')
  const failed = `Failed to pull disk '${disk}' of domain '${domain.name}'`
  const stream = await context.attempt(failed, () =>
    domain.stream(disk, { ...(bandwidth > 0 && { bandwidth }), ...(base !== undefined && { base }) }),
  )
  const { name } = domain
  return follow(context, stream, {
    label: 'Block Pull',
    progress: options.flag('verbose'),
    json: false,
    timeout: options.seconds('timeout'),
    async: options.flag('async'),
    done: 'Pull complete',
    failed,
    comeBack: [
      `See it:   ${context.program} blockjob ${name} ${stream.disk}`,
      `Stop it:  ${context.program} blockjob ${name} ${stream.disk} --abort`,
    ],
  })
}

const blockpullCommand: CommandSpec = {
  name: 'blockpull',
  group: 'Disks and streams',
  summary: 'populate a disk from its backing images',
  arguments: [domainArgument, diskArgument, ['[bandwidth]', `${bandwidthMeaning}; 0: no limit`]],
  options: [
    ['--bandwidth <number>', 'the same, not as an argument; default: no limit'],
    ['--bytes', 'the bandwidth is in bytes/s'],
    ['--base <path>', 'keep this image of the backing chain as backing image; default: none is kept'],
    ['--wait', 'wait for the end'],
    ['--verbose', 'with --wait: show the progress'],
    ['--timeout <seconds>', 'with --wait: abort the pull after so many seconds'],
    ['--async', 'with --timeout: do not wait for the end of an aborted pull'],
  ],
  description: [
    'The same stream as stream-disk starts, in the words of virsh. Unlike there, Ctrl-C while waiting lets go of the pull, which goes on.',
  ],
  examples: [
    ['blockpull web1 vda --wait --verbose', 'pull all of vda and watch'],
    ['blockpull web1 vda 20', 'in the background, at most 20 MiB/s'],
    ['blockpull web1 vda --base /images/golden.qcow2', 'keep golden.qcow2 as backing image'],
  ],
  exit: [[String(DETACHED), 'Ctrl-C while waiting; the pull goes on']],
  seeAlso: ['blockjob', 'stream-disk'],
  async run(context, [what = '', disk = '', argument], options) {
    if (!options.flag('wait')) options.require('--wait', 'timeout', 'verbose', 'async')
    options.seconds('timeout')
    const bandwidth = parseBandwidth(argument ?? options.text('bandwidth'), options.flag('bytes'))
    const domain = await context.domain(what)
    if (options.flag('wait')) return pullAndWait(context, domain, disk, options, bandwidth)
    const base = options.text('base')
    await context.attempt(`Failed to pull disk '${disk}' of domain '${domain.name}'`, () =>
      base === undefined
        ? domain.blockPull(disk, bandwidth, c.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
        : domain.blockRebase(disk, base, bandwidth, c.VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES),
    )
    context.say('Block Pull started', '')
    return undefined
  },
}

async function showJob(context: Context, domain: Domain, disk: string, options: Values): Promise<void> {
  const failure = `Failed to get the job of disk '${disk}' of domain '${domain.name}'`
  const flags = c.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES
  const info = await context.attempt(failure, () => domain.blockJobInfo(disk, flags))
  if (options.flag('json')) {
    context.printJson(info === undefined ? null : { ...info, type: jobTypeWord(info.type) })
    return
  }
  if (info === undefined) {
    if (!options.flag('raw')) context.say(`No current block job for ${disk}`, '')
    return
  }
  const { cur, end, bandwidth } = info
  const type = jobTypeWord(info.type)
  if (options.flag('raw')) {
    const limit = options.flag('bytes') ? bandwidth : Math.ceil(bandwidth / (1024 * 1024))
    context.print(` type=${type}`, ` bandwidth=${limit}`, ` cur=${cur}`, ` end=${end}`)
    return
  }
  const done = end === 0 ? 100 : Math.floor((cur / end) * 100)
  const limit =
    bandwidth === 0 ? '' : `    Bandwidth limit: ${bandwidth} bytes/s (${(bandwidth / (1024 * 1024)).toFixed(3)} MiB/s)`
  context.print(`${type}: [${String(done).padStart(3)} %]${limit}`)
}

async function abortJob(context: Context, domain: Domain, disk: string, options: Values): Promise<void> {
  const flags =
    (options.flag('async') ? c.VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC : 0) |
    (options.flag('pivot') ? c.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT : 0)
  const what = options.flag('pivot') ? 'conclude' : 'abort'
  await context.attempt(`Failed to ${what} the job of disk '${disk}' of domain '${domain.name}'`, () =>
    domain.blockJobAbort(disk, flags),
  )
}

const blockjobCommand: CommandSpec = {
  name: 'blockjob',
  group: 'Disks and streams',
  summary: 'tell of, limit or abort the block job of a disk',
  arguments: [domainArgument, diskArgument, ['[bandwidth]', `set the limit: ${bandwidthMeaning}; 0: no limit`]],
  options: [
    ['--info', 'tell how far the job is (the default)'],
    ['--raw', 'as --info, but as names and values'],
    ['--bytes', 'bandwidths are in bytes/s'],
    ['--abort', 'abort the job; what was copied stays'],
    ['--async', 'as --abort, but do not wait for its end'],
    ['--pivot', 'as --abort, but conclude a copy or commit job'],
    ['--bandwidth <number>', 'set the limit, not as an argument'],
    jsonOption,
  ],
  description: ['Tells of the block job of a disk, a stream for example, sets its limit or aborts it.'],
  examples: [
    ['blockjob web1 vda', 'how far the job of vda is'],
    ['blockjob web1 vda 20', 'at most 20 MiB/s from now on'],
    ['blockjob web1 vda --abort', 'abort it'],
  ],
  seeAlso: ['blockpull', 'blockcommit', 'stream-info'],
  async run(context, [what = '', disk = '', argument], options) {
    const limit = argument ?? options.text('bandwidth')
    const abort = ['abort', 'async', 'pivot'].some((name) => options.flag(name))
    const info = ['info', 'raw'].some((name) => options.flag(name))
    if ([limit !== undefined, abort, info].filter(Boolean).length > 1)
      throw new UsageError('conflict between abort, info, and bandwidth modes')
    const domain = await context.domain(what)
    if (abort) await abortJob(context, domain, disk, options)
    else if (limit === undefined) await showJob(context, domain, disk, options)
    else {
      const bandwidth = parseBandwidth(limit, options.flag('bytes'))
      const failure = `Failed to set the bandwidth of the job of disk '${disk}' of domain '${domain.name}'`
      const flags = c.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES
      await context.attempt(failure, () => domain.blockJobSetSpeed(disk, bandwidth, flags))
    }
    return undefined
  },
}

export const blockJobCommands: readonly CommandSpec[] = [blockpullCommand, blockjobCommand]
