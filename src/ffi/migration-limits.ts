/** What can be said to a migration that libvirt performs, and about those to come. */
import type { DomainRef, HypervisorOps } from '../driver.js'
import type { Connection } from './connection.js'
import { fillIn } from './numbers.js'

type LimitOps = Pick<
  HypervisorOps,
  | 'domainMigrateStartPostCopy'
  | 'domainMigrateSetMaxDowntime'
  | 'domainMigrateGetMaxDowntime'
  | 'domainMigrateSetMaxSpeed'
  | 'domainMigrateGetMaxSpeed'
>

type Setter = 'virDomainMigrateSetMaxDowntime' | 'virDomainMigrateSetMaxSpeed'
type Getter = 'virDomainMigrateGetMaxDowntime' | 'virDomainMigrateGetMaxSpeed'

export function limitOps(conn: Connection): LimitOps {
  const set = (name: Setter) => (ref: DomainRef, value: number, flags: number) =>
    conn.withDomain(ref, async (domain) => {
      await conn.call(name, domain, value, flags)
    })
  const get = (name: Getter) => (ref: DomainRef, flags: number) =>
    conn.withDomain(ref, async (domain) => {
      const out = fillIn(8)
      await conn.call(name, domain, out.bytes, flags)
      return out.ulong(0)
    })
  return {
    domainMigrateStartPostCopy: (ref, flags) =>
      conn.withDomain(ref, async (domain) => {
        await conn.call('virDomainMigrateStartPostCopy', domain, flags)
      }),
    domainMigrateSetMaxDowntime: set('virDomainMigrateSetMaxDowntime'),
    domainMigrateGetMaxDowntime: get('virDomainMigrateGetMaxDowntime'),
    domainMigrateSetMaxSpeed: set('virDomainMigrateSetMaxSpeed'),
    domainMigrateGetMaxSpeed: get('virDomainMigrateGetMaxSpeed'),
  }
}
