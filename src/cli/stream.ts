/** Commands that stream disks. */
import type { Domain } from '../api/domain.js'
import { disksIn, findSeen } from '../conf/glance.js'
import type { StreamDiskState, StreamEngine, StreamOptions } from '../driver.js'
import { VIR_STREAM_DISK_ONE, VIR_STREAM_DISK_START, VIR_STREAM_DISK_STOP } from '../stream-flags.js'
import type { Context } from './context.js'
import { DETACHED, follow } from './follow.js'
import { formatSize, formatTable } from './output.js'
import { diskArgument, domainArgument, jsonOption } from './spec.js'
import type { CommandSpec } from './spec.js'
import { parseBandwidth, UsageError } from './values.js'
import type { Values } from './values.js'

function streamOptions(options: Values): StreamOptions {
  const bandwidth = parseBandwidth(options.text('bandwidth'), options.flag('bytes'))
  const base = options.text('base')
  const engine = options.text('engine')
  const timeout = options.count('base-timeout')
  const weight = options.count('weight')
  return {
    ...(bandwidth > 0 && { bandwidth }),
    ...(weight !== undefined && { weight }),
    ...(base !== undefined && { base }),
    ...(timeout !== undefined && { baseTimeout: timeout }),
    ...(options.flag('idle') && { policy: 'idle' as const }),
    // what is no engine is refused below, with the names of those that are
    ...(engine !== undefined && { engine: engine as StreamEngine | 'auto' }),
  }
}

/** Has the disk a medium, but no backing image (any more)? */
async function isWhole(domain: Domain, name: string): Promise<boolean> {
  const source = findSeen(disksIn(await domain.getXMLDesc()), name)?.source
  return source !== undefined && !source.backingStore
}

async function waitFor(context: Context, domain: Domain, disk: string, options: Values): Promise<number | undefined> {
  const attach = options.flag('attach')
  if (attach && (await isWhole(domain, disk))) {
    if (options.flag('json')) context.printJson({ streaming: false })
    else context.say(`Disk '${disk}' needs no backing image, nothing is left to stream`)
    return undefined
  }
  const failed = `Failed to stream disk '${disk}' of domain '${domain.name}'`
  const stream = await context.attempt(failed, () =>
    attach ? domain.attachStream(disk) : domain.stream(disk, streamOptions(options)),
  )
  const { name } = domain
  return follow(context, stream, {
    label: `Stream of disk '${stream.disk}'`,
    progress: !context.quiet,
    json: options.flag('json'),
    timeout: options.seconds('timeout'),
    async: false,
    done: `Stream of disk '${stream.disk}' complete`,
    failed,
    comeBack: [
      `See it:     ${context.program} stream-info ${name}`,
      `Follow it:  ${context.program} stream-disk ${name} ${stream.disk} --attach --wait`,
      `Stop it:    ${context.program} stream-disk ${name} ${stream.disk} --stop`,
    ],
  })
}

async function one(context: Context, domain: Domain, disk: string, options: Values): Promise<void> {
  const offset = options.bytes('offset') ?? 0
  const failure = `Failed to stream a unit of disk '${disk}' of domain '${domain.name}'`
  const unit = options.bytes('unit')
  const how = unit === undefined ? {} : { unit }
  const next = await context.attempt(failure, () => domain.streamDisk(disk, offset, VIR_STREAM_DISK_ONE, how))
  if (options.flag('json')) context.printJson({ offset: next })
  else context.print(String(next))
}

async function startOrStop(context: Context, domain: Domain, disk: string, options: Values): Promise<void> {
  const stop = options.flag('stop')
  const failure = `Failed to ${stop ? 'stop the stream of' : 'stream'} disk '${disk}' of domain '${domain.name}'`
  await context.attempt(failure, () =>
    stop
      ? domain.streamDisk(disk, 0, VIR_STREAM_DISK_STOP)
      : domain.streamDisk(disk, 0, VIR_STREAM_DISK_START, streamOptions(options)),
  )
  if (options.flag('json')) context.printJson({ disk, streaming: !stop })
  else context.say(`Stream of disk '${disk}' ${stop ? 'stopped' : 'started'}`, '')
}

async function setBase(context: Context, domain: Domain, disk: string, options: Values): Promise<void> {
  const [base = '', image] = [options.text('new-base'), options.text('base')]
  const failure = `Failed to give disk '${disk}' of domain '${domain.name}' the base '${base}'`
  await context.attempt(failure, () => domain.streamDiskSetBase(disk, base, image === undefined ? {} : { image }))
  if (options.flag('json')) context.printJson({ disk, base })
  else context.say(`Disk '${disk}' reads from base '${base}'`, '')
}

/** What a stream is begun with; the base too, which also says what --new-base replaces. */
const beginnings = ['bandwidth', 'bytes', 'weight', 'idle', 'engine', 'base-timeout', 'base']

function checkUsage(options: Values): void {
  const others = ['stop', 'one', 'attach', 'new-base']
  options.exclusive('start', ...others)
  const other = others.find((name) => options.given(name))
  const wait = options.flag('wait')
  if (wait && other !== undefined && other !== 'attach')
    throw new UsageError('option --wait goes with a whole stream, not with --stop, --one or --new-base')
  const lost = beginnings.find((name) => options.given(name) && !(name === 'base' && other === 'new-base'))
  if (other !== undefined && lost !== undefined)
    throw new UsageError(`option --${lost} goes with a stream that begins, not with --${other}`)
  if (!wait) options.require('--wait', 'timeout', 'attach')
  if (other !== 'one') options.require('--one', 'offset', 'unit')
  options.seconds('timeout')
}

const streamDiskCommand: CommandSpec = {
  name: 'stream-disk',
  group: 'Disks and streams',
  summary: 'copy a disk from its backing images while the guest runs',
  arguments: [domainArgument, diskArgument],
  options: [
    ['--start', 'stream the whole disk in the background (the default)'],
    ['--stop', 'stop the stream; what was copied stays, and a new stream goes on from there'],
    ['--one', 'stream one unit, and print the offset of the next'],
    ['--offset <bytes>', 'with --one: where to look for the unit, in bytes or with a unit, as 64M; default: 0'],
    ['--unit <bytes>', 'with --one: how large it is, likewise, at most 32 MiB; default: 512 KiB'],
    ['--attach', 'with --wait: follow the stream that runs already; fine when it has just ended well'],
    [
      '--bandwidth <number>',
      'at most so many MiB/s (bytes/s with --bytes; or with a unit, as 500K, 2G); default: no limit',
    ],
    ['--bytes', 'the bandwidth is in bytes/s'],
    [
      '--weight <number>',
      'where all streams of the tree share a bandwidth: how much this one gets, 1 to 1000 against the weights of the others; default: as its definition says, else 1',
    ],
    ['--idle', "only in the gaps of the guest's own I/O, as long as a process has the tree open"],
    [
      '--engine <name>',
      "'job': QEMU's own job, one request at a time; 'pull': many requests at once, which is faster; default: 'auto', which is 'pull'",
    ],
    [
      '--base-timeout <seconds>',
      'pause the guest when its NBD base has been away that long; default: the guest waits for what it lacks',
    ],
    [
      '--new-base <uri>',
      'no stream is begun: the base (with --base: that image of the chain) is to be found at another place now, a path or a URI, and all goes on from there',
    ],
    ['--base <path>', 'keep this image of the backing chain as backing image; default: none is kept'],
    ['--wait', 'wait for the end: with a progress bar on a terminal, with lines elsewhere'],
    ['--verbose', 'taken for the sake of blockpull: --wait shows progress anyway'],
    ['--timeout <seconds>', 'with --wait: stop the stream after so many seconds'],
    ['--json', 'print JSON; with --wait, a line for each position'],
  ],
  description: [
    'Copies everything that the image of a disk lacks from its backing images, while the guest works on it. At the end the image needs no backing image: the link is gone from the image and from the XML.',
    'Without --wait the command ends when the stream runs. It goes on without us, through restarts of the guest (on a libvirtd it ends with the QEMU of the guest); stream-info tells how far it is.',
    'On a libvirtd the stream is a block job of libvirt, of a domain that runs: --idle, --weight, --base-timeout, --new-base and the engine pull are not possible there.',
    'With --wait, Ctrl-C lets go of the stream, which goes on, and tells how to come back to it.',
  ],
  examples: [
    ['stream-disk web1 vda --wait', 'stream vda of web1 and watch'],
    ['stream-disk web1 vda --bandwidth 50', 'stream it in the background, at most 50 MiB/s'],
    ['stream-disk web1 vda --wait --timeout 3600', 'for an hour at most'],
    ['stream-disk web1 vda --stop', 'stop it'],
    ['stream-disk web1 vda --new-base nbd://store2/web', 'its base is served by another host now'],
    ['stream-disk web1 vda --one --offset 1048576', 'one unit at or behind 1 MiB; prints the offset for the next'],
  ],
  exit: [[String(DETACHED), 'Ctrl-C while waiting; the stream goes on']],
  seeAlso: ['stream-info', 'blockpull', 'event'],
  async run(context, [what = '', disk = ''], options) {
    checkUsage(options)
    const domain = await context.domain(what)
    if (options.flag('wait')) return waitFor(context, domain, disk, options)
    if (options.text('new-base') !== undefined) {
      await setBase(context, domain, disk, options)
      return undefined
    }
    await (options.flag('one') ? one : startOrStop)(context, domain, disk, options)
    return undefined
  },
}

function limitOf({ bandwidth, share = 0 }: StreamDiskState): string {
  if (share > 0 && share !== bandwidth) return `${formatSize(share)}/s (share)`
  return bandwidth === 0 ? '-' : `${formatSize(bandwidth)}/s`
}

function rowOf(state: StreamDiskState): string[] {
  const { disk, path, offset, size, mode, status, error } = state
  const done = size === 0 ? 100 : Math.floor((offset / size) * 100)
  return [
    disk,
    path,
    String(offset),
    String(size),
    `${done} %`,
    limitOf(state),
    mode,
    error === undefined ? status : `${status}: ${error}`,
  ]
}

const streamInfoCommand: CommandSpec = {
  name: 'stream-info',
  group: 'Disks and streams',
  summary: 'tell which disks are being streamed, and how far they are',
  arguments: [domainArgument],
  options: [jsonOption],
  description: [
    "Prints a line for each disk that is being streamed: its target and alias, the offset and the size in bytes, the limit (its own, or its share of the bandwidth that all streams have together), and whether it runs, or waits and for what. 'The base does not answer' ends by itself when the base is back, and a place in the queue when its turn comes.",
  ],
  examples: [['stream-info web1', 'the streams of web1']],
  seeAlso: ['stream-disk', 'blockjob'],
  async run(context, [what = ''], options) {
    const domain = await context.domain(what)
    const failure = `Failed to get the streams of domain '${domain.name}'`
    const states = await context.attempt(failure, () => domain.streamDiskInfo())
    if (options.flag('json')) context.printJson(states)
    else if (states.length === 0) context.say(`No disk of domain '${domain.name}' is being streamed`, '')
    else {
      const header = ['Disk', 'Alias', 'Offset', 'Size', 'Done', 'Limit', 'Mode', 'Status']
      context.print(...formatTable(header, states.map(rowOf), context.quiet))
      context.say('')
    }
    return undefined
  },
}

export const streamCommands: readonly CommandSpec[] = [streamDiskCommand, streamInfoCommand]
