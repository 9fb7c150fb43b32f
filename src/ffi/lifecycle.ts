/** Definitions, starts and stops, saved states. */
import type { DomainRef, HypervisorOps } from '../driver.js'
import type { Connection } from './connection.js'

type LifecycleOps = Pick<
  HypervisorOps,
  | 'domainDefineXML'
  | 'domainCreateXML'
  | 'domainRestore'
  | 'domainCreate'
  | 'domainDestroy'
  | 'domainShutdown'
  | 'domainReboot'
  | 'domainReset'
  | 'domainSuspend'
  | 'domainResume'
  | 'domainUndefine'
  | 'domainSave'
  | 'domainManagedSave'
  | 'domainManagedSaveRemove'
  | 'domainSetAutostart'
  | 'domainAttachDevice'
  | 'domainDetachDevice'
  | 'domainUpdateDevice'
  | 'domainAbortJob'
>

type Flagged =
  | 'virDomainDestroyFlags'
  | 'virDomainShutdownFlags'
  | 'virDomainReboot'
  | 'virDomainReset'
  | 'virDomainUndefineFlags'
  | 'virDomainManagedSave'

export function lifecycleOps(conn: Connection): LifecycleOps {
  const run = (ref: DomainRef, use: (domain: bigint) => Promise<unknown>): Promise<void> =>
    conn.withDomain(ref, async (domain) => {
      await use(domain)
    })
  const flagged = (name: Flagged) => (ref: DomainRef, flags: number) =>
    run(ref, (domain) => conn.call(name, domain, flags))
  const plain = (name: 'virDomainSuspend' | 'virDomainResume') => (ref: DomainRef) =>
    run(ref, (domain) => conn.call(name, domain))
  return {
    domainDefineXML: async (xml, flags) => conn.take(await conn.call('virDomainDefineXMLFlags', conn.at, xml, flags)),
    domainCreateXML: async (xml, flags) => conn.take(await conn.call('virDomainCreateXML', conn.at, xml, flags)),
    domainRestore: (from, xml, flags) => restore(conn, from, xml, flags),
    domainCreate: (ref, flags) =>
      conn.withDomain(ref, async (domain) => {
        await conn.call('virDomainCreateWithFlags', domain, flags)
        return conn.refOf(domain)
      }),
    domainDestroy: flagged('virDomainDestroyFlags'),
    domainShutdown: flagged('virDomainShutdownFlags'),
    domainReboot: flagged('virDomainReboot'),
    domainReset: flagged('virDomainReset'),
    domainSuspend: plain('virDomainSuspend'),
    domainResume: plain('virDomainResume'),
    domainUndefine: flagged('virDomainUndefineFlags'),
    domainSave: (ref, to, xml, flags) =>
      run(ref, (domain) => conn.call('virDomainSaveFlags', domain, to, xml ?? null, flags)),
    domainManagedSave: flagged('virDomainManagedSave'),
    domainManagedSaveRemove: (ref) => run(ref, (domain) => conn.call('virDomainManagedSaveRemove', domain, 0)),
    domainSetAutostart: (ref, autostart) =>
      run(ref, (domain) => conn.call('virDomainSetAutostart', domain, autostart ? 1 : 0)),
    domainAttachDevice: (ref, xml, flags) =>
      run(ref, (domain) => conn.call('virDomainAttachDeviceFlags', domain, xml, flags)),
    domainDetachDevice: (ref, xml, flags) =>
      run(ref, (domain) => conn.call('virDomainDetachDeviceFlags', domain, xml, flags)),
    domainUpdateDevice: (ref, xml, flags) =>
      run(ref, (domain) => conn.call('virDomainUpdateDeviceFlags', domain, xml, flags)),
    domainAbortJob: (ref, flags) => run(ref, (domain) => abortJob(conn, domain, flags)),
  }
}

/** virDomainAbortJobFlags came with libvirt 8.5; without flags the older one does the same. */
async function abortJob(conn: Connection, domain: bigint, flags: number): Promise<void> {
  if (flags === 0) await conn.call('virDomainAbortJob', domain)
  else await conn.call('virDomainAbortJobFlags', domain, flags)
}

/** libvirt does not say which domain it restored: the file does. */
async function restore(conn: Connection, from: string, xml: string | undefined, flags: number): Promise<DomainRef> {
  const saved = await conn.text('virDomainSaveImageGetXMLDesc', conn.at, from, 0)
  await conn.call('virDomainRestoreFlags', conn.at, from, xml ?? null, flags)
  const uuid = /<uuid>([0-9a-f-]{36})<\/uuid>/.exec(saved)?.[1] ?? ''
  return conn.take(await conn.call('virDomainLookupByUUIDString', conn.at, uuid))
}
