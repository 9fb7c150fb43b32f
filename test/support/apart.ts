/** Two hosts in one process: a root, and a daemon on another root that is reached by a link which a test can cut. */
import { once } from 'node:events'
import { connect, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { Stack } from '../../scripts/program.js'
import {
  Connect,
  type Domain,
  VIR_DOMAIN_RUNNING,
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_STREAM_DISKS,
} from '../../src/index.js'
import { qemuDriver } from '../../src/qemu/driver.js'
import { killAll } from '../campaign/place.js'
import { countSteps } from '../campaign/steps.js'
import { testDaemon } from '../remote/support.js'
import { run } from '../../src/util/run.js'
import { agentOf, diskXml, processesOf, startGuest, testRoot, type TestRoot } from './domain.js'
import { type Cleanup, patternImage, temporaryFolder } from './images.js'
import { assertRight } from './streamed.js'

/** ms that a link says nothing, and nobody takes it for dead */
const SILENCE = 1_000

/** What goes between the two hosts. */
export class CutLink {
  readonly #pairs = new Set<readonly [Socket, Socket]>()
  #silence: Promise<unknown> = Promise.resolve()
  #isCut = false

  static async listen(t: Cleanup, path: string, target: string): Promise<CutLink> {
    const link = new CutLink()
    const server = createServer((near) => link.#join(near, target)).listen(path)
    t.after(() => {
      link.cut()
      server.close()
    })
    await once(server, 'listening')
    return link
  }

  #join(near: Socket, target: string): void {
    const pair = [near, connect(target)] as const
    this.#pairs.add(pair)
    const end = (): void => {
      this.#pairs.delete(pair)
      for (const socket of pair) socket.destroy()
    }
    for (const socket of pair) socket.on('error', () => undefined).on('close', end)
    if (this.#isCut) end()
    for (const [from, to] of [pair, [pair[1], near] as const]) this.#carry(from, to).catch(end)
  }

  async #carry(from: Socket, to: Socket): Promise<void> {
    for await (const chunk of from) {
      await this.#silence
      if (!to.write(chunk as Buffer)) await once(to, 'drain')
    }
    to.end()
  }

  /** Nothing gets through for a second. */
  silence(): Promise<unknown> {
    this.#silence = delay(SILENCE)
    return this.#silence
  }

  /** Every connection breaks, and none can be made. */
  cut(): void {
    this.#isCut = true
    for (const pair of this.#pairs) for (const socket of pair) socket.destroy()
  }

  mend(): void {
    this.#isCut = false
  }
}

/** Does something at a step of a host (`steps.ts`), once. */
export type AtStep = (step: string, work: () => void) => void

export function stepsOf(folder: string): AtStep {
  let wanted: { step: string; work: () => void } | undefined
  countSteps(folder, (step) => {
    if (wanted === undefined || step !== wanted.step) return
    const { work } = wanted
    wanted = undefined
    work()
  })
  return (step, work) => (wanted = { step, work })
}

export interface Apart {
  here: TestRoot & { at: AtStep }
  /** `conn` goes over the link, `direct` does not */
  there: { folder: string; conn: Connect; direct: Connect; uri: string; at: AtStep }
  link: CutLink
}

export async function twoApart(t: Cleanup): Promise<Apart> {
  const here = await testRoot(t)
  const folder = await temporaryFolder(t)
  const root = join(folder, 'root')
  t.after(() => void killAll(processesOf(folder)))
  const socket = join(folder, 'daemon.sock')
  const daemon = await testDaemon(t, qemuDriver, { uri: `qemu:///embed?root=${root}`, unix: [socket] })
  const path = join(folder, 'link.sock')
  const link = await CutLink.listen(t, path, socket)
  const uri = `virstream+unix://${path}`
  const there = { folder, conn: await Connect.open(uri), direct: await daemon.connect(), uri, at: stepsOf(root) }
  t.after(() => there.conn.close())
  return { here: Object.assign(here, { at: stepsOf(join(here.folder, 'root')) }), there, link }
}

/** What was cut is there again, for new connections. */
export async function reconnect({ there, link }: Apart): Promise<void> {
  link.mend()
  await there.conn.close()
  there.conn = await Connect.open(there.uri)
}

/** Does the only domain of a host run? */
export async function runsAt(conn: Connect): Promise<boolean> {
  const [dom] = await conn.listAllDomains()
  return dom !== undefined && (await dom.getState()).state === VIR_DOMAIN_RUNNING
}

export interface GuestApart extends Apart {
  /** at the source */
  dom: Domain
  /** 0: no limit */
  migrate: (bandwidth: number) => Promise<Domain>
  /** its disk holds what it must */
  isWhole: (at: { folder: string }) => Promise<void>
}

/** A guest that works slowly on its disk, 32 MiB, at the one host; `migrate` streams its disk slowly, its memory by MiB/s. */
export async function guestApart(context: TestContext): Promise<GuestApart> {
  const t = new Stack()
  context.after(() => t.undo((text) => context.diagnostic(text)))
  const apart = await twoApart(t)
  const { here, there } = apart
  const base = await patternImage(here.folder, 32 << 20)
  const disk = join(here.folder, 'disk.qcow2')
  await run('qemu-img', ['convert', '-O', 'qcow2', base.path, disk])
  const { dom, guest } = await startGuest(t, here, { devices: diskXml('vda', disk) })
  await guest.base('vda', base.seed, base.size)
  await guest.work('vda', 'slowly')
  const destinationXML = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
  const params = { destinationXML, uri: there.uri, diskStreamBandwidth: 1 << 20 }
  const flags = VIR_MIGRATE_LIVE | VIR_MIGRATE_STREAM_DISKS
  const migrate = (bandwidth: number): Promise<Domain> => dom.migrate(there.conn, { ...params, bandwidth }, flags)
  return {
    ...apart,
    dom,
    migrate,
    isWhole: async (at) => assertRight(await agentOf(t, at.folder)),
  }
}
