/** The disks of a domain of libvirt's, whatever they are on. */
import { disksIn, findSeen } from '../conf/glance.js'
import type { SeenDisk } from '../conf/glance.js'
import * as c from '../constants.gen.js'
import type { DomainRef } from '../driver.js'
import { failFrom } from '../error.js'
import type { Connection } from './connection.js'

const fail = failFrom('VIR_FROM_DOM')

/** By target dev, alias or source path. libvirt itself takes no aliases. VIR_ERR_INVALID_ARG for another name. */
export function findDisk(disks: readonly SeenDisk[], name: string): SeenDisk {
  const found = findSeen(disks, name)
  if (found === undefined)
    throw fail('VIR_ERR_INVALID_ARG', `invalid path '${name}': disk '${name}' not found in domain`)
  return found
}

export async function disksOf(conn: Connection, ref: DomainRef, inactive = false): Promise<SeenDisk[]> {
  const flags = inactive ? c.VIR_DOMAIN_XML_INACTIVE : 0
  return disksIn(await conn.withDomain(ref, (domain) => conn.text('virDomainGetXMLDesc', domain, flags)))
}

/** The disk's target, by which every function of libvirt knows it. */
export async function targetOf(conn: Connection, ref: DomainRef, name: string): Promise<string> {
  return findDisk(await disksOf(conn, ref), name).target
}
