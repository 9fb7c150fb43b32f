/** The proposal's C functions, as functions. */
import type { StreamDiskState } from '../driver.js'
import { Arguments } from './arguments.js'
import type { Domain } from './domain.js'

/** `dom.streamDisk(path, offset, flags)` */
export async function virDomainStreamDisk(
  domain: Domain,
  path: string,
  offset: number,
  flags: number,
): Promise<number> {
  return domain.streamDisk(path, offset, flags)
}

/** `dom.streamDiskInfo(flags)`, but at most `nrStates` entries. */
export async function virDomainStreamDiskInfo(domain: Domain, nrStates: number, flags = 0): Promise<StreamDiskState[]> {
  const most = new Arguments('virDomainStreamDiskInfo').count('nr_states', nrStates)
  const states = await domain.streamDiskInfo(flags)
  return states.slice(0, most)
}
