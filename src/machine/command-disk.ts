import type { ControllerDef, DiskDef, DomainDef, DriveAddress } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { ioThreadOf } from './alias.js'
import { diskNodes, writeCacheOf, type DiskNodeOptions } from './blockdev.js'
import {
  addressProps,
  aliasOf,
  bool,
  controllerBus,
  device,
  isQ35,
  object,
  toJson,
  virtioDriver,
  virtioProps,
  type CommandCaps,
  type Props,
} from './command-props.js'

const fail = failFrom('VIR_FROM_QEMU')

/**
 * The boot index of each device by alias: its own `<boot order>`, or else its place in `<os><boot dev>`, which the first
 * device of each kind gets (libvirt: qemuProcessPrepareDeviceBootorder).
 */
export function bootIndexes(def: DomainDef): Map<string, number> {
  const indexes = new Map<string, number>()
  const perKind = new Map(def.os.boot.map((kind, at) => [kind, at + 1]))
  const kinds = { disk: 'hd', lun: 'hd', cdrom: 'cdrom', floppy: 'fd' } as const
  const candidates = [
    ...def.disks.map((disk) => ({ owner: disk, kind: kinds[disk.device], what: `disk '${disk.target}'` })),
    ...def.interfaces.map((net) => ({ owner: net, kind: 'network', what: `interface '${net.mac}'` })),
  ]
  for (const { owner, kind, what } of candidates) {
    const index = owner.bootOrder ?? perKind.get(kind)
    if (index === undefined) continue
    if (owner.bootOrder === undefined) perKind.delete(kind)
    indexes.set(aliasOf(owner, what), index)
  }
  return indexes
}

/** The guest's side of a disk as `device_add` takes it. `drive` is the node that it uses, undefined for an empty drive. */
export function diskDevice(
  def: DomainDef,
  disk: DiskDef,
  drive: string | undefined,
  bootIndex: number | undefined,
): Props & { driver: string } {
  const { driver, ...specific } = busProps(def, disk)
  const werror = disk.driver.errorPolicy === 'enospace' ? 'enospc' : disk.driver.errorPolicy
  const alias = aliasOf(disk, `disk '${disk.target}'`)
  return {
    driver,
    ...specific,
    device_id: disk.bus === 'scsi' && disk.device !== 'lun' ? (disk.serial ?? `drive-${alias}`) : undefined,
    'share-rw': disk.shareable || undefined,
    drive,
    id: alias,
    bootindex: disk.device === 'floppy' ? undefined : bootIndex,
    logical_block_size: disk.blockio?.logicalBlockSize,
    physical_block_size: disk.blockio?.physicalBlockSize,
    discard_granularity: disk.blockio?.discardGranularity,
    wwn: disk.wwn === undefined ? undefined : BigInt(disk.wwn.replace(/^(0x)?/, '0x')),
    rotation_rate: disk.rotationRate,
    vendor: disk.vendor,
    product: disk.product,
    'write-cache': disk.device === 'lun' ? undefined : writeCacheOf(disk),
    cyls: disk.geometry?.cyls,
    heads: disk.geometry?.heads,
    secs: disk.geometry?.secs,
    'bios-chs-trans': disk.geometry?.trans,
    serial: disk.serial,
    werror,
    rerror: disk.driver.rerrorPolicy ?? (werror === 'enospc' ? undefined : werror),
  }
}

function busProps(def: DomainDef, disk: DiskDef): Props & { driver: string } {
  switch (disk.bus) {
    case 'virtio':
      return virtioBlk(def, disk)
    case 'scsi':
      return { driver: scsiDriver(disk), ...scsiAddress(def, driveAddress(disk)) }
    case 'ide':
    case 'sata':
      return { driver: disk.device === 'cdrom' ? 'ide-cd' : 'ide-hd', ...ideAddress(def, disk, driveAddress(disk)) }
    case 'usb':
      return { driver: 'usb-storage', removable: disk.removable === 'on', ...addressProps(def, disk.address) }
    case 'fdc':
      return { driver: 'floppy', unit: driveAddress(disk).unit }
  }
}

function virtioBlk(def: DomainDef, disk: DiskDef): Props & { driver: string } {
  const { driver } = disk
  return {
    driver: virtioDriver('virtio-blk', disk.model),
    ...virtioProps(driver.virtio),
    iothread: ioThreadOf(def, disk),
    ioeventfd: bool(driver.ioeventfd),
    event_idx: bool(driver.eventIdx),
    'num-queues': driver.queues,
    'queue-size': driver.queueSize,
    ...addressProps(def, disk.address),
  }
}

function driveAddress(disk: DiskDef): DriveAddress {
  if (disk.address?.type === 'drive') return disk.address
  throw fail('VIR_ERR_INTERNAL_ERROR', `disk '${disk.target}' has no drive address`)
}

function scsiDriver(disk: DiskDef): string {
  if (disk.device === 'lun') return 'scsi-block'
  return disk.device === 'cdrom' ? 'scsi-cd' : 'scsi-hd'
}

/** Controllers of the parallel bus: the unit is the SCSI id, and there are no LUNs. */
const parallelScsi = new Set(['lsilogic', 'ncr53c90', 'dc390', 'am53c974'])

function scsiAddress(def: DomainDef, address: DriveAddress): Props {
  const bus = controllerBus(def, 'scsi', address.controller)
  const isController = (c: ControllerDef): boolean => c.type === 'scsi' && c.index === address.controller
  if (parallelScsi.has(def.controllers.find(isController)?.model ?? '')) {
    return { bus: `${bus}.${address.bus}`, 'scsi-id': address.unit }
  }
  return { bus: `${bus}.0`, channel: address.bus, 'scsi-id': address.target, lun: address.unit }
}

function ideAddress(def: DomainDef, disk: DiskDef, address: DriveAddress): Props {
  if (disk.bus === 'sata') return { bus: `${controllerBus(def, 'sata', address.controller)}.${address.unit}` }
  return { bus: `${controllerBus(def, 'ide', address.controller)}.${address.bus}`, unit: address.unit }
}

/** Secrets, nodes and devices of all disks. `secretFile` says where a secret's data will lie. */
export function disksCommand(
  def: DomainDef,
  caps: CommandCaps,
  options: DiskNodeOptions,
  secretFile: (id: string) => string,
): string[] {
  const boot = bootIndexes(def)
  return [...floppyController(def, caps, boot), ...def.disks.flatMap((disk) => diskCommand(disk))]

  function diskCommand(disk: DiskDef): string[] {
    const nodes = disk.source && diskNodes(disk, { ...options, caps })
    const bootIndex = boot.get(aliasOf(disk, `disk '${disk.target}'`))
    return [
      ...(nodes?.secrets ?? []).flatMap(({ id }) => object(caps, { 'qom-type': 'secret', id, file: secretFile(id) })),
      ...(nodes?.nodes ?? []).flatMap((node) => ['-blockdev', toJson(node)]),
      ...device(caps, diskDevice(def, disk, nodes?.device, bootIndex)),
    ]
  }
}

/** Q35 has no floppy controller of its own; on both, the controller boots from a floppy, not the drive. */
function floppyController(def: DomainDef, caps: CommandCaps, boot: Map<string, number>): string[] {
  const floppies = def.disks.filter((disk) => disk.bus === 'fdc')
  if (floppies.length === 0) return []
  const indexes = floppies.flatMap((disk) => {
    const index = boot.get(disk.alias ?? '')
    return index === undefined ? [] : [[driveAddress(disk).unit === 0 ? 'bootindexA' : 'bootindexB', index] as const]
  })
  if (isQ35(def)) return device(caps, { driver: 'isa-fdc', ...Object.fromEntries(indexes) })
  return indexes.flatMap(([name, index]) => ['-global', `isa-fdc.${name}=${index}`])
}

/** The arguments of `block_set_io_throttle` for a disk with `<iotune>`, to be sent before the guest runs. */
export function ioThrottleArguments(disk: DiskDef): (Record<string, number | string> & { id: string }) | undefined {
  const tune = disk.iotune
  if (tune === undefined || Object.keys(tune).length === 0) return undefined
  const limit = (name: string): number => tune[name] ?? 0
  const optional = Object.entries(throttleNames).flatMap(([ours, theirs]) => {
    const value = tune[ours]
    return value === undefined ? [] : [[theirs, value] as const]
  })
  return {
    id: throttleTarget(disk),
    bps: limit('total_bytes_sec'),
    bps_rd: limit('read_bytes_sec'),
    bps_wr: limit('write_bytes_sec'),
    iops: limit('total_iops_sec'),
    iops_rd: limit('read_iops_sec'),
    iops_wr: limit('write_iops_sec'),
    ...Object.fromEntries(optional),
  }
}

/** The object that has the block backend: for two kinds of disk it is one inside of the device. */
function throttleTarget(disk: DiskDef): string {
  const alias = aliasOf(disk, `disk '${disk.target}'`)
  if (disk.bus === 'virtio') return `/machine/peripheral/${alias}/virtio-backend`
  return disk.bus === 'usb' ? `/machine/peripheral/${alias}/${alias}.0/legacy[0]` : alias
}

const throttleNames: Record<string, string> = {
  total_bytes_sec_max: 'bps_max',
  read_bytes_sec_max: 'bps_rd_max',
  write_bytes_sec_max: 'bps_wr_max',
  total_iops_sec_max: 'iops_max',
  read_iops_sec_max: 'iops_rd_max',
  write_iops_sec_max: 'iops_wr_max',
  total_bytes_sec_max_length: 'bps_max_length',
  read_bytes_sec_max_length: 'bps_rd_max_length',
  write_bytes_sec_max_length: 'bps_wr_max_length',
  total_iops_sec_max_length: 'iops_max_length',
  read_iops_sec_max_length: 'iops_rd_max_length',
  write_iops_sec_max_length: 'iops_wr_max_length',
  size_iops_sec: 'iops_size',
}
