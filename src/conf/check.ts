import { failFrom } from '../error.js'
import type { DiskDef, DomainDef } from './domain-def.js'

const fail = failFrom('VIR_FROM_DOMAIN')

/**
 * What libvirt's parser refuses although each element is right by itself (virDomainDefPostParse, virDomainDefValidate). Also
 * fills in what depends on more than one element: memory from the NUMA cells, a current memory that is a bit too large.
 */
export function checkDomain(def: DomainDef): void {
  checkMemory(def)
  for (const disk of def.disks) checkDisk(disk)
  checkTargets(def)
  checkBoot(def)
  checkControllers(def)
  checkAliases(def)
  checkAddresses(def)
  checkFirmware(def)
  if (def.videos.filter((video) => video.primary === true).length > 1) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', 'only one video device can be the primary one')
  }
}

/** Older tools rounded: a current memory up to 4 MiB above the maximum is cut down to it. */
const roundingKib = 4096

function checkMemory(def: DomainDef): void {
  const cells = def.cpu?.numa.reduce((sum, cell) => sum + cell.memory, 0) ?? 0
  if (def.memory === 0) {
    if (cells === 0) throw fail('VIR_ERR_XML_ERROR', "the domain needs an element 'memory' or NUMA cells")
    def.memory = cells
    if (def.currentMemory === 0) def.currentMemory = cells
  }
  if (def.currentMemory > def.memory) {
    if (def.currentMemory - def.memory >= roundingKib) {
      throw fail(
        'VIR_ERR_XML_ERROR',
        `the current memory '${def.currentMemory}k' is more than the maximum '${def.memory}k'`,
      )
    }
    def.currentMemory = def.memory
  }
}

/** What is refused of one disk by itself. */
export function checkDisk(disk: DiskDef): void {
  checkTargetName(disk)
  const removable = disk.device === 'cdrom' || disk.device === 'floppy'
  if (disk.source === undefined && !removable)
    throw fail('VIR_ERR_NO_SOURCE', `the disk '${disk.target}' has no source`)
  checkBus(disk)
  checkLimits(disk)
  if (disk.tray !== undefined && !removable) {
    throw fail(
      'VIR_ERR_CONFIG_UNSUPPORTED',
      `the disk '${disk.target}' is neither a CD-ROM nor a floppy and has no tray`,
    )
  }
  if (disk.removable !== undefined && disk.bus !== 'usb') {
    throw fail('VIR_ERR_XML_ERROR', `only a disk on bus 'usb' can be removable, not '${disk.target}'`)
  }
  const policy = disk.source?.startupPolicy
  if (policy !== undefined && disk.source?.type === 'network') {
    throw fail('VIR_ERR_XML_ERROR', `the startup policy '${policy}' is not for network disks like '${disk.target}'`)
  }
  if (policy === 'requisite' && !removable) {
    throw fail('VIR_ERR_XML_ERROR', `the startup policy 'requisite' is not for hard disks like '${disk.target}'`)
  }
}

function checkTargetName({ device, target }: DiskDef): void {
  if (/^(hd|sd|vd|xvd|ubd|fd)[a-z]+\d+$/.test(target)) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `the target '${target}' is the name of a partition, not of a disk`)
  }
  const wanted = { floppy: /^fd[a-z]+$/, cdrom: /^(fd|hd|sd|vd|xvd|ubd)[a-z]+$/, disk: undefined, lun: undefined }[
    device
  ]
  if ((wanted ?? /^(hd|sd|vd|xvd|ubd)[a-z]+$/).test(target)) return
  throw fail(
    'VIR_ERR_XML_ERROR',
    `attribute 'dev' of element 'target' can't be '${target}' for a disk of device '${device}'`,
  )
}

function checkBus(disk: DiskDef): void {
  const { bus, device, target, driver } = disk
  if ((device === 'floppy') !== (bus === 'fdc')) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `the disk '${target}' of device '${device}' can't be on bus '${bus}'`)
  }
  const wanted = { virtio: undefined, scsi: 'drive', sata: 'drive', ide: 'drive', fdc: 'drive', usb: 'usb' }[bus]
  const { address } = disk
  if (address !== undefined && wanted !== undefined && address.type !== wanted) {
    throw fail(
      'VIR_ERR_CONFIG_UNSUPPORTED',
      `the disk '${target}' on bus '${bus}' can't have an address of type '${address.type}'`,
    )
  }
  if (bus === 'virtio') return
  const only = [
    disk.model !== undefined && 'model',
    driver.queues !== undefined && driver.queues > 0 && 'queues',
    driver.eventIdx !== undefined && 'event_idx',
    driver.ioeventfd !== undefined && 'ioeventfd',
    driver.virtio !== undefined && Object.keys(driver.virtio)[0],
  ].find((name) => typeof name === 'string')
  if (only !== undefined)
    throw fail(
      'VIR_ERR_CONFIG_UNSUPPORTED',
      `'${only}' is only for a disk on bus 'virtio', not for '${target}' on '${bus}'`,
    )
}

function checkLimits({ iotune, target }: DiskDef): void {
  if (iotune === undefined) return
  for (const kind of ['bytes_sec', 'iops_sec', 'bytes_sec_max', 'iops_sec_max']) {
    const [total, read, write] = ['total', 'read', 'write'].map((way) => iotune[`${way}_${kind}`] ?? 0)
    if (total && (read || write)) {
      throw fail(
        'VIR_ERR_XML_ERROR',
        `the disk '${target}' can't limit both 'total_${kind}' and the reads or writes in it`,
      )
    }
  }
}

function checkTargets(def: DomainDef): void {
  const seen = new Map<string, DiskDef>()
  for (const disk of def.disks) {
    if (seen.has(disk.target))
      throw fail('VIR_ERR_XML_ERROR', `the target '${disk.target}' is given to more than one disk`)
    seen.set(disk.target, disk)
  }
}

function bootable(def: DomainDef): { bootOrder?: number }[] {
  return [...def.disks, ...def.interfaces]
}

function checkBoot(def: DomainDef): void {
  const orders = bootable(def).flatMap(({ bootOrder }) => (bootOrder === undefined ? [] : [bootOrder]))
  const twice = orders.find((order, at) => orders.indexOf(order) !== at)
  if (twice !== undefined)
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `the boot order '${twice}' is given to more than one device`)
  if (orders.length > 0 && def.os.boot.length > 0) {
    throw fail(
      'VIR_ERR_CONFIG_UNSUPPORTED',
      "boot orders of devices can't be used together with elements 'boot' of element 'os'",
    )
  }
}

function checkControllers(def: DomainDef): void {
  const seen = new Set<string>()
  for (const { type, index, master } of def.controllers) {
    const name = `${type} ${index}`
    if (seen.has(name) && !(type === 'usb' && master !== undefined)) {
      const companions = def.controllers.filter((each) => each.type === type && each.index === index)
      if (type !== 'usb' || companions.filter((each) => each.master === undefined).length > 1) {
        throw fail('VIR_ERR_XML_ERROR', `there is more than one controller of type '${type}' with the index '${index}'`)
      }
    }
    seen.add(name)
  }
}

interface Addressed {
  alias?: string
  address?: DomainDef['disks'][number]['address']
}

function devices(def: DomainDef): Addressed[] {
  const {
    disks,
    controllers,
    interfaces,
    serials,
    consoles,
    channels,
    inputs,
    videos,
    rngs,
    watchdogs,
    panics,
    memballoon,
  } = def
  return [
    ...[...disks, ...controllers, ...interfaces, ...serials, ...channels, ...inputs, ...videos, ...rngs],
    ...[...watchdogs, ...panics, ...(memballoon ? [memballoon] : [])],
    ...consoles.filter((console) => console.targetType === 'virtio'),
  ]
}

function checkAliases(def: DomainDef): void {
  const seen = new Set<string>()
  for (const device of devices(def)) {
    const { alias } = device
    // the companions of a USB controller go by its name
    if (alias === undefined || 'master' in device) continue
    if (seen.has(alias))
      throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `the alias '${alias}' is given to more than one device`)
    seen.add(alias)
  }
}

/** A place on a PCI bus or on a disk controller holds one device. */
function checkAddresses(def: DomainDef): void {
  const seen = new Set<string>()
  const refuseTwice = (place: string): void => {
    if (seen.has(place)) throw fail('VIR_ERR_XML_ERROR', `the address ${place} is given to more than one device`)
    seen.add(place)
  }
  for (const { address } of devices(def)) {
    if (address?.type !== 'pci') continue
    const { domain, bus, slot, function: fn } = address
    if (domain + bus + slot + fn > 0)
      refuseTwice(`'pci ${[domain, bus, slot].map((n) => n.toString(16)).join(':')}.${fn}'`)
  }
  for (const { bus, address } of def.disks) {
    if (address?.type !== 'drive') continue
    const { controller, bus: channel, target, unit } = address
    refuseTwice(`'${bus} controller ${controller} bus ${channel} target ${target} unit ${unit}'`)
  }
}

function checkFirmware({ os }: DomainDef): void {
  const { firmware, loader, nvram } = os
  if (firmware === undefined) {
    if (loader !== undefined && loader.path === undefined) {
      throw fail(
        'VIR_ERR_XML_DETAIL',
        "element 'loader' names no file, and element 'os' has no attribute 'firmware' to choose one by",
      )
    }
    return
  }
  const said = loader && (['readonly', 'type', 'path'] as const).find((name) => loader[name] !== undefined)
  if (said !== undefined) {
    throw fail(
      'VIR_ERR_XML_DETAIL',
      `the firmware is chosen by attribute 'firmware', so element 'loader' can't say its '${said}'`,
    )
  }
  if (loader?.secure === 'no')
    throw fail(
      'VIR_ERR_XML_DETAIL',
      "the firmware is chosen by attribute 'firmware', so attribute 'secure' can't be 'no'",
    )
  if (nvram?.path !== undefined && firmware !== 'efi') {
    throw fail('VIR_ERR_XML_DETAIL', `a firmware of type '${firmware}' has no NVRAM`)
  }
}
