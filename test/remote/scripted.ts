import type { DriverHost, HypervisorDriver, HypervisorOps } from '../../src/driver.js'

export const ref = { name: 'guest', uuid: '00000000-0000-4000-8000-000000000001', id: 1 }

export interface ScriptedDriver {
  driver: HypervisorDriver
  /** what the driver was asked for, in order */
  calls: { name: string; args: unknown[] }[]
  host: () => DriverHost
}

/** A driver of exactly these operations and the lookup of one domain, which writes down what it is asked. */
export function scriptedDriver(operations: Partial<HypervisorOps>): ScriptedDriver {
  const calls: ScriptedDriver['calls'] = []
  let host: DriverHost | undefined
  const recorded = Object.fromEntries(
    Object.entries(operations).map(([name, operation]) => [
      name,
      (...args: unknown[]) => {
        calls.push({ name, args })
        return (operation as (...args: unknown[]) => unknown)(...args)
      },
    ]),
  )
  return {
    calls,
    host: () => {
      if (host === undefined) throw new Error('the driver is not open')
      return host
    },
    driver: {
      name: 'scripted',
      uriSchemes: ['test'],
      open(_uri, given) {
        host = given
        return Promise.resolve({
          domainLookupByName: () => Promise.resolve(ref),
          connectListAllDomains: () => Promise.resolve([ref]),
          ...recorded,
        })
      },
    },
  }
}
