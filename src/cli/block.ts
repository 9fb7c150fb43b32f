/** Commands that tell of disks. */
import type { Domain } from '../api/domain.js'
import { disksIn } from '../conf/glance.js'
import type { SeenDisk } from '../conf/glance.js'
import { VIR_DOMAIN_BLOCK_RESIZE_BYTES, VIR_DOMAIN_XML_INACTIVE } from '../constants.gen.js'
import type { DomainBlockInfo, DomainBlockStats } from '../driver.js'
import type { Context } from './context.js'
import { formatSize, formatTable } from './output.js'
import { diskArgument, domainArgument, jsonOption } from './spec.js'
import type { CommandSpec } from './spec.js'
import { parseSize, UsageError } from './values.js'

const sourceWord = ({ source }: SeenDisk): string => source?.path ?? '-'

async function disksOf(domain: Domain, flags = 0): Promise<SeenDisk[]> {
  return disksIn(await domain.getXMLDesc(flags))
}

const domblklistCommand: CommandSpec = {
  name: 'domblklist',
  group: 'Disks and streams',
  summary: 'list the disks of a domain',
  arguments: [domainArgument],
  options: [
    ['--inactive', 'of the definition that its next start uses'],
    ['--details', 'with the type of the source and of the device'],
    jsonOption,
  ],
  description: ['Prints the target and the source of each disk. Where a command takes a disk, either will do.'],
  examples: [['domblklist web1 --details', 'the disks of web1']],
  seeAlso: ['domblkinfo', 'domblkstat', 'stream-disk'],
  async run(context, [what = ''], options) {
    const domain = await context.domain(what)
    const disks = await context.attempt(`Failed to get the disks of domain '${domain.name}'`, () =>
      disksOf(domain, options.flag('inactive') ? VIR_DOMAIN_XML_INACTIVE : 0),
    )
    if (options.flag('json')) {
      const data = disks.map((disk) => {
        const { device, target, alias, source } = disk
        const path = source === undefined ? undefined : sourceWord(disk)
        return { type: source?.type ?? 'file', device, target, alias, source: path }
      })
      context.printJson(data)
      return undefined
    }
    const details = options.flag('details')
    const rows = disks.map((disk) => [
      ...(details ? [disk.source?.type ?? 'file', disk.device] : []),
      disk.target,
      sourceWord(disk),
    ])
    const header = [...(details ? ['Type', 'Device'] : []), 'Target', 'Source']
    context.print(...formatTable(header, rows, context.quiet))
    context.say('')
    return undefined
  },
}

function infoLines({ capacity, allocation, physical }: DomainBlockInfo, human: boolean): string[] {
  const show = (bytes: number): string => (human ? formatSize(bytes) : String(bytes))
  return [
    `Capacity:       ${show(capacity)}`,
    `Allocation:     ${show(allocation)}`,
    `Physical:       ${show(physical)}`,
  ]
}

async function allInfo(context: Context, domain: Domain): Promise<(Partial<DomainBlockInfo> & { target: string })[]> {
  return context.attempt(`Failed to get the disks of domain '${domain.name}'`, async () => {
    const all = []
    for (const { target, source } of await disksOf(domain))
      all.push({ target, ...(source !== undefined && (await domain.blockInfo(target))) })
    return all
  })
}

const domblkinfoCommand: CommandSpec = {
  name: 'domblkinfo',
  group: 'Disks and streams',
  summary: 'tell the sizes of a disk',
  arguments: [domainArgument, ['[device]', 'target, alias or source path of the disk']],
  options: [
    ['--device <disk>', 'the disk, instead of as an argument'],
    ['--human', 'sizes with units, instead of bytes'],
    ['--all', 'every disk, as a table'],
    jsonOption,
  ],
  description: [
    'Prints, in bytes, the capacity (what the guest sees), the allocation (what the image takes up on its storage, without its backing images) and the physical size (of the file or device) of a disk.',
  ],
  examples: [['domblkinfo web1 vda --human', 'how much of vda has arrived']],
  seeAlso: ['domblklist', 'stream-info'],
  async run(context, [what = '', argument], options) {
    const disk = argument ?? options.text('device')
    if (disk === undefined && !options.flag('all'))
      throw new UsageError("command 'domblkinfo' requires a device or --all")
    const domain = await context.domain(what)
    if (options.flag('all')) {
      const all = await allInfo(context, domain)
      if (options.flag('json')) context.printJson(all)
      else {
        const show = (n?: number): string => (n === undefined ? '-' : options.flag('human') ? formatSize(n) : String(n))
        const rows = all.map((info) => [info.target, show(info.capacity), show(info.allocation), show(info.physical)])
        context.print(...formatTable(['Target', 'Capacity', 'Allocation', 'Physical'], rows, context.quiet))
        context.say('')
      }
      return undefined
    }
    const failure = `Failed to get block device '${disk ?? ''}' info`
    const info = await context.attempt(failure, () => domain.blockInfo(disk ?? ''))
    if (options.flag('json')) context.printJson(info)
    else {
      context.print(...infoLines(info, options.flag('human')))
      context.say('')
    }
    return undefined
  },
}

/** virsh's short name, and the sentence of --human. */
const statistics: readonly (readonly [keyof DomainBlockStats, string, string])[] = [
  ['rdReq', 'rd_req', 'number of read operations'],
  ['rdBytes', 'rd_bytes', 'number of bytes read'],
  ['wrReq', 'wr_req', 'number of write operations'],
  ['wrBytes', 'wr_bytes', 'number of bytes written'],
  ['flushReq', 'flush_operations', 'number of flush operations'],
  ['rdTotalTimes', 'rd_total_times', 'total duration of reads (ns)'],
  ['wrTotalTimes', 'wr_total_times', 'total duration of writes (ns)'],
  ['flushTotalTimes', 'flush_total_times', 'total duration of flushes (ns)'],
  ['errs', 'errs', 'error count'],
]

const domblkstatCommand: CommandSpec = {
  name: 'domblkstat',
  group: 'Disks and streams',
  summary: 'tell what a guest did to a disk',
  arguments: [domainArgument, ['<device>', 'target, alias or source path of the disk']],
  options: [['--human', 'sentences instead of short names'], jsonOption],
  description: [
    'Prints requests, bytes and durations (ns) of reads, writes and flushes since the domain was started, and how many failed.',
  ],
  examples: [['domblkstat web1 vda', 'what the guest did to vda']],
  seeAlso: ['domblkinfo', 'domblklist'],
  async run(context, [what = '', disk = ''], options) {
    const domain = await context.domain(what)
    const failure = `Failed to get block stats for domain '${domain.name}' device '${disk}'`
    const stats = await context.attempt(failure, () => domain.blockStats(disk))
    if (options.flag('json')) context.printJson(stats)
    else if (options.flag('human')) {
      context.print(`Device: ${disk}`)
      context.print(...statistics.map(([key, , sentence]) => ` ${sentence}:`.padEnd(33) + String(stats[key])))
      context.say('')
    } else {
      context.print(...statistics.map(([key, short]) => `${disk} ${short} ${stats[key]}`))
      context.say('')
    }
    return undefined
  },
}

const blockresizeCommand: CommandSpec = {
  name: 'blockresize',
  group: 'Disks and streams',
  summary: 'give a disk of a running domain another size',
  arguments: [
    domainArgument,
    diskArgument,
    ['<size>', 'the new size in KiB, or with a unit: 512B, 10M or 10MiB (of 1024), 10MB (of 1000)'],
  ],
  options: [],
  description: [
    'Changes the size of the image, and tells the guest. What lies behind a smaller size is lost. A disk that has a block job, a stream for example, keeps its size.',
  ],
  examples: [['blockresize web1 vda 20G', 'vda has 20 GiB from now on']],
  seeAlso: ['domblkinfo'],
  async run(context, [what = '', disk = '', size = '']) {
    const bytes = parseSize(size)
    const domain = await context.domain(what)
    await context.attempt(`Failed to resize block device '${disk}'`, () =>
      domain.blockResize(disk, bytes, VIR_DOMAIN_BLOCK_RESIZE_BYTES),
    )
    context.say(`Block device '${disk}' is resized`, '')
    return undefined
  },
}

export const blockCommands: readonly CommandSpec[] = [
  domblklistCommand,
  domblkinfoCommand,
  domblkstatCommand,
  blockresizeCommand,
]
