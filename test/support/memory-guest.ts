/** A guest that knows what its memory and its disk must hold. */
import assert from 'node:assert/strict'
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { VIR_DOMAIN_XML_MIGRATABLE, type Domain, type MigrateParams } from '../../src/index.js'
import { run } from '../../src/util/run.js'
import { agentOf, diskXml, startGuest, type TestRoot, until } from './domain.js'
import type { Guest } from './guest.js'
import { type Cleanup, patternImage } from './images.js'

const MiB = 1 << 20

export type Side = Pick<TestRoot, 'folder' | 'conn'>

/** What fills 40 MiB: bytes that nothing makes shorter, or lines of text. */
const fills = {
  random: 'dd if=/dev/urandom of=/pattern bs=1048576 count=40',
  text: 'yes all work and no play | head -c 1048000 > /text; for i in $(seq 40); do echo $i; cat /text; done > /pattern',
} as const

/** A guest with a disk of 32 MiB, and 40 MiB in its memory whose checksum it has told. */
export async function guestWithMemory(
  t: Cleanup,
  here: Side,
  there: Side,
  fill: keyof typeof fills = 'random',
): Promise<{ dom: Domain; params: MigrateParams; guest: Guest; memory: string }> {
  const disk = join(here.folder, 'disk.qcow2')
  const { path: base, size, seed } = await patternImage(here.folder, 32 * MiB)
  await run('qemu-img', ['convert', '-O', 'qcow2', base, disk])
  const { dom, guest } = await startGuest(t, here, { devices: diskXml('vda', disk) })
  await guest.base('vda', seed, size)
  await guest.command(`sh ${fills[fill]}`)
  const xml = await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)
  return {
    ...{ dom, guest, memory: await checksum(guest) },
    params: { destinationXML: xml.replaceAll(here.folder, there.folder) },
  }
}

async function checksum(guest: Guest): Promise<string> {
  const { lines } = await guest.command('sh md5sum /pattern')
  return lines[0] ?? ''
}

/** Begins to move it; that it fails is for whoever awaits it. */
export function start(dom: Domain, there: Side, params: MigrateParams, flags: number): Promise<Domain> {
  const going = dom.migrate(there.conn, params, flags)
  going.catch(() => undefined)
  return going
}

/** Until the source has heard that its guest runs elsewhere: cut off before, it would have to find that out first. */
export async function untilServing({ folder }: Pick<Side, 'folder'>): Promise<void> {
  const records = join(folder, 'root/run/migration')
  const isServing = (): boolean =>
    readdirSync(records)
      .map((id) => join(records, id, 'record.json'))
      .filter((path) => existsSync(path))
      .some((path) => (JSON.parse(readFileSync(path, 'utf8')) as { phase: string }).phase === 'serving')
  await until('the source knows where its guest runs', isServing)
}

/** The guest finds its memory and its disk as it left them. */
export async function assertWhole(t: Cleanup, { folder }: Side, memory: string): Promise<void> {
  const guest = await agentOf(t, folder)
  assert.equal(await checksum(guest), memory)
  await guest.stop('vda')
  const { bad, err } = await guest.verify('vda')
  assert.deepEqual({ bad, err }, { bad: 0, err: 0 })
}
