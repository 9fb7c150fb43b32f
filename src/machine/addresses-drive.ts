import type { DiskDef, DomainDef, DriveAddress } from '../conf/domain-def.js'
import { failFrom } from '../error.js'

const fail = failFrom('VIR_FROM_QEMU')

/** Units on one narrow SCSI bus, as libvirt counts them when it places a disk by its name. */
const SCSI_UNITS = 7

/** Position that a target names: 'vda' is 0, 'sdb' 1, 'hdaa' 26 (virDiskNameToIndex). Undefined: not a disk's name. */
export function diskIndex(target: string): number | undefined {
  const letters = /^(?:fd|hd|vd|sd|xvd|ubd)([a-z]{1,6})\d*$/.exec(target)?.[1]
  if (letters === undefined) return undefined
  return Array.from(letters).reduce((index, letter) => index * 26 + letter.charCodeAt(0) - 96, 0) - 1
}

/** Where a disk goes when only its target is given (virDomainDiskDefAssignAddress). */
function driveAddressOf(disk: DiskDef, index: number): DriveAddress | undefined {
  const at = (controller: number, bus: number, unit: number): DriveAddress => ({
    type: 'drive',
    controller,
    bus,
    target: 0,
    unit,
  })
  switch (disk.bus) {
    case 'scsi':
      return at(Math.floor(index / SCSI_UNITS), 0, index % SCSI_UNITS)
    case 'ide':
      return at(Math.floor(index / 4), Math.floor((index % 4) / 2), index % 2)
    case 'sata':
      return at(Math.floor(index / 6), 0, index % 6)
    case 'fdc':
      return at(Math.floor(index / 2), 0, index % 2)
    default:
      return undefined
  }
}

/** Gives every disk on a drive bus its place, and refuses a place that two disks want (VIR_ERR_XML_ERROR). */
export function assignDriveAddresses(def: DomainDef): void {
  for (const disk of def.disks) {
    if (disk.address) continue
    const index = diskIndex(disk.target)
    if (index === undefined)
      throw fail('VIR_ERR_XML_ERROR', `unknown disk name '${disk.target}' and no address specified`)
    const address = driveAddressOf(disk, index)
    if (address) disk.address = address
  }
  refuseSharedPlaces(def)
}

function refuseSharedPlaces(def: DomainDef): void {
  const taken = new Map<string, DiskDef>()
  for (const disk of def.disks) {
    if (disk.address?.type !== 'drive') continue
    const { controller, bus, target, unit } = disk.address
    const place = `${disk.bus} controller ${controller}, bus ${bus}, target ${target}, unit ${unit}`
    const other = taken.get(place)
    if (other)
      throw fail('VIR_ERR_XML_ERROR', `disks '${other.target}' and '${disk.target}' have the same address: ${place}`)
    taken.set(place, disk)
  }
}

/** Disks of one bus in the order of their names, the buses where they first came (virDomainDiskInsert). */
export function sortDisks(def: DomainDef): void {
  const position = ({ target }: DiskDef): number => diskIndex(target) ?? -1
  const buses = [...new Set(def.disks.map(({ bus }) => bus))]
  def.disks.sort((a, b) => buses.indexOf(a.bus) - buses.indexOf(b.bus) || position(a) - position(b))
}
