/** Commands that change a migration while it is under way, or those to come. */
import * as c from '../constants.gen.js'
import { formatSize } from './output.js'
import { domainArgument } from './spec.js'
import type { CommandSpec } from './spec.js'
import { parseBandwidth, parseCount } from './values.js'

const MIB = 1024 * 1024

const seeAlso = ['migrate', 'domjobinfo']
const postcopyOption = ['--postcopy', 'of the phase in which memory follows its guest'] as const
const speedFlags = (postcopy: boolean): number => (postcopy ? c.VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY : 0)

const postcopyCommand: CommandSpec = {
  name: 'migrate-postcopy',
  group: 'Migration',
  summary: 'let a guest that is on its way run at the destination now',
  arguments: [domainArgument],
  options: [],
  description: [
    'Ends the copying of memory in a migration that was begun with --postcopy: the guest runs at the destination at once, what it lacks of its memory follows. To be asked where the domain comes from. From then on the migration cannot be aborted.',
  ],
  examples: [['migrate-postcopy web1', 'web1 runs there within a second']],
  seeAlso,
  async run(context, [what = '']) {
    const domain = await context.domain(what)
    const failure = `Failed to switch the migration of domain '${domain.name}' to post-copy`
    await context.attempt(failure, () => domain.migrateStartPostCopy())
    return undefined
  },
}

const setDowntimeCommand: CommandSpec = {
  name: 'migrate-setmaxdowntime',
  group: 'Migration',
  summary: 'set how long a moving guest may stand still',
  arguments: [domainArgument, ['<downtime>', 'milliseconds']],
  options: [],
  description: ['For a migration that is under way, and those to come as long as the domain runs.'],
  examples: [['migrate-setmaxdowntime web1 1000', 'a second will do']],
  seeAlso: ['migrate-getmaxdowntime', ...seeAlso],
  async run(context, [what = '', downtime = '']) {
    const ms = parseCount('downtime', downtime, 1)
    const domain = await context.domain(what)
    const failure = `Failed to set the downtime of domain '${domain.name}'`
    await context.attempt(failure, () => domain.migrateSetMaxDowntime(ms))
    return undefined
  },
}

const getDowntimeCommand: CommandSpec = {
  name: 'migrate-getmaxdowntime',
  group: 'Migration',
  summary: 'tell how long a moving guest may stand still',
  arguments: [domainArgument],
  options: [],
  description: ['Prints milliseconds.'],
  examples: [['migrate-getmaxdowntime web1', '300, unless it was set']],
  seeAlso: ['migrate-setmaxdowntime', ...seeAlso],
  async run(context, [what = '']) {
    const domain = await context.domain(what)
    const failure = `Failed to get the downtime of domain '${domain.name}'`
    context.print(String(await context.attempt(failure, () => domain.migrateGetMaxDowntime())))
    return undefined
  },
}

const setSpeedCommand: CommandSpec = {
  name: 'migrate-setspeed',
  group: 'Migration',
  summary: 'set how fast the memory of a migration may go',
  arguments: [domainArgument, ['<bandwidth>', 'MiB/s, or a number with K, M or G; 0: no limit']],
  options: [postcopyOption],
  description: ['For a migration that is under way, and those to come that do not say so themselves.'],
  examples: [['migrate-setspeed web1 100', '100 MiB/s']],
  seeAlso: ['migrate-getspeed', ...seeAlso],
  async run(context, [what = '', bandwidth = ''], options) {
    const bytes = parseBandwidth(bandwidth, false)
    const speed = bytes === 0 ? 0 : Math.max(1, Math.round(bytes / MIB))
    const domain = await context.domain(what)
    const failure = `Failed to set the speed of domain '${domain.name}'`
    await context.attempt(failure, () => domain.migrateSetMaxSpeed(speed, speedFlags(options.flag('postcopy'))))
    return undefined
  },
}

const getSpeedCommand: CommandSpec = {
  name: 'migrate-getspeed',
  group: 'Migration',
  summary: 'tell how fast the memory of a migration may go',
  arguments: [domainArgument],
  options: [postcopyOption],
  description: ['Prints MiB/s; a very large number, or 0 with --postcopy, where there is no limit.'],
  examples: [['migrate-getspeed web1', 'as it was set']],
  seeAlso: ['migrate-setspeed', ...seeAlso],
  async run(context, [what = ''], options) {
    const domain = await context.domain(what)
    const failure = `Failed to get the speed of domain '${domain.name}'`
    const flags = speedFlags(options.flag('postcopy'))
    context.print(String(await context.attempt(failure, () => domain.migrateGetMaxSpeed(flags))))
    return undefined
  },
}

const cacheCommand: CommandSpec = {
  name: 'migrate-compcache',
  group: 'Migration',
  summary: 'tell or set how much of memory compression keeps',
  arguments: [domainArgument],
  options: [['--size <bytes>', 'bytes from now on, or a number with K, M or G; a power of two']],
  description: [
    'Prints the size of the cache in which migrate --compressed keeps pages to compare with, after it has been set if that is asked for. For a migration that is under way, and those to come as long as the domain runs.',
  ],
  examples: [['migrate-compcache web1 --size 268435456', '256 MiB']],
  seeAlso,
  async run(context, [what = ''], options) {
    const size = options.bytes('size')
    const domain = await context.domain(what)
    if (size !== undefined) {
      const failure = `Failed to set the compression cache of domain '${domain.name}'`
      await context.attempt(failure, () => domain.migrateSetCompressionCache(size))
    }
    const failure = `Failed to get the compression cache of domain '${domain.name}'`
    const bytes = await context.attempt(failure, () => domain.migrateGetCompressionCache())
    context.print(`Compression cache: ${formatSize(bytes)}`)
    return undefined
  },
}

export const migrateControlCommands: readonly CommandSpec[] = [
  postcopyCommand,
  setDowntimeCommand,
  getDowntimeCommand,
  setSpeedCommand,
  getSpeedCommand,
  cacheCommand,
]
