/** virDomainUpdateDeviceFlags: a device of a domain becomes another one, as far as that is possible while it runs. */
import { parseDeviceXml } from '../../conf/device-xml.js'
import type { DiskDef } from '../../conf/domain-def.js'
import { VIR_DOMAIN_DEVICE_MODIFY_FORCE } from '../../constants.gen.js'
import type { HypervisorOps } from '../../driver.js'
import { failFrom } from '../../error.js'
import { prepareDefinition } from '../../machine/definition.js'
import { checkSupported } from '../../machine/supported.js'
import { Undo } from '../../util/undo.js'
import { sourcePath } from '../blocks/block-graph.js'
import { affected, writeConfig } from './hotplug.js'
import { changeMedium, isRemovable } from './medium.js'
import type { Qemu } from '../core/qemu.js'
import { saveStatus } from '../core/status.js'
import { atHome, requireStaying } from '../core/vm-job.js'
import type { Live, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

function readDisk(xml: string, live: boolean): DiskDef {
  const device = parseDeviceXml(xml)
  if (device.kind === 'disk') return device.def
  const text = `${live ? 'live' : 'persistent'} update of device '${device.kind}' is not supported`
  throw fail(live ? 'VIR_ERR_CONFIG_UNSUPPORTED' : 'VIR_ERR_OPERATION_UNSUPPORTED', text)
}

async function update(qemu: Qemu, vm: Vm, xml: string, flags: number): Promise<void> {
  requireStaying(qemu, vm)
  const { live, config } = affected(vm, flags)
  const wanted = readDisk(xml, live)
  await using undo = new Undo()
  if (config) await updateConfig(qemu, vm, structuredClone(wanted), undo)
  if (live) await updateLive(qemu, vm, vm.requireLive(), wanted, (flags & VIR_DOMAIN_DEVICE_MODIFY_FORCE) !== 0)
  undo.commit()
}

/** It becomes what `wanted` says, completed as at define; its place among the guest's devices stays unless it is said anew. */
async function updateConfig(qemu: Qemu, vm: Vm, wanted: DiskDef, undo: Undo): Promise<void> {
  const next = structuredClone(vm.requireConfig())
  const at = next.disks.findIndex(({ target }) => target === wanted.target)
  const former = next.disks[at]
  if (former === undefined) throw fail('VIR_ERR_INVALID_ARG', `target ${wanted.target} doesn't exist.`)
  if (vm.offline?.blockJobs.ofDisk(wanted.target) !== undefined)
    throw fail('VIR_ERR_OPERATION_UNSUPPORTED', `disk '${wanted.target}' already in active block job`)
  if (former.address !== undefined && former.bus === wanted.bus) wanted.address ??= former.address
  next.disks[at] = wanted
  const caps = await qemu.capabilities.get(next.emulator)
  prepareDefinition(next, caps)
  checkSupported(next, caps)
  writeConfig(qemu, vm, next, undo)
}

async function updateLive(qemu: Qemu, vm: Vm, live: Live, wanted: DiskDef, force: boolean): Promise<void> {
  const disk = live.def.disks.find(({ target }) => target === wanted.target)
  if (disk === undefined) throw fail('VIR_ERR_INTERNAL_ERROR', `disk '${wanted.target}' not found`)
  requireSameDevice(disk, wanted)
  if (isSameImage(disk, wanted)) {
    const policy = wanted.source?.startupPolicy
    if (disk.source !== undefined && policy === undefined) delete disk.source.startupPolicy
    else if (disk.source !== undefined && policy !== undefined) disk.source.startupPolicy = policy
    saveStatus(vm, live)
    return
  }
  if (!isRemovable(disk))
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', 'disk source can be changed only in removable drives')
  await changeMedium(qemu, vm, live, disk, { next: wanted.source, force })
}

const isSameImage = ({ source: one }: DiskDef, { source: other }: DiskDef): boolean =>
  one?.type === other?.type &&
  sourcePath(one) === sourcePath(other) &&
  (one?.type !== 'network' || other?.type !== 'network' || JSON.stringify(one.hosts) === JSON.stringify(other.hosts))

/** What `requireSameDevice` passes over: it names the disk, changes with its medium, or is of a running domain only. */
const others: ReadonlySet<string> = new Set(['target', 'source', 'driver', 'alias', 'tray', 'residue', 'readonly'])
const otherDriver: ReadonlySet<string> = new Set(['name', 'emptyFormat'])

/** What is said must be as it is; what is not said stays. */
function requireSameDevice(disk: DiskDef, wanted: DiskDef): void {
  if (wanted.alias !== undefined && wanted.alias !== disk.alias)
    throw fail('VIR_ERR_OPERATION_DENIED', 'changing device alias is not allowed')
  const field = differing(disk, wanted, others) ?? differing(disk.driver, wanted.driver, otherDriver)
  if (field !== undefined) throw fail('VIR_ERR_OPERATION_UNSUPPORTED', `cannot modify field '${field}' of the disk`)
}

function differing(is: object, wanted: object, except: ReadonlySet<string>): string | undefined {
  const now = new Map<string, unknown>(Object.entries(is))
  return Object.entries(wanted).find(
    ([name, value]) =>
      !except.has(name) && value !== undefined && JSON.stringify(now.get(name)) !== JSON.stringify(value),
  )?.[0]
}

export function updateOps(qemu: Qemu): Pick<HypervisorOps, 'domainUpdateDevice'> {
  return { domainUpdateDevice: (ref, xml, flags) => atHome(qemu, ref, (vm) => update(qemu, vm, xml, flags)) }
}
