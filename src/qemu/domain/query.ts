/** Questions about domains and the host; nothing here changes a domain. */
import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'
import { stat } from 'node:fs/promises'
import { formatDomainXml } from '../../conf/format.js'
import { isListed } from '../../conf/list-flags.js'
import type { DiskDef } from '../../conf/domain-def.js'
import * as c from '../../constants.gen.js'
import type { DomainBlockInfo, DomainBlockStats, DomainInfo, HypervisorOps } from '../../driver.js'
import { failFrom } from '../../error.js'
import { blockInfo } from '../../storage/block-info.js'
import { isDeviceOf } from '../blocks/block-graph.js'
import { formatNodeName } from '../../machine/blockdev.js'
import { findDisk } from '../blocks/disk-names.js'
import { hasManagedSave } from '../core/managed-save.js'
import type { BlockDevice, BlockStatsEntry } from '../monitor/types.js'
import type { Qemu } from '../core/qemu.js'
import type { Live, Vm } from '../core/vm.js'
import { packageNumber } from '../../util/package.js'

const fail = failFrom('VIR_FROM_QEMU')

type QueryOps = Pick<
  HypervisorOps,
  | 'connectGetType'
  | 'connectGetHostname'
  | 'connectGetVersion'
  | 'connectGetLibVersion'
  | 'connectGetCapabilities'
  | 'connectGetDomainCapabilities'
  | 'connectListAllDomains'
  | 'domainLookupByName'
  | 'domainLookupByUUID'
  | 'domainLookupByID'
  | 'domainGetXMLDesc'
  | 'domainGetState'
  | 'domainGetInfo'
  | 'domainIsActive'
  | 'domainIsPersistent'
  | 'domainGetBlockInfo'
  | 'domainBlockStats'
>

function listed(qemu: Qemu, vm: Vm, flags: number): boolean {
  const [active, persistent] = [vm.live !== undefined, vm.config !== undefined]
  const { autostart } = vm
  const { state } = vm.state
  return isListed({ active, persistent, state, managedSave: hasManagedSave(qemu, vm), autostart }, flags)
}

function xmlOf(vm: Vm, flags: number): string {
  const migratable = (flags & c.VIR_DOMAIN_XML_MIGRATABLE) !== 0
  const inactive = (flags & c.VIR_DOMAIN_XML_INACTIVE) !== 0 || migratable
  // a transient domain has only its live self to show
  const def = inactive && !migratable ? (vm.config ?? vm.def) : vm.def
  const secure = (flags & c.VIR_DOMAIN_XML_SECURE) !== 0 || migratable
  return formatDomainXml(def, { secure, inactive: inactive || vm.live === undefined, migratable })
}

/** CPU time of a process in nanoseconds, from /proc. */
function cpuTime(pid: number): number {
  const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
  const fields = text.slice(text.lastIndexOf(')') + 2).split(' ')
  const ticks = Number(fields[11]) + Number(fields[12])
  return ticks * 10_000_000 // USER_HZ is 100 on every Linux
}

function infoOf(vm: Vm): DomainInfo {
  const { live, def } = vm
  const { state } = vm.state
  return {
    state,
    maxMem: def.memory,
    memory: live === undefined ? def.memory : def.currentMemory,
    nrVirtCpu: def.vcpu.current ?? def.vcpu.max,
    cpuTime: live === undefined ? 0 : cpuTime(live.pid),
  }
}

async function liveBlockInfo(live: Live, disk: DiskDef): Promise<DomainBlockInfo> {
  const devices = await live.monitor.queryBlock()
  const inserted = devices.find((device: BlockDevice) => isDeviceOf(disk, device.qdev))?.inserted
  const image = inserted?.image
  if (image === undefined || disk.source === undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `disk '${disk.target}' has no medium`)
  const capacity = image['virtual-size']
  const physical = disk.source.type === 'file' ? (await stat(disk.source.path)).size : capacity
  return { capacity, allocation: image['actual-size'] ?? 0, physical }
}

async function liveBlockStats(live: Live, disk: DiskDef): Promise<DomainBlockStats> {
  const entries = await live.monitor.queryBlockstats()
  const own = disk.source && formatNodeName(disk.source)
  const entry = entries.find(
    (e: BlockStatsEntry) => isDeviceOf(disk, e.qdev) || (own !== undefined && e['node-name'] === own),
  )
  if (entry === undefined) throw fail('VIR_ERR_INTERNAL_ERROR', `QEMU has no statistics of disk '${disk.target}'`)
  const s = entry.stats
  return {
    rdReq: s.rd_operations,
    rdBytes: s.rd_bytes,
    rdTotalTimes: s.rd_total_time_ns,
    wrReq: s.wr_operations,
    wrBytes: s.wr_bytes,
    wrTotalTimes: s.wr_total_time_ns,
    flushReq: s.flush_operations,
    flushTotalTimes: s.flush_total_time_ns,
    errs: s.failed_rd_operations + s.failed_wr_operations + s.failed_flush_operations,
  }
}

export function queryOps(qemu: Qemu): QueryOps {
  const lookup = (what: string, vm: Vm | undefined): Vm => {
    if (vm === undefined) throw fail('VIR_ERR_NO_DOMAIN', `no domain with matching ${what}`)
    return vm
  }
  return {
    connectGetType: () => Promise.resolve('QEMU'),
    connectGetHostname: () => Promise.resolve(hostname()),
    connectGetVersion: async () => (await qemu.capabilities.get(undefined)).version,
    connectGetLibVersion: () => Promise.resolve(packageNumber),
    connectGetCapabilities: () => qemu.capabilities.capabilitiesXml(qemu.access.security.names),
    connectGetDomainCapabilities: (emulator, arch, machine, virtType) =>
      qemu.capabilities.domainCapabilitiesXml(emulator, arch, machine, virtType),
    connectListAllDomains: (flags) =>
      Promise.resolve(qemu.vms.filter((vm) => listed(qemu, vm, flags)).map((vm) => vm.ref)),

    async domainLookupByName(name) {
      return Promise.resolve(lookup(`name '${name}'`, qemu.findByName(name)).ref)
    },
    async domainLookupByUUID(uuid) {
      return Promise.resolve(lookup(`uuid '${uuid}'`, qemu.find(uuid.toLowerCase())).ref)
    },
    async domainLookupByID(id) {
      const vm = qemu.vms.find((candidate) => candidate.live?.id === id)
      return Promise.resolve(lookup(`id '${id}'`, vm).ref)
    },

    async domainGetXMLDesc(ref, flags) {
      return Promise.resolve(xmlOf(qemu.require(ref), flags))
    },
    async domainGetState(ref) {
      return Promise.resolve({ ...qemu.require(ref).state })
    },
    async domainGetInfo(ref) {
      return Promise.resolve(infoOf(qemu.require(ref)))
    },
    async domainIsActive(ref) {
      return Promise.resolve(qemu.require(ref).live !== undefined)
    },
    async domainIsPersistent(ref) {
      return Promise.resolve(qemu.require(ref).config !== undefined)
    },

    async domainGetBlockInfo(ref, name) {
      const vm = qemu.require(ref)
      const disk = findDisk(vm.def, name)
      if (disk.source === undefined) throw fail('VIR_ERR_INVALID_ARG', `disk '${disk.target}' has no medium`)
      return vm.live === undefined ? blockInfo(disk.source) : liveBlockInfo(vm.live, disk)
    },
    async domainBlockStats(ref, name) {
      const live = qemu.require(ref).requireLive()
      return liveBlockStats(live, findDisk(live.def, name))
    },
  }
}
