/** A guest on its way from one root to another: it runs there, its disk follows slowly. */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import {
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_STREAM_DISKS,
  type Domain,
  type MigrateParams,
  type OpenOptions,
} from '../../src/index.js'
import { run } from '../../src/util/run.js'
import { agentOf, diskXml, startGuest, testRoot, type TestRoot } from './domain.js'
import type { Guest } from './guest.js'
import { type Cleanup, patternImage } from './images.js'

export interface Moved {
  here: TestRoot & { seed: number; size: number }
  there: TestRoot
  /** at the source */
  dom: Domain
  moved: Domain
  /** at the destination */
  guest: Guest
}

export interface MoveOptions {
  /** besides VIR_MIGRATE_LIVE and _STREAM_DISKS */
  flags?: number
  /** bytes */
  size?: number
  /** of its image at the source; at the destination it is qcow2 */
  format?: 'qcow2' | 'raw'
  /** bytes/s of its disk */
  bandwidth?: number
  here?: OpenOptions
  /** besides the definition and the bandwidth */
  params?: MigrateParams
  /** of the definition for the destination */
  change?: (xml: string) => string
}

/** A guest whose disk holds the pattern of a seed has moved. */
export async function moveGuest(t: Cleanup, options: MoveOptions = {}): Promise<Moved> {
  const { flags = 0, size = 32 << 20, format = 'qcow2', bandwidth = 1 << 20, change = (xml: string) => xml } = options
  const [root, there] = [await testRoot(t, options.here), await testRoot(t)]
  const { path: base, seed } = await patternImage(root.folder, size)
  const disk = join(root.folder, 'disk.qcow2')
  await run('qemu-img', ['convert', '-O', format, base, disk])
  const { dom } = await startGuest(t, root, { devices: diskXml('vda', disk, { format }) })
  const xml = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(root.folder, there.folder)
  const destinationXML = change(xml.replace("type='raw'", "type='qcow2'"))
  const params = { destinationXML, persistXML: destinationXML, diskStreamBandwidth: bandwidth, ...options.params }
  const moved = await dom.migrate(there.conn, params, VIR_MIGRATE_LIVE | VIR_MIGRATE_STREAM_DISKS | flags)
  const here = Object.assign(root, { size, seed })
  return { here, there, dom, moved, guest: await agentOf(t, there.folder) }
}

/** What migrations and domains left in a root that nobody needs. */
export function leftOf({ folder }: Pick<TestRoot, 'folder'>): string[] {
  return ['migration', 'offline', 'qemu'].flatMap((dir) =>
    readdirSync(join(folder, 'root/run', dir)).filter((name) => name !== 'tunnel.sock'),
  )
}
