/** Questions; nothing here changes a domain. */
import { hostname } from 'node:os'
import { PassThrough } from 'node:stream'
import { formatDomainXml } from '../conf/format.js'
import { isListed } from '../conf/list-flags.js'
import * as c from '../constants.gen.js'
import type { DomainBlockStats, DomainInfo, HypervisorOps } from '../driver.js'
import { packageNumber } from '../util/package.js'
import { DISK_SIZE } from './copied.js'
import type { TestDomain, World } from './world.js'
import { fail, findDisk, noDomain } from './world.js'

/** version of this hypervisor, 1000000 * major + 1000 * minor + release */
const VERSION = 2

function listed({ live, config, state, managedSave, autostart }: TestDomain, flags: number): boolean {
  const [active, persistent, saved] = [live !== undefined, config !== undefined, managedSave !== undefined]
  return isListed({ active, persistent, state: state.state, managedSave: saved, autostart }, flags)
}

function xmlOf(domain: TestDomain, flags: number): string {
  const migratable = (flags & c.VIR_DOMAIN_XML_MIGRATABLE) !== 0
  const inactive = (flags & c.VIR_DOMAIN_XML_INACTIVE) !== 0 || domain.live === undefined
  const def = inactive ? (domain.config ?? domain.def) : domain.def
  const secure = (flags & c.VIR_DOMAIN_XML_SECURE) !== 0 || migratable
  return formatDomainXml(def, { secure, inactive, migratable })
}

/** ns that the CPUs of a running domain have worked */
function cpuTime({ live }: TestDomain): number {
  return live === undefined ? 0 : Math.round((performance.now() - live.since) * 1e6)
}

function infoOf(domain: TestDomain): DomainInfo {
  const { memory, currentMemory, vcpu } = domain.def
  return {
    state: domain.state.state,
    maxMem: memory,
    memory: domain.live === undefined ? memory : currentMemory,
    nrVirtCpu: vcpu.current ?? vcpu.max,
    cpuTime: cpuTime(domain),
  }
}

/** A guest that reads and writes one block with every millisecond. */
function statsOf(domain: TestDomain): DomainBlockStats {
  const requests = Math.floor(cpuTime(domain) / 1e6)
  return {
    rdReq: requests,
    rdBytes: requests * 4096,
    rdTotalTimes: requests * 100_000,
    wrReq: requests,
    wrBytes: requests * 4096,
    wrTotalTimes: requests * 100_000,
    flushReq: Math.floor(requests / 100),
    flushTotalTimes: Math.floor(requests / 100) * 1_000_000,
    errs: 0,
  }
}

function capabilitiesXml(): string {
  return `<capabilities>
  <host>
    <cpu>
      <arch>x86_64</arch>
    </cpu>
  </host>
  <guest>
    <os_type>hvm</os_type>
    <arch name='x86_64'>
      <wordsize>64</wordsize>
      <domain type='test'/>
    </arch>
  </guest>
</capabilities>
`
}

type QueryOps = Pick<
  HypervisorOps,
  | 'connectGetType'
  | 'connectGetHostname'
  | 'connectGetVersion'
  | 'connectGetLibVersion'
  | 'connectGetCapabilities'
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
  | 'domainOpenConsole'
>

/* eslint-disable @typescript-eslint/require-await -- operations are async, and nothing here has to wait */
export function queryOps(world: World): QueryOps {
  const one = (what: string, matches: (domain: TestDomain) => boolean): TestDomain => {
    const domain = world.domains.find(matches)
    if (domain === undefined) throw noDomain(what)
    return domain
  }
  return {
    connectGetType: async () => 'TEST',
    connectGetHostname: async () => hostname(),
    connectGetVersion: async () => VERSION,
    connectGetLibVersion: async () => packageNumber,
    connectGetCapabilities: async () => capabilitiesXml(),
    connectListAllDomains: async (flags) =>
      world.domains.filter((domain) => listed(domain, flags)).map((domain) => domain.ref),
    domainLookupByName: async (name) => one(`name '${name}'`, (domain) => domain.name === name).ref,
    domainLookupByUUID: async (uuid) => one(`uuid '${uuid}'`, (domain) => domain.uuid === uuid).ref,
    domainLookupByID: async (id) => one(`id '${id}'`, (domain) => domain.live?.id === id).ref,
    domainGetXMLDesc: async (ref, flags) => xmlOf(world.require(ref), flags),
    domainGetState: async (ref) => ({ ...world.require(ref).state }),
    domainGetInfo: async (ref) => infoOf(world.require(ref)),
    domainIsActive: async (ref) => world.require(ref).live !== undefined,
    domainIsPersistent: async (ref) => world.require(ref).config !== undefined,
    async domainGetBlockInfo(ref, name) {
      const domain = world.require(ref)
      const disk = findDisk(domain.def, name)
      if (disk.source === undefined) throw fail('VIR_ERR_INVALID_ARG', `disk '${disk.target}' has no medium`)
      const copied = disk.source.backingStore ? domain.copiedOf(disk).total : DISK_SIZE
      return { capacity: DISK_SIZE, allocation: copied, physical: copied }
    },
    async domainBlockStats(ref, name) {
      const domain = world.require(ref)
      if (name !== '') findDisk(domain.requireLive().def, name)
      domain.requireLive()
      return statsOf(domain)
    },
    /** A console that says back what it hears. */
    async domainOpenConsole(ref, device) {
      const { def } = world.require(ref).requireLive()
      const devices = [...def.consoles, ...def.serials, ...def.channels]
      const found = device === undefined ? devices[0] : devices.find(({ alias }) => alias === device)
      if (found === undefined)
        throw fail(
          'VIR_ERR_INTERNAL_ERROR',
          `cannot find character device ${device === undefined ? '' : `'${device}'`}`,
        )
      return new PassThrough()
    },
  }
}
