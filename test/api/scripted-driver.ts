import type { DomainEvent, DomainRef, DriverHost, HypervisorDriver, HypervisorOps } from '../../src/driver.js'
import { Connect, type OpenOptions } from '../../src/index.js'

export const ref: DomainRef = { name: 'guest', uuid: '00000000-0000-4000-8000-000000000001', id: 1 }

/** A driver of exactly these operations, which writes down what it is asked. */
export interface Scripted {
  conn: Connect
  calls: { name: string; args: unknown[] }[]
  emit: (event: DomainEvent) => void
  host: DriverHost
}

export async function scripted(operations: Partial<HypervisorOps>, options: OpenOptions = {}): Promise<Scripted> {
  const calls: Scripted['calls'] = []
  let host!: DriverHost
  const recorded: Record<string, unknown> = {}
  for (const [name, operation] of Object.entries(operations)) {
    recorded[name] = (...args: unknown[]) => {
      calls.push({ name, args })
      return (operation as (...args: unknown[]) => unknown)(...args)
    }
  }
  const driver: HypervisorDriver = {
    name: 'scripted',
    uriSchemes: ['scripted'],
    open(_uri, given) {
      host = given
      return Promise.resolve({ domainLookupByName: () => Promise.resolve(ref), ...recorded })
    },
  }
  const conn = await Connect.open('scripted:///', { drivers: [driver], ...options })
  return { conn, calls, emit: (event) => host.emit(event), host }
}
