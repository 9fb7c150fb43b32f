/** Commands that plug disks in and out. */
import { statSync } from 'node:fs'
import type { Domain } from '../api/domain.js'
import { formatDeviceXml, parseDeviceXml } from '../conf/device-xml.js'
import type { DiskDef } from '../conf/domain-def.js'
import { diskXmlIn } from '../conf/glance.js'
import {
  VIR_DOMAIN_AFFECT_CONFIG,
  VIR_DOMAIN_AFFECT_LIVE,
  VIR_DOMAIN_DEVICE_MODIFY_FORCE,
  VIR_DOMAIN_XML_INACTIVE,
} from '../constants.gen.js'
import { CommandError, type Context } from './context.js'
import { readXmlFile } from './definition.js'
import { domainArgument, jsonOption } from './spec.js'
import type { CommandSpec } from './spec.js'
import type { Values } from './values.js'

const affectOptions = [
  ['--persistent', 'in the definition, and in the running domain too'],
  ['--config', 'in the definition: it takes effect at the next start'],
  ['--live', 'in the running domain'],
  ['--current', 'in the running domain, or in the definition of one that is shut off; the default'],
] as const

const fileArgument = ['<file>', "file with the XML of the device; '-' is standard input"] as const
const targetArgument = ['<target>', "target of the disk, 'vdb'"] as const

async function flagsOf(domain: Domain, options: Values): Promise<number> {
  options.exclusive('current', 'live')
  options.exclusive('current', 'config')
  options.exclusive('current', 'persistent')
  const persistent = options.flag('persistent')
  const config = options.flag('config') || persistent
  const live = options.flag('live') || (persistent && (await domain.isActive()))
  return (config ? VIR_DOMAIN_AFFECT_CONFIG : 0) | (live ? VIR_DOMAIN_AFFECT_LIVE : 0)
}

/** `what`: 'Device' or 'Disk', as virsh says it. */
async function change(
  context: Context,
  domain: Domain,
  how: { attach: boolean; what: 'Device' | 'Disk'; xml: string },
  options: Values,
): Promise<void> {
  const { attach, what, xml } = how
  const failure = `Failed to ${attach ? 'attach' : 'detach'} ${what.toLowerCase()}`
  await context.attempt(failure, async () => {
    const flags = await flagsOf(domain, options)
    await (attach ? domain.attachDevice(xml, flags) : domain.detachDevice(xml, flags))
  })
  if (options.flag('json')) context.printJson({ domain: domain.name, attached: attach })
  else context.say(`${what} ${attach ? 'attached' : 'detached'} successfully`, '')
}

function deviceCommand(attach: boolean): CommandSpec {
  const verb = attach ? 'attach' : 'detach'
  return {
    name: `${verb}-device`,
    group: 'Disks and streams',
    summary: `${verb} a device from a file with its XML`,
    arguments: [domainArgument, fileArgument],
    options: [...affectOptions, jsonOption],
    description: attach
      ? ['Reads the XML of a disk and plugs the disk in. Other kinds of devices are refused.']
      : [
          'Reads the XML of a disk and takes out the one with the same target. A disk that is being streamed stays; a guest that is slow to let go of a disk keeps it for a while, and the event device-removed tells when it is gone.',
        ],
    examples: [[`${verb}-device web1 disk.xml --persistent`, `${verb} it now and in the definition`]],
    seeAlso: [`${verb}-disk`, 'event'],
    async run(context, [what = '', file = ''], options) {
      const xml = await readXmlFile(context, file)
      const domain = await context.domain(what)
      await change(context, domain, { attach, what: 'Device', xml }, options)
      return undefined
    },
  }
}

const updateDeviceCommand: CommandSpec = {
  name: 'update-device',
  group: 'Disks and streams',
  summary: 'change a device to what a file with its XML says',
  arguments: [domainArgument, fileArgument],
  options: [...affectOptions, ['--force', 'also where the guest has locked the tray'], jsonOption],
  description: [
    'Reads the XML of a disk and changes the one with the same target. Of a running domain that is the medium of a CD-ROM or floppy drive, which is ejected where the XML has no source; everything else is changed in the definition only.',
  ],
  examples: [['update-device web1 cdrom.xml', 'another medium, now']],
  seeAlso: ['attach-device', 'domblklist'],
  async run(context, [what = '', file = ''], options) {
    const xml = await readXmlFile(context, file)
    const domain = await context.domain(what)
    const force = options.flag('force') ? VIR_DOMAIN_DEVICE_MODIFY_FORCE : 0
    await context.attempt(`Failed to update device from ${file}`, async () =>
      domain.updateDevice(xml, (await flagsOf(domain, options)) | force),
    )
    if (options.flag('json')) context.printJson({ domain: domain.name, updated: true })
    else context.say('Device updated successfully', '')
    return undefined
  },
}

const buses: Readonly<Record<string, string>> = { vd: 'virtio', sd: 'scsi', hd: 'ide', fd: 'fdc' }

function sourceType(options: Values): string | undefined {
  const type = options.text('sourcetype')
  if (type === undefined || type === 'file' || type === 'block') return type
  throw new CommandError(`Unknown source type '${type}': 'file' or 'block'`)
}

/** The element of a disk, read back so that a word that is none is refused here. */
function diskXml(source: string, target: string, options: Values): string {
  const mode = options.text('mode')
  if (mode !== undefined && mode !== 'readonly' && mode !== 'shareable')
    throw new CommandError(`No support for '${mode}' in command 'attach-disk'`)
  const isBlock = statSync(source, { throwIfNoEntry: false })?.isBlockDevice() === true
  const [cache, io, serial] = [options.text('cache'), options.text('io'), options.text('serial')]
  const [alias, wwn, iothread] = [options.text('alias'), options.text('wwn'), options.count('iothread')]
  const disk = {
    device: options.text('type') ?? 'disk',
    target,
    bus: options.text('targetbus') ?? buses[target.slice(0, 2)] ?? 'virtio',
    driver: {
      name: options.text('driver') ?? 'qemu',
      ...(cache && { cache }),
      ...(io && { io }),
      ...(iothread !== undefined && { iothread }),
    },
    source: {
      type: sourceType(options) ?? (isBlock ? 'block' : 'file'),
      path: source,
      format: options.text('subdriver') ?? 'raw',
    },
    readonly: mode === 'readonly',
    shareable: mode === 'shareable',
    ...(serial && { serial }),
    ...(wwn && { wwn }),
    ...(alias && { alias }),
  } as DiskDef
  const xml = formatDeviceXml({ kind: 'disk', def: disk })
  parseDeviceXml(xml)
  return xml
}

const attachDiskCommand: CommandSpec = {
  name: 'attach-disk',
  group: 'Disks and streams',
  summary: 'attach a disk',
  arguments: [domainArgument, ['<source>', 'path of its image'], targetArgument],
  options: [
    ['--targetbus <bus>', "'virtio', 'scsi', 'usb', …; default: by the target"],
    ['--driver <name>', "default: 'qemu'"],
    ['--subdriver <format>', "format of the image; default: 'raw'"],
    ['--cache <mode>', 'cache mode'],
    ['--io <mode>', "'native', 'threads' or 'io_uring'"],
    ['--iothread <number>', 'I/O thread of the domain that does its work'],
    ['--sourcetype <type>', "'file' or 'block'; default: what is at the path"],
    ['--type <type>', "'disk', 'cdrom', 'floppy' or 'lun'; default: 'disk'"],
    ['--mode <mode>', "'readonly' or 'shareable'"],
    ['--serial <text>', 'serial number that the guest sees'],
    ['--wwn <hex>', 'world wide name that the guest sees, 16 digits'],
    ['--alias <name>', "name of the device, 'ua-…'; default: given out"],
    ['--print-xml', 'print the XML, and attach nothing'],
    ...affectOptions,
    jsonOption,
  ],
  description: ['Plugs in a disk with the image at a path.'],
  examples: [['attach-disk web1 /images/data.qcow2 vdb --subdriver qcow2 --persistent', 'a second disk, to stay']],
  seeAlso: ['detach-disk', 'attach-device', 'domblklist'],
  async run(context, [what = '', source = '', target = ''], options) {
    const xml = await context.attempt('Failed to attach disk', () =>
      Promise.resolve().then(() => diskXml(source, target, options)),
    )
    if (options.flag('print-xml')) {
      context.print(xml.trimEnd())
      return undefined
    }
    await change(context, await context.domain(what), { attach: true, what: 'Disk', xml }, options)
    return undefined
  },
}

const detachDiskCommand: CommandSpec = {
  name: 'detach-disk',
  group: 'Disks and streams',
  summary: 'detach a disk',
  arguments: [domainArgument, ['<target>', "target of the disk, 'vdb', or the path of its image"]],
  options: [['--print-xml', 'print the XML, and detach nothing'], ...affectOptions, jsonOption],
  description: ['Takes out the disk with this target. What is said of detach-device goes for it.'],
  examples: [['detach-disk web1 vdb --persistent', 'take it out now, and for good']],
  seeAlso: ['attach-disk', 'detach-device', 'domblklist'],
  async run(context, [what = '', target = ''], options) {
    const domain = await context.domain(what)
    const inactive = options.flag('config') && !options.flag('live')
    const all = await domain.getXMLDesc(inactive ? VIR_DOMAIN_XML_INACTIVE : 0)
    const xml =
      diskXmlIn(all, (disk) => disk.target === target) ?? diskXmlIn(all, ({ source }) => source?.path === target)
    if (xml === undefined) throw new CommandError(`No disk found whose source path or target is '${target}'`)
    if (options.flag('print-xml')) context.print(xml.trimEnd())
    else await change(context, domain, { attach: false, what: 'Disk', xml }, options)
    return undefined
  },
}

export const deviceCommands: readonly CommandSpec[] = [
  deviceCommand(true),
  deviceCommand(false),
  updateDeviceCommand,
  attachDiskCommand,
  detachDiskCommand,
]
