/** Two hosts on one machine: network namespaces with a link of limited rate between them, a daemon of virstream in each. */
import { open, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import {
  Connect,
  VIR_DOMAIN_EVENT_RESUMED,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_NON_SHARED_DISK,
  VIR_MIGRATE_POSTCOPY,
  VIR_MIGRATE_STREAM_DISKS,
  type Domain,
} from '../src/index.js'
import { run } from '../src/util/run.js'
import { limitedLink, type Link } from '../bench/tunnel-links.js'
import { daemonProcess } from '../test/support/daemon-process.js'
import { diskXml, guestXml } from '../test/support/domain.js'
import { Guest } from '../test/support/guest.js'
import type { Cleanup, PatternImage } from '../test/support/images.js'
import { TestAuthority } from '../test/tunnel/pki.js'

const PORT = 16520

export interface Hosts {
  link: Link
  here: { folder: string; conn: Connect }
  there: { folder: string; conn: Connect; uri: string }
}

/** 'mirror': disks go first; 'stream': after the guest; 'postcopy': and its memory as well */
export type Way = 'mirror' | 'stream' | 'postcopy'

const flagsOf: Record<Way, number> = {
  mirror: VIR_MIGRATE_NON_SHARED_DISK,
  stream: VIR_MIGRATE_STREAM_DISKS,
  postcopy: VIR_MIGRATE_STREAM_DISKS | VIR_MIGRATE_POSTCOPY,
}

export interface Move {
  /** ms until the guest ran there */
  running: number
  /** ms that the guest said nothing */
  stop: number
  /** ms until its source was free */
  total: number
  /** bytes over the link */
  bytes: number
  /** blocks that were wrong at the end, of so many */
  bad: number
  blocks: number
}

/** `megabits`: of the link. Rejects where we may not make namespaces. */
export async function twoHosts(t: Cleanup, folder: string, megabits: number): Promise<Hosts> {
  const link = await limitedLink(t, megabits / 1000)
  const authority = await TestAuthority.make(join(folder, 'authority'))
  const server = await authority.issue('server', '/CN=there', `IP:${link.host}`)
  const client = await authority.issue('client', '/CN=here')
  const open = async (name: string, at: readonly string[], listen: readonly string[]): Promise<Connect> => {
    const root = join(folder, name, 'root')
    const daemon = await daemonProcess(t, root, listen, {}, at)
    const conn = await Connect.open(`virstream+unix://${join(root, 'run/virstreamd.sock')}`)
    t.after(async () => {
      for (const dom of await conn.listAllDomains())
        if (await dom.isActive()) await dom.destroy().catch(() => undefined)
      await conn.close()
      await daemon.end('SIGTERM')
    })
    return conn
  }
  const there = await open('there', link.receiver, ['--pki', server, '--listen', `tls://${link.host}:${PORT}`])
  const here = await open('here', link.sender, [])
  return {
    link,
    here: { folder: join(folder, 'here'), conn: here },
    there: {
      folder: join(folder, 'there'),
      conn: there,
      uri: `virstream+tls://${link.host}:${PORT}/?pkipath=${client}`,
    },
  }
}

/** A guest of its own, that works on its disk, goes from one host to the other; `transport`: of its memory. */
export async function move(t: Cleanup, hosts: Hosts, way: Way, base: PatternImage, transport?: string): Promise<Move> {
  const { here, there } = hosts
  const disk = join(here.folder, `${way}.qcow2`)
  await run('qemu-img', ['convert', '-O', 'qcow2', base.path, disk])
  // a guest that stops has its disk flushed: what we have just written is not the guest's to wait for
  await flush(disk)
  const xml = await guestXml(here.folder, { name: way, devices: diskXml('vda', disk) })
  const dom = await here.conn.domainDefineXML(xml)
  await dom.create()
  const guest = await Guest.connect(join(here.folder, `${way}.serial`))
  t.after(() => guest[Symbol.dispose]())
  await guest.ready()
  await guest.base('vda', base.seed, base.size)
  await guest.work('vda', 'slowly')
  await guest.command('ticks on')
  const destinationXML = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
  const arrival = arrived(there.conn, way)
  const before = await bytesOf(hosts.link)
  const began = performance.now()
  const params = { destinationXML, uri: there.uri, ...(transport !== undefined && { transport }) }
  const going = dom.migrate(there.conn, params, VIR_MIGRATE_LIVE | flagsOf[way])
  if (way === 'postcopy') await switchAtOnce(dom, going)
  const running = (await Promise.race([arrival, going.then(() => arrival)])) - began
  const after = await Guest.connect(join(there.folder, `${way}.serial`))
  t.after(() => after[Symbol.dispose]())
  const moved = await going
  while ((await dom.getState()).state !== VIR_DOMAIN_SHUTOFF) await delay(50)
  const total = performance.now() - began
  const bytes = (await bytesOf(hosts.link)) - before
  const { bad, blocks } = await checked(after)
  await finish(moved, dom, [disk, disk.replace(here.folder, there.folder)])
  return { running, stop: standstill(guest, after), total, bytes, bad, blocks }
}

/** When the guest begins to run there. */
async function arrived(conn: Connect, name: string): Promise<number> {
  for await (const event of conn.domainEvents({ kinds: ['lifecycle'] }))
    if (event.kind === 'lifecycle' && event.event === VIR_DOMAIN_EVENT_RESUMED && event.domain.name === name)
      return performance.now()
  throw new Error('the connection to the destination has ended')
}

/** Memory follows from its first pass on: that can be asked for once it has begun to go over. */
async function switchAtOnce(dom: Domain, going: Promise<Domain>): Promise<void> {
  const state = { isOver: false }
  const over = (): boolean => (state.isOver = true)
  void going.then(over, over)
  for (;;) {
    try {
      await dom.migrateStartPostCopy()
      return
    } catch (error) {
      if (state.isOver) throw error
      await delay(5)
    }
  }
}

async function flush(path: string): Promise<void> {
  await using file = await open(path, 'r+')
  await file.sync()
}

/** From the last tick here to the first one there, less what the guest's own clock says that it did between them. */
function standstill(here: Guest, there: Guest): number {
  const [last, first] = [here.ticks.at(-1), there.ticks[0]]
  if (last === undefined || first === undefined) throw new Error('the guest did not tick')
  return first.at - last.at - (first.guestMs - last.guestMs)
}

async function checked(guest: Guest): Promise<{ bad: number; blocks: number }> {
  await guest.ready()
  await guest.stop('vda')
  const { bad, err, blocks } = await guest.verify('vda')
  return { bad: bad + err, blocks }
}

async function finish(moved: Domain, dom: Domain, images: readonly string[]): Promise<void> {
  await moved.destroy()
  await dom.undefine().catch(() => undefined)
  for (const image of images) await rm(image, { force: true })
}

/** What both ends have sent. */
async function bytesOf({ sender, receiver }: Link): Promise<number> {
  let sum = 0
  for (const at of [sender, receiver]) {
    const { stdout } = await run('env', [...at, 'cat', '/sys/class/net/vs0/statistics/tx_bytes'])
    sum += Number(stdout)
  }
  return sum
}

/** Whether this machine lets us make network namespaces. */
export async function mayMakeHosts(): Promise<boolean> {
  if (process.geteuid?.() !== 0) return false
  const status = await readFile('/proc/self/status', 'utf8')
  const effective = BigInt(`0x${/CapEff:\s*([0-9a-f]+)/.exec(status)?.[1] ?? '0'}`)
  const admin = 1n << 21n
  return (effective & admin) !== 0n
}
