import { failFrom } from '../error.js'
import type { DiskBus, DiskDef, DiskDriverDef } from './domain-def.js'
import * as fields from './disk-fields.js'
import { readDevice, readVirtio } from './parse-device.js'
import { isModelledSource, readBackingStore, readSource } from './parse-source.js'
import type { Reader } from './reader.js'
import { oneOf, part, readAttr, readFields, readSize, readText, whole } from './values.js'

const fail = failFrom('VIR_FROM_DOMAIN')

const foreignBuses = ['xen', 'uml', 'sd']

/**
 * One `<disk>` (virDomainDiskDefParseXML and its post-parse): a bus that is not said follows from the target's name, a
 * format that is not said is raw and never probed. Undefined for a disk on something that we do not model.
 */
export function parseDisk(reader: Reader): DiskDef | undefined {
  if (!isModelledSource(reader) || foreignBuses.includes(reader.peekChild('target', 'bus') ?? '')) return undefined
  const device = readAttr(reader, 'device', oneOf('disk', 'cdrom', 'floppy', 'lun')) ?? 'disk'
  const model = readAttr(reader, 'model', oneOf('default', 'virtio', 'virtio-transitional', 'virtio-non-transitional'))
  const target = reader.child('target')
  const name = targetName(reader, target)
  const driver = reader.child('driver')
  const bus = (target && readAttr(target, 'bus', fields.bus)) ?? busOf(device, name)
  return {
    device,
    target: name,
    bus,
    ...(model !== undefined && model !== 'default' && { model }),
    ...(target && readFields(target, fields.target)),
    ...readImage(reader, driver),
    readonly: reader.child('readonly') !== undefined || device === 'cdrom',
    shareable: reader.child('shareable') !== undefined,
    ...(reader.child('transient') && { transient: true }),
    ...readTexts(reader),
    ...readBlocks(reader),
    ...readDevice(reader, { boot: true }),
    ...reader.residue(),
  }
}

function targetName(reader: Reader, target: Reader | undefined): string {
  const name = target?.attr('dev')?.replace(/^ioemu:/, '')
  if (name === undefined || name === '') {
    throw fail(
      'VIR_ERR_NO_TARGET',
      `a disk needs a target with the attribute 'dev' (element 'disk' of line ${reader.line})`,
    )
  }
  return name
}

function busOf(device: DiskDef['device'], target: string): DiskBus {
  if (device === 'floppy') return 'fdc'
  if (target.startsWith('sd')) return 'scsi'
  if (target.startsWith('vd')) return 'virtio'
  return 'ide'
}

/** The driver, the image that it shows and the chain below; a source without a path is an empty drive. */
function readImage(disk: Reader, driver: Reader | undefined): Pick<DiskDef, 'driver' | 'source'> {
  const format = (driver && readAttr(driver, 'type', fields.format)) ?? 'raw'
  const source = readSource(disk, disk.child('source'))
  const read = readDriver(driver)
  if (source === undefined) return { driver: { ...read, emptyFormat: format } }
  const backingStore = readBackingStore(disk)
  return {
    driver: read,
    source: { ...source, format, ...(backingStore !== undefined && { backingStore }) },
  }
}

function readDriver(driver: Reader | undefined): DiskDriverDef {
  if (driver === undefined) return {}
  const size = driver.child('metadata_cache')?.child('max_size')
  return {
    ...readFields(driver, fields.driver),
    ...readVirtio(driver),
    ...(size && { metadataCacheSize: readSize(size, 'bytes') }),
  }
}

function readTexts(reader: Reader): Pick<DiskDef, 'serial' | 'wwn' | 'vendor' | 'product'> {
  const wwn = reader.childText('wwn')
  if (wwn !== undefined && !/^(0x)?[0-9a-f]{16}$/i.test(wwn)) {
    throw fail('VIR_ERR_XML_ERROR', `element 'wwn' needs 16 hexadecimal digits, not '${wwn}'`)
  }
  const [serial, vendor, product] = [
    reader.childText('serial'),
    readPrintable(reader, 'vendor', 8),
    readPrintable(reader, 'product', 16),
  ]
  return {
    ...part('serial', serial),
    ...part('wwn', wwn),
    ...part('vendor', vendor),
    ...part('product', product),
  }
}

function readPrintable(reader: Reader, name: string, most: number): string | undefined {
  const value = reader.childText(name)
  if (value === undefined) return undefined
  if (!/^[\x20-\x7e]*$/.test(value))
    throw fail('VIR_ERR_XML_ERROR', `element '${name}' holds '${value}', which is not printable`)
  if (value.length > most) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `element '${name}' holds '${value}', more than ${most} characters`)
  }
  return value
}

function readBlocks(reader: Reader): Pick<DiskDef, 'blockio' | 'iotune' | 'geometry'> {
  const [blockio, geometry, iotune] = [
    reader.child('blockio'),
    reader.child('geometry'),
    readIotune(reader.child('iotune')),
  ]
  return {
    ...part('blockio', blockio && readFields(blockio, fields.blockio)),
    ...(geometry && { geometry: { cyls: 0, heads: 0, secs: 0, ...readFields(geometry, fields.geometry) } }),
    ...part('iotune', iotune),
  }
}

function readIotune(reader: Reader | undefined): Record<string, number> | undefined {
  if (reader === undefined) return undefined
  const limits: Record<string, number> = {}
  for (const name of fields.iotune) {
    const child = reader.child(name)
    if (child !== undefined) limits[name] = readText(child, whole())
  }
  return limits
}
