/** Guests that are moved between two roots of this process. */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import {
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_PERSIST_DEST,
  VIR_MIGRATE_STREAM_DISKS,
  type Domain,
  type MigrateParams,
} from '../../src/index.js'
import { run } from '../../src/util/run.js'
import { agentOf, diskXml, startGuest, type TestRoot } from './domain.js'
import type { Guest } from './guest.js'
import { type Cleanup, patternImage } from './images.js'

export const STREAM = VIR_MIGRATE_LIVE | VIR_MIGRATE_STREAM_DISKS

export interface MovedGuest {
  dom: Domain
  moved: Domain
  guest: Guest
  /** of the base pattern on its disk */
  seed: number
}

/** A guest with a disk of 64 MiB (`disk.qcow2` in the folders of both), on its way: it runs there, its disk follows. */
export async function moveGuest(
  t: Cleanup,
  here: TestRoot,
  there: TestRoot,
  params: MigrateParams,
  change: (xml: string) => string = (xml) => xml,
): Promise<MovedGuest> {
  const { path: base, size, seed } = await patternImage(here.folder)
  await run('qemu-img', ['convert', '-O', 'qcow2', base, join(here.folder, 'disk.qcow2')])
  const { dom, guest } = await startGuest(t, here, { devices: diskXml('vda', join(here.folder, 'disk.qcow2')) })
  await guest.base('vda', seed, size)
  const xml = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
  const moved = await dom.migrate(
    there.conn,
    { destinationXML: change(xml), ...params },
    STREAM | VIR_MIGRATE_PERSIST_DEST,
  )
  return { dom, moved, guest: await agentOf(t, there.folder), seed }
}

/** What a root knows of migrations. */
export function migrationsIn({ folder }: TestRoot): string[] {
  return readdirSync(join(folder, 'root/run/migration')).filter((name) => name !== 'tunnel.sock')
}
