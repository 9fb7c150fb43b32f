import type { HypervisorOps } from '../driver.js'
import type { Connection } from './connection.js'
import { fillIn } from './numbers.js'

/** virDomainQemuMonitorCommand: what QEMU answered. libvirt marks the domain as tainted. */
export async function monitorCommand(
  conn: Connection,
  domain: bigint,
  command: string,
  flags: number,
): Promise<string> {
  const out = fillIn(8)
  await conn.call('virDomainQemuMonitorCommand', domain, command, out.bytes, flags)
  const at = out.address(0)
  return at === 0n ? '' : conn.lib.takeText(at)
}

export function passthroughOps(conn: Connection): Pick<HypervisorOps, 'qemuMonitorCommand'> {
  return {
    qemuMonitorCommand: (ref, command, flags) =>
      conn.withDomain(ref, (domain) => monitorCommand(conn, domain, command, flags)),
  }
}
