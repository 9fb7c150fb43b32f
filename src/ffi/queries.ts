/** What can be asked of a connection and of a domain. */
import type { DomainRef, HypervisorOps } from '../driver.js'
import koffi from 'koffi'
import { bytesAt, readTypedParamsAt } from './typed-params.js'
import type { Connection } from './connection.js'
import { toJobStats } from './job-stats.js'
import { fillIn } from './numbers.js'
import { States } from './states.js'

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
  | 'domainGetAutostart'
  | 'domainHasManagedSaveImage'
  | 'domainGetJobStats'
>

export function queryOps(conn: Connection): QueryOps {
  const is = (name: 'virDomainIsActive' | 'virDomainIsPersistent') => (ref: DomainRef) =>
    conn.withDomain(ref, async (domain) => (await conn.call(name, domain)) === 1)
  const states = new States(conn)
  const version = async (name: 'virConnectGetVersion' | 'virConnectGetLibVersion'): Promise<number> => {
    const out = fillIn(8)
    await conn.call(name, conn.at, out.bytes)
    return out.ulong(0)
  }
  return {
    // the text stays libvirt's
    connectGetType: async () => koffi.decode.string(await conn.call('virConnectGetType', conn.at)),
    connectGetHostname: () => conn.text('virConnectGetHostname', conn.at),
    connectGetVersion: () => version('virConnectGetVersion'),
    connectGetLibVersion: () => version('virConnectGetLibVersion'),
    connectGetCapabilities: () => conn.text('virConnectGetCapabilities', conn.at),
    connectGetDomainCapabilities: (emulator, arch, machine, virtType, flags) => {
      const wanted = [emulator, arch, machine, virtType].map((text) => text ?? null)
      return conn.text('virConnectGetDomainCapabilities', conn.at, ...wanted, flags)
    },
    connectListAllDomains: (flags) => listAllDomains(conn, flags),
    domainLookupByName: async (name) => conn.take(await conn.call('virDomainLookupByName', conn.at, name)),
    domainLookupByUUID: async (uuid) => conn.take(await conn.call('virDomainLookupByUUIDString', conn.at, uuid)),
    domainLookupByID: async (id) => conn.take(await conn.call('virDomainLookupByID', conn.at, id)),
    domainGetXMLDesc: (ref, flags) => conn.withDomain(ref, (domain) => conn.text('virDomainGetXMLDesc', domain, flags)),
    domainGetState: (ref) => conn.withDomain(ref, (domain) => states.ask(ref, domain)),
    domainGetInfo: (ref) =>
      conn.withDomain(ref, async (domain) => {
        const out = fillIn(40)
        await conn.call('virDomainGetInfo', domain, out.bytes)
        return {
          state: out.bytes[0] ?? 0,
          maxMem: out.ulong(8),
          memory: out.ulong(16),
          nrVirtCpu: out.ushort(24),
          cpuTime: out.ulong(32),
        }
      }),
    domainIsActive: is('virDomainIsActive'),
    domainIsPersistent: is('virDomainIsPersistent'),
    domainGetAutostart: (ref) =>
      conn.withDomain(ref, async (domain) => {
        const out = fillIn(4)
        await conn.call('virDomainGetAutostart', domain, out.bytes)
        return out.int(0) === 1
      }),
    domainHasManagedSaveImage: (ref) =>
      conn.withDomain(ref, async (domain) => (await conn.call('virDomainHasManagedSaveImage', domain, 0)) === 1),
    domainGetJobStats: (ref, flags) =>
      conn.withDomain(ref, async (domain) => {
        const [type, at, count] = [fillIn(4), fillIn(8), fillIn(4)]
        await conn.call('virDomainGetJobStats', domain, type.bytes, at.bytes, count.bytes, flags)
        const params = readTypedParamsAt(at.address(0), count.int(0))
        conn.lib.now('virTypedParamsFree', at.address(0), count.int(0))
        return toJobStats(params, type.int(0))
      }),
  }
}

async function listAllDomains(conn: Connection, flags: number): Promise<DomainRef[]> {
  const out = fillIn(8)
  const count = await conn.call('virConnectListAllDomains', conn.at, out.bytes, flags)
  const list = out.address(0)
  const { buffer } = bytesAt(list, count * 8)
  const refs = [...new BigUint64Array(buffer)].map((domain) => conn.take(domain))
  conn.lib.free(list)
  return refs
}
