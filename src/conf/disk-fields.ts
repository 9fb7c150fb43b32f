import type { DiskBus, DiskDef, DiskDriverDef, NetworkHost } from './domain-def.js'
import type { Codec, Field } from './values.js'
import { anyText, oneOf, onOff, positive, uint, whole } from './values.js'
import { port } from './fields.js'

export const bus: Codec<DiskBus> = oneOf('virtio', 'scsi', 'sata', 'ide', 'usb', 'fdc')

/** virStorageFileFormat; 'aio' is an old name of raw */
const formats = oneOf(
  'raw',
  'dir',
  'bochs',
  'cloop',
  'dmg',
  'iso',
  'vpc',
  'vdi',
  'fat',
  'vhd',
  'ploop',
  'cow',
  'qcow',
  'qcow2',
  'qed',
  'vmdk',
  'luks',
)
export const format: Codec<string> = {
  parse: (value) => formats.parse(value === 'aio' ? 'raw' : value),
  format: (value) => value,
}

export const target: Field<Pick<DiskDef, 'tray' | 'removable' | 'rotationRate'>>[] = [
  ['tray', 'tray', oneOf('open', 'closed')],
  ['removable', 'removable', onOff],
  ['rotation_rate', 'rotationRate', uint],
]

type Driver = Omit<DiskDriverDef, 'virtio' | 'metadataCacheSize' | 'emptyFormat'>
export const driver: Field<Driver>[] = [
  ['name', 'name', anyText],
  ['cache', 'cache', oneOf('default', 'none', 'writethrough', 'writeback', 'directsync', 'unsafe')],
  ['error_policy', 'errorPolicy', oneOf('stop', 'report', 'ignore', 'enospace')],
  ['rerror_policy', 'rerrorPolicy', oneOf('stop', 'report', 'ignore')],
  ['io', 'io', oneOf('native', 'threads', 'io_uring')],
  ['ioeventfd', 'ioeventfd', onOff],
  ['event_idx', 'eventIdx', onOff],
  ['copy_on_read', 'copyOnRead', onOff],
  ['discard', 'discard', oneOf('unmap', 'ignore')],
  ['iothread', 'iothread', positive],
  ['detect_zeroes', 'detectZeroes', oneOf('off', 'on', 'unmap')],
  ['queues', 'queues', uint],
  ['queue_size', 'queueSize', uint],
]

export const blockio: Field<NonNullable<DiskDef['blockio']>>[] = [
  ['logical_block_size', 'logicalBlockSize', uint],
  ['physical_block_size', 'physicalBlockSize', uint],
  ['discard_granularity', 'discardGranularity', uint],
]

export const geometry: Field<NonNullable<DiskDef['geometry']>>[] = [
  ['cyls', 'cyls', uint],
  ['heads', 'heads', uint],
  ['secs', 'secs', uint],
  ['trans', 'trans', oneOf('none', 'auto', 'lba')],
]

/** Children of `<iotune>` that hold a number, in libvirt's order. */
export const iotune = [
  ...['total_bytes_sec', 'read_bytes_sec', 'write_bytes_sec', 'total_iops_sec', 'read_iops_sec', 'write_iops_sec'],
  ...['total_bytes_sec_max', 'read_bytes_sec_max', 'write_bytes_sec_max'],
  ...['total_iops_sec_max', 'read_iops_sec_max', 'write_iops_sec_max', 'size_iops_sec'],
  ...['total_bytes_sec_max_length', 'read_bytes_sec_max_length', 'write_bytes_sec_max_length'],
  ...['total_iops_sec_max_length', 'read_iops_sec_max_length', 'write_iops_sec_max_length'],
]

export const startupPolicy = oneOf('mandatory', 'requisite', 'optional')
export const index: Codec<number> = uint
export const bytes: Codec<number> = whole()

export const host: Field<Omit<NetworkHost, 'transport'>>[] = [
  ['name', 'name', anyText],
  ['port', 'port', port],
  ['socket', 'socket', anyText],
]

export const defaultPorts = { nbd: 10809, http: 80, https: 443, ftp: 21, ftps: 990 } as const
