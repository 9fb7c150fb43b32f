import { disksIn, findSeen } from '../conf/glance.js'
import type { Domain } from './domain.js'

/** The target dev of the disk that has `name` as its target dev, alias or source path; `name` itself where none has. */
export async function resolveDisk(domain: Domain, name: string): Promise<string> {
  return findSeen(disksIn(await domain.getXMLDesc()), name)?.target ?? name
}
