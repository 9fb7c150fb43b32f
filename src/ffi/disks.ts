/** The disks of a domain of libvirt's, whatever else its definition may hold. */
import type { DiskDef } from '../conf/domain-def.js'
import { parseDisk } from '../conf/parse-disk.js'
import { Reader } from '../conf/reader.js'
import { readXml } from '../conf/xml.js'
import * as c from '../constants.gen.js'
import type { DomainRef } from '../driver.js'
import { failFrom } from '../error.js'
import type { Connection } from './connection.js'

const fail = failFrom('VIR_FROM_DOM')

/** Disks that we can read; one on something that we do not model is left out. */
export function readDisks(xml: string): DiskDef[] {
  const disks = new Reader(readXml(xml)).child('devices')?.children('disk') ?? []
  return disks.flatMap((disk) => parseDisk(disk) ?? [])
}

export const sourcePath = ({ source }: DiskDef): string | undefined =>
  source === undefined ? undefined : source.type === 'network' ? source.name : source.path

/** By target dev, alias or source path. libvirt itself takes no aliases. VIR_ERR_INVALID_ARG for another name. */
export function findDisk(disks: readonly DiskDef[], name: string): DiskDef {
  const found =
    disks.find(({ target }) => target === name) ??
    disks.find(({ alias }) => alias === name) ??
    disks.find((disk) => sourcePath(disk) === name)
  if (found === undefined)
    throw fail('VIR_ERR_INVALID_ARG', `invalid path '${name}': disk '${name}' not found in domain`)
  return found
}

export async function disksOf(conn: Connection, ref: DomainRef, inactive = false): Promise<DiskDef[]> {
  const flags = inactive ? c.VIR_DOMAIN_XML_INACTIVE : 0
  return readDisks(await conn.withDomain(ref, (domain) => conn.text('virDomainGetXMLDesc', domain, flags)))
}

/** The disk's target, by which every function of libvirt knows it. */
export async function targetOf(conn: Connection, ref: DomainRef, name: string): Promise<string> {
  return findDisk(await disksOf(conn, ref), name).target
}
