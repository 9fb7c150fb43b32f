import type { ControllerDef, DiskDef, DomainDef } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { diskIndex } from './addresses-drive.js'
import { findController } from './controllers.js'
import { syncConsole } from './defaults-chardevs.js'
import { type AnyDevice, devicesOf } from './devices.js'
import { isQ35 } from './machine.js'

const fail = failFrom('VIR_FROM_QEMU')

/**
 * Names every device of a domain that is about to run, as libvirt does (qemuAssignDeviceAliases): `virtio-disk0`, `net0`,
 * `pci.1`. Names that the user gave ('ua-…') stay. A name that two devices have is VIR_ERR_XML_ERROR.
 */
export function assignAliases(def: DomainDef): void {
  checkAliases(def)
  for (const disk of def.disks) disk.alias ??= diskAlias(def, disk)
  numberFrom('net', def.interfaces)
  def.videos.forEach((video, nth) => (video.alias ??= `video${nth}`))
  for (const controller of def.controllers) controller.alias ??= controllerAlias(def, controller)
  def.inputs.forEach((input, nth) => (input.alias ??= `input${nth}`))
  def.serials.forEach((serial, nth) => (serial.alias ??= `serial${nth}`))
  def.channels.forEach((channel, nth) => (channel.alias ??= `channel${nth}`))
  def.consoles.forEach((console, nth) => (console.alias ??= `console${nth}`))
  def.watchdogs.forEach((watchdog, nth) => (watchdog.alias ??= `watchdog${nth}`))
  if (def.memballoon && def.memballoon.model !== 'none') def.memballoon.alias ??= 'balloon0'
  numberFrom('rng', def.rngs)
  syncConsole(def)
  checkAliases(def)
}

/**
 * The alias of a disk, given or to come (qemuAssignDeviceDiskAlias). On a drive bus it tells the place, elsewhere the
 * position that the target names, so the third disk of a USB bus is `usb-disk0` when it is called 'sda'.
 */
export function diskAlias(def: DomainDef, disk: DiskDef): string {
  if (disk.alias !== undefined) return disk.alias
  const { address, bus } = disk
  if (address?.type !== 'drive') return `${bus}-disk${diskIndex(disk.target) ?? -1}`
  const { controller, bus: channel, target, unit } = address
  const flat = bus !== 'scsi' || findController(def, 'scsi', controller)?.model === 'lsilogic'
  return flat ? `${bus}${controller}-${channel}-${unit}` : `${bus}${controller}-${channel}-${target}-${unit}`
}

/** How QEMU is told of an I/O thread. */
export const ioThreadName = (id: number): string => `iothread${id}`

/** The I/O thread that does the requests of a disk; undefined: QEMU's main thread. */
export function ioThreadOf(def: DomainDef, { address, bus, driver }: DiskDef): string | undefined {
  const controller =
    bus === 'scsi' && address?.type === 'drive' ? findController(def, bus, address.controller) : undefined
  const id = driver.iothread ?? controller?.driver?.iothread
  return id === undefined ? undefined : ioThreadName(id)
}

/** The controllers that QEMU makes by itself have its names; USB starts as plain 'usb'. */
function controllerAlias(def: DomainDef, { type, index, model }: ControllerDef): string {
  if (type === 'pci') return model === 'pcie-root' ? `pcie.${index}` : `pci.${index}`
  if (index === 0) {
    if (type === 'ide' && !isQ35(def)) return 'ide'
    if (type === 'sata' && isQ35(def)) return 'ide'
    if (type === 'usb') return 'usb'
    if (type === 'scsi' && model === 'ncr53c90') return 'scsi'
  }
  return `${type}${index}`
}

/** Numbers devices from the highest number on that one of them has already. */
function numberFrom(prefix: string, devices: { alias?: string }[]): void {
  const taken = devices.flatMap(({ alias }) => {
    const digits = alias?.startsWith(prefix) ? /^\d+$/.exec(alias.slice(prefix.length))?.[0] : undefined
    return digits === undefined ? [] : [Number(digits)]
  })
  let next = taken.reduce((most, index) => Math.max(most, index), -1) + 1
  for (const device of devices) device.alias ??= `${prefix}${next++}`
}

/** The parts of a USB 2 controller go by one name; every other name has one bearer. */
function checkAliases(def: DomainDef): void {
  const bearers = new Set<string>()
  for (const one of devicesOf(def)) {
    const { alias } = one.device
    if (alias === undefined || isCompanion(one)) continue
    if (bearers.has(alias)) throw fail('VIR_ERR_XML_ERROR', `several devices have the alias '${alias}'`)
    bearers.add(alias)
  }
}

function isCompanion(one: AnyDevice): boolean {
  return one.kind === 'controller' && one.device.type === 'usb' && one.device.master !== undefined
}

/**
 * Numbers the images of a domain, `<source index>` and `<backingStore index>`, as libvirt does: from the last disk to the
 * first, each chain downwards. Called once before the backing chains are looked up on disk and again when images were
 * found or added.
 * @param last the highest number given out in this run so far; 0 at its start, where an empty drive uses up a number too
 * @returns the highest number given out now
 */
export function assignSourceIndexes(def: DomainDef, last = 0): number {
  let index = last
  for (const { source } of def.disks.toReversed()) {
    if (!source && last === 0) index++
    for (let image = source; image; image = image.backingStore ?? undefined) image.index ??= ++index
  }
  return index
}
