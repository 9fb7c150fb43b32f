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
  | 'domainMigrateSetCompressionCache'
  | 'domainMigrateGetCompressionCache'
>

type Limit = 'MaxDowntime' | 'MaxSpeed' | 'CompressionCache'

export function limitOps(conn: Connection): LimitOps {
  const set = (limit: Limit) => (ref: DomainRef, value: number, flags: number) =>
    conn.withDomain(ref, async (domain) => {
      await conn.call(`virDomainMigrateSet${limit}`, domain, value, flags)
    })
  const get = (limit: Limit) => (ref: DomainRef, flags: number) =>
    conn.withDomain(ref, async (domain) => {
      const out = fillIn(8)
      await conn.call(`virDomainMigrateGet${limit}`, domain, out.bytes, flags)
      return out.ulong(0)
    })
  return {
    domainMigrateStartPostCopy: (ref, flags) =>
      conn.withDomain(ref, async (domain) => {
        await conn.call('virDomainMigrateStartPostCopy', domain, flags)
      }),
    domainMigrateSetMaxDowntime: set('MaxDowntime'),
    domainMigrateGetMaxDowntime: get('MaxDowntime'),
    domainMigrateSetMaxSpeed: set('MaxSpeed'),
    domainMigrateGetMaxSpeed: get('MaxSpeed'),
    domainMigrateSetCompressionCache: set('CompressionCache'),
    domainMigrateGetCompressionCache: get('CompressionCache'),
  }
}
