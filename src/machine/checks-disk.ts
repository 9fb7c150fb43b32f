/** What a disk must be like for QEMU (qemuValidateDomainDeviceDefDisk); what is wrong for any driver, `conf` has refused. */
import type { DiskDef, DomainDef, DriveAddress, StorageSource } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { findController } from './controllers.js'
import type { DefinitionCaps } from './definition-caps.js'
import { isQ35 } from './machine.js'

const fail = failFrom('VIR_FROM_QEMU')
const unsupported = (message: string): Error => fail('VIR_ERR_CONFIG_UNSUPPORTED', message)

/** Formats that QEMU reads, and those among them that can have a backing image. */
const FORMATS = ['raw', 'qcow2', 'qed', 'qcow', 'vmdk', 'vdi', 'vpc', 'vhdx', 'ploop', 'dmg', 'bochs', 'cloop']
const FORMATS_WITH_BACKING = ['qcow2', 'qed', 'qcow', 'vmdk']

/** Most that QEMU takes as a limit of I/O. */
const THROTTLE_MAX = 1_000_000_000_000_000

export function checkDisks(def: DomainDef, caps: DefinitionCaps): void {
  for (const disk of def.disks) {
    checkBus(def, disk)
    checkMedium(disk)
    checkImages(disk)
    checkDriver(def, disk)
    checkIdentity(disk)
    checkTuning(disk)
    if (disk.bus === 'usb' && !caps.has('usb-storage')) throw unsupported(`disk '${disk.target}': USB is not supported`)
  }
}

function checkBus(def: DomainDef, { device, bus, target, address }: DiskDef): void {
  if (device === 'cdrom' && bus === 'virtio')
    throw unsupported(`disk '${target}' on bus 'virtio' does not support ejectable media`)
  if (device === 'lun' && bus !== 'virtio' && bus !== 'scsi')
    throw unsupported(`disk device 'lun' is not supported on bus '${bus}'`)
  if (bus === 'ide' && isQ35(def))
    throw unsupported(`machine '${def.os.machine}' has no IDE controller for '${target}'`)
  if (bus === 'virtio' && address && address.type !== 'pci')
    throw unsupported(`disk '${target}' on bus 'virtio' cannot have an address of type '${address.type}'`)
  if (address?.type === 'drive') checkDriveAddress(def, bus, target, address)
}

const DRIVE_LIMITS = {
  ide: { controller: 0, bus: 1, target: 0, unit: 1 },
  fdc: { controller: 0, bus: 0, target: 0, unit: 1 },
  sata: { controller: 255, bus: 0, target: 0, unit: 5 },
  scsi: { controller: 255, bus: 0, target: 255, unit: 16383 },
} as const

function checkDriveAddress(def: DomainDef, bus: string, target: string, address: DriveAddress): void {
  if (bus !== 'ide' && bus !== 'fdc' && bus !== 'sata' && bus !== 'scsi') return
  const limits = DRIVE_LIMITS[bus]
  for (const part of ['controller', 'bus', 'target', 'unit'] as const) {
    if (address[part] > limits[part])
      throw unsupported(`disk '${target}': ${part} of an address on bus '${bus}' can be at most ${limits[part]}`)
  }
  if (bus !== 'scsi' || findController(def, 'scsi', address.controller)?.model !== 'lsilogic') return
  if (address.target !== 0 || address.unit > 7)
    throw unsupported(`disk '${target}': controller model 'lsilogic' has target 0 with units 0 to 7 only`)
}

function checkMedium(disk: DiskDef): void {
  const { device, source, target, readonly, bus, shareable } = disk
  if (readonly && device === 'disk' && (bus === 'ide' || bus === 'sata'))
    throw unsupported(`disk '${target}': read-only disks are not supported on bus '${bus}'`)
  if (shareable && !readonly && source && source.format !== 'raw')
    throw unsupported(`disk '${target}' can only be shared for writing in format 'raw', not '${source.format ?? ''}'`)
  if (device === 'lun' && source && (source.type !== 'block' || source.format !== 'raw' || source.slice))
    throw unsupported(`disk '${target}' of device 'lun' needs a block device in format 'raw'`)
  if (disk.transient) throw unsupported(`disk '${target}': transient disks are not supported`)
}

function checkImages({ source, target }: DiskDef): void {
  for (let image = source; image; image = image.backingStore ?? undefined) {
    checkFormat(target, image)
    if (image.type === 'network') checkNetworkImage(target, image)
  }
}

function checkFormat(target: string, { format = 'raw', backingStore, slice }: StorageSource): void {
  if (format === 'iso') throw unsupported(`disk '${target}': storage format 'iso' is not supported, use 'raw'`)
  if (!FORMATS.includes(format)) throw unsupported(`disk '${target}': storage format '${format}' is not supported`)
  if (backingStore && !FORMATS_WITH_BACKING.includes(format))
    throw unsupported(`disk '${target}': an image of format '${format}' cannot have a backing image`)
  if (slice?.size === 0) throw fail('VIR_ERR_XML_ERROR', `disk '${target}': a slice cannot be empty`)
}

function checkNetworkImage(target: string, source: StorageSource & { type: 'network' }): void {
  const { protocol, hosts } = source
  const isHttp = protocol === 'http' || protocol === 'https'
  const refuse = (what: string): never => {
    throw unsupported(`disk '${target}': ${what} is not supported for protocol '${protocol}'`)
  }
  if (hosts.length !== 1) refuse(`a number of hosts other than one (${hosts.length})`)
  if (protocol !== 'nbd' && hosts.some(({ transport }) => transport === 'unix')) refuse("transport 'unix'")
  if (source.ssl && protocol !== 'https' && protocol !== 'ftps') refuse('<ssl>')
  if (source.cookies?.length && !isHttp) refuse('<cookies>')
  if (source.query !== undefined && !isHttp) refuse('a query')
  if (protocol === 'nbd' && (source.readahead ?? source.timeout)) refuse('<readahead> or <timeout>')
  if (source.tlsHostname !== undefined && protocol !== 'nbd') refuse('tlsHostname')
}

function checkDriver(def: DomainDef, disk: DiskDef): void {
  const { driver, target, bus } = disk
  if (driver.name !== undefined && driver.name !== 'qemu')
    throw unsupported(`driver '${driver.name}' of disk '${target}' is not supported`)
  if (driver.io === 'native' && driver.cache !== 'none' && driver.cache !== 'directsync')
    throw unsupported(`disk '${target}': io='native' needs cache='none' or 'directsync'`)
  if (driver.copyOnRead === 'on') checkCopyOnRead(disk)
  if (driver.iothread !== undefined && bus !== 'virtio')
    throw unsupported(`disk '${target}': I/O threads are not available on bus '${bus}'`)
  if (driver.iothread !== undefined && !def.iothreads.some(({ id }) => id === driver.iothread))
    throw unsupported(`I/O thread ${driver.iothread} of disk '${target}' is not defined`)
  if (driver.metadataCacheSize !== undefined && disk.source && disk.source.format !== 'qcow2')
    throw unsupported(`disk '${target}': <metadata_cache> is only for format 'qcow2'`)
}

function checkCopyOnRead({ readonly, device, target, source }: DiskDef): void {
  const refuse = (why: string): never => {
    throw unsupported(`disk '${target}': copy_on_read ${why}`)
  }
  if (readonly) refuse('is not compatible with a read-only disk')
  if (device !== 'disk') refuse(`is not supported for device '${device}'`)
  if (source && !FORMATS_WITH_BACKING.includes(source.format ?? 'raw'))
    refuse(`needs an image with a backing image, format '${source.format ?? 'raw'}' has none`)
}

/** Serial, WWN, vendor, product, geometry: who can have which. */
function checkIdentity(disk: DiskDef): void {
  const { serial, wwn, vendor, product, bus, device, target, geometry, rotationRate } = disk
  if (serial !== undefined && !/^[\w\-. +]*$/.test(serial))
    throw fail('VIR_ERR_XML_ERROR', `serial '${serial}' of disk '${target}' has characters that QEMU does not take`)
  if (wwn !== undefined && bus !== 'ide' && bus !== 'scsi' && bus !== 'sata')
    throw unsupported(`disk '${target}': only IDE, SATA and SCSI disks have a WWN`)
  if ((vendor ?? product) !== undefined && bus !== 'scsi')
    throw unsupported(`disk '${target}': only SCSI disks have vendor and product`)
  if (device === 'lun' && (wwn ?? vendor ?? product ?? (bus === 'scsi' ? serial : undefined)) !== undefined)
    throw unsupported(`disk '${target}': device 'lun' has the identity of the host's disk, it cannot be given another`)
  if (geometry && bus === 'usb') throw unsupported(`disk '${target}': geometry cannot be set for bus 'usb'`)
  if (geometry?.trans !== undefined && bus !== 'ide')
    throw unsupported(`disk '${target}': translation of geometry is only for bus 'ide', not '${bus}'`)
  if (rotationRate !== undefined && (device !== 'disk' || !['scsi', 'ide', 'sata'].includes(bus)))
    throw unsupported(`disk '${target}': a rotation rate is only for disks on bus 'scsi', 'ide' or 'sata'`)
}

function checkTuning({ iotune = {}, target }: DiskDef): void {
  for (const [name, value] of Object.entries(iotune)) {
    if (value > THROTTLE_MAX) throw unsupported(`disk '${target}': ${name} can be at most ${THROTTLE_MAX}`)
  }
}
