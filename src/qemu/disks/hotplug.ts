/** Disks come to a domain and leave it, while it runs, in its definition, or both (virDomainAttachDeviceFlags). */
import type { DiskDef, DomainDef } from '../../conf/domain-def.js'
import { parseDeviceXml } from '../../conf/device-xml.js'
import { inactiveDef } from '../../conf/inactive.js'
import { VIR_DOMAIN_AFFECT_CONFIG, VIR_DOMAIN_AFFECT_LIVE } from '../../constants.gen.js'
import type { DomainRef, HypervisorOps } from '../../driver.js'
import { failFrom, messageOf } from '../../error.js'
import { resolveBackingChain } from '../../storage/chain.js'
import { Undo } from '../../util/undo.js'
import { diskAlias } from '../../machine/alias.js'
import { sortDisks } from '../../machine/addresses-drive.js'
import { settleBaseTimeout } from '../streams/base-timeout.js'
import { chainOf, nextIndex } from '../blocks/block-graph.js'
import { busyImage, imagePaths } from '../access/busy-images.js'
import type { QemuCapabilities } from '../../machine/capabilities.js'
import { bootIndexes, diskDevice, ioThrottleArguments } from '../../machine/command-disk.js'
import { saveConfig } from '../core/config.js'
import { prepareDefinition } from '../../machine/definition.js'
import { devicesOf } from '../../machine/devices.js'
import { addDiskNodes } from '../core/disk-nodes.js'
import type { Qemu } from '../core/qemu.js'
import { saveStatus, saveStatusOrSay } from '../core/status.js'
import { checkLinks } from '../streams/checks.js'
import { checkSupported } from '../../machine/supported.js'
import { isPluggable, unplug } from './unplug.js'
import { requireStaying } from '../core/vm-job.js'
import type { Live, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** What VIR_DOMAIN_AFFECT_* says; without either it is what there is: the running domain, or else its definition. */
export function affected(vm: Vm, flags: number): { live: boolean; config: boolean } {
  const current = (flags & (VIR_DOMAIN_AFFECT_LIVE | VIR_DOMAIN_AFFECT_CONFIG)) === 0
  const live = current ? vm.live !== undefined : (flags & VIR_DOMAIN_AFFECT_LIVE) !== 0
  const config = current ? vm.live === undefined : (flags & VIR_DOMAIN_AFFECT_CONFIG) !== 0
  if (live) vm.requireLive()
  if (config) vm.requireConfig()
  return { live, config }
}

function readDisk(xml: string, what: 'attach' | 'detach', live: boolean): DiskDef {
  const device = parseDeviceXml(xml)
  if (device.kind === 'disk') return device.def
  const text = `${live ? 'live' : 'persistent'} ${what} of device '${device.kind}' is not supported`
  throw fail('VIR_ERR_OPERATION_UNSUPPORTED', text)
}

function requireNew(def: DomainDef, { target }: DiskDef): void {
  if (def.disks.some((disk) => disk.target === target))
    throw fail('VIR_ERR_OPERATION_INVALID', `target '${target}' already exists`)
}

/** `def` with one disk more, completed as at define. */
function withDisk(def: DomainDef, disk: DiskDef, caps: QemuCapabilities): DomainDef {
  requireNew(def, disk)
  const next = structuredClone(def)
  next.disks.push(structuredClone(disk))
  prepareDefinition(next, caps)
  checkSupported(next, caps)
  return next
}

export function writeConfig(qemu: Qemu, vm: Vm, next: DomainDef, undo: Undo): void {
  const before = vm.requireConfig()
  undo.add(() => {
    vm.config = before
    saveConfig(qemu.root, before)
  })
  vm.config = next
  saveConfig(qemu.root, next)
}

async function attach(qemu: Qemu, vm: Vm, xml: string, flags: number): Promise<void> {
  const { live, config } = affected(vm, flags)
  const disk = readDisk(xml, 'attach', live)
  await using undo = new Undo()
  if (config) {
    const before = vm.requireConfig()
    const caps = await qemu.capabilities.get(before.emulator)
    writeConfig(qemu, vm, withDisk(before, disk, caps), undo)
  }
  if (live) await plug(qemu, vm, vm.requireLive(), disk)
  undo.commit()
}

async function detach(qemu: Qemu, vm: Vm, xml: string, flags: number): Promise<void> {
  const { live, config } = affected(vm, flags)
  const { target } = readDisk(xml, 'detach', live)
  await using undo = new Undo()
  if (config) {
    const next = structuredClone(vm.requireConfig())
    if (vm.offline?.blockJobs.ofDisk(target) !== undefined)
      throw fail('VIR_ERR_OPERATION_UNSUPPORTED', `disk '${target}' already in active block job`)
    next.disks = next.disks.filter((disk) => disk.target !== target)
    if (next.disks.length === vm.requireConfig().disks.length)
      throw fail('VIR_ERR_DEVICE_MISSING', `no target device '${target}'`)
    writeConfig(qemu, vm, next, undo)
  }
  if (live) await unplug(qemu, vm, vm.requireLive(), target)
  undo.commit()
}

/** Under the domain's job: a running guest gets a disk. It is in the status before QEMU has it. */
async function plug(qemu: Qemu, vm: Vm, live: Live, wanted: DiskDef): Promise<void> {
  const disk = await prepareDisk(qemu, live, wanted)
  await using undo = new Undo()
  live.def.disks.push(disk)
  sortDisks(live.def)
  undo.add(() => {
    live.def.disks.splice(live.def.disks.indexOf(disk), 1)
    if (vm.live === live) saveStatusOrSay(vm, live, (text) => qemu.warn(text))
  })
  saveStatus(vm, live)
  for (const image of chainOf(disk)) {
    await live.access.grantImage(disk, image)
    undo.add(() => live.access.revokeImages(disk, [image]))
  }
  const drive = disk.source && (await addDiskNodes(qemu, live, disk, undo))
  await live.monitor.passThrough('device_add', deviceOf(live.def, disk, drive)).catch((error: unknown) => {
    throw busyImage(messageOf(error), imagePaths([disk]), error) ?? error
  })
  undo.commit()
  vm.requireSame(live)
  const limits = ioThrottleArguments(disk)
  if (limits !== undefined) await live.monitor.blockSetIoThrottle(limits)
  qemu.host.emit({ kind: 'device-added', domain: vm.ref, alias: disk.alias ?? '' })
}

/** Its place among the guest's devices, its chain, its names. */
async function prepareDisk(qemu: Qemu, live: Live, wanted: DiskDef): Promise<DiskDef> {
  const caps = await qemu.capabilities.get(live.def.emulator)
  if (!isPluggable(wanted)) throw fail('VIR_ERR_OPERATION_UNSUPPORTED', `disk bus '${wanted.bus}' cannot be hotplugged`)
  const def = withDisk(inactiveDef(live.def), wanted, caps)
  const disk = def.disks.find(({ target }) => target === wanted.target)
  if (disk === undefined || def.controllers.length !== live.def.controllers.length) {
    const text = `bus '${wanted.bus}' has no place left for disk '${wanted.target}', and a running domain gets no new controllers`
    throw fail('VIR_ERR_OPERATION_UNSUPPORTED', text)
  }
  if (disk.source !== undefined) await resolveBackingChain(disk.source)
  await checkLinks(disk)
  settleBaseTimeout(disk, qemu.baseTimeout)
  disk.alias ??= diskAlias(live.def, disk)
  if (devicesOf(live.def).some(({ device }) => device.alias === disk.alias))
    throw fail('VIR_ERR_XML_ERROR', `several devices have the alias '${disk.alias}'`)
  let index = nextIndex(live.def, live.guards)
  for (const image of chainOf(disk)) image.index = index++
  return disk
}

function deviceOf(def: DomainDef, disk: DiskDef, drive: string | undefined): object {
  const { wwn, ...device } = diskDevice(def, disk, drive, bootIndexes(def).get(disk.alias ?? ''))
  if (typeof wwn !== 'bigint') return device
  if (wwn > BigInt(Number.MAX_SAFE_INTEGER))
    throw fail('VIR_ERR_OPERATION_UNSUPPORTED', `disk '${disk.target}' with a wwn cannot be hotplugged`)
  return { ...device, wwn: Number(wwn) }
}

export function hotplugOps(qemu: Qemu): Pick<HypervisorOps, 'domainAttachDevice' | 'domainDetachDevice'> {
  const run = async (ref: DomainRef, work: (vm: Vm) => Promise<void>): Promise<void> => {
    const vm = qemu.require(ref)
    await vm.jobs.run('modify', async () => {
      requireStaying(qemu, vm)
      await work(qemu.require(ref))
    })
  }
  return {
    domainAttachDevice: (ref, xml, flags) => run(ref, (vm) => attach(qemu, vm, xml, flags)),
    domainDetachDevice: (ref, xml, flags) => run(ref, (vm) => detach(qemu, vm, xml, flags)),
  }
}
