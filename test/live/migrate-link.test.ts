/** The link between two hosts goes away while a guest moves: namespaces with a daemon in each, TLS between them. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { Stack } from '../../scripts/program.js'
import { mayMakeHosts, twoHosts, type Hosts } from '../../scripts/two-hosts.js'
import {
  VIR_DOMAIN_RUNNING,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_STREAM_DISKS,
} from '../../src/index.js'
import { run } from '../../src/util/run.js'
import { agentOf, diskXml, guestXml, until } from '../support/domain.js'
import { patternImage, temporaryFolder } from '../support/images.js'
import { requires } from '../support/requires.js'
import { assertRight } from '../support/streamed.js'

const STREAM = VIR_MIGRATE_LIVE | VIR_MIGRATE_STREAM_DISKS
const MiB = 1024 * 1024

test('a link that is cut while memory goes over leaves the guest; cut while its disk follows, it is waited for', async (context) => {
  if (!requires(context, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:ip', 'program:openssl')) return
  if (!(await mayMakeHosts())) {
    context.skip('network namespaces cannot be made here')
    return
  }
  // newest first: guests, daemons, their namespaces
  const t = new Stack()
  context.after(() => t.undo((text) => context.diagnostic(text)))
  const folder = await temporaryFolder(t)
  const hosts = await twoHosts(t, folder, 400)
  const { here, there } = hosts
  const base = await patternImage(folder, 32 * MiB)
  const disk = join(here.folder, 'disk.qcow2')
  await run('qemu-img', ['convert', '-O', 'qcow2', base.path, disk])
  const dom = await here.conn.domainDefineXML(await guestXml(here.folder, { devices: diskXml('vda', disk) }))
  await dom.create()
  const guest = await agentOf(t, here.folder)
  await guest.base('vda', base.seed, base.size)
  await guest.work('vda', 'slowly')
  const destinationXML = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
  const params = { destinationXML, uri: there.uri, diskStreamBandwidth: 2 * MiB }

  const going = dom.migrate(there.conn, { ...params, bandwidth: 1 }, STREAM)
  going.catch(() => undefined)
  await until('memory goes over', async () => (await dom.getJobStats()).memProcessed > 0)
  await link(hosts, 'down')
  await assert.rejects(going)
  assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)
  await link(hosts, 'up')

  const moved = await reached(() => dom.migrate(there.conn, params, STREAM))
  const after = await agentOf(t, there.folder)
  await until('a part of it is there', async () => ((await moved.streamDiskInfo())[0]?.offset ?? 0) > 4 * MiB)
  await link(hosts, 'down')
  const waits = /^the base does not answer: '.*', which has the disk, is not connected$/
  await until('it says why it waits', async () => {
    const [state] = await moved.streamDiskInfo()
    return state?.status === 'waiting' && waits.test(state.error ?? '')
  })
  // longer than a link that says nothing is believed in
  await delay(10_000)
  assert.equal((await moved.getState()).state, VIR_DOMAIN_RUNNING)
  await link(hosts, 'up')
  await until('the source is free', async () => (await dom.getState()).state === VIR_DOMAIN_SHUTOFF, 120_000)
  await assertRight(after)
})

/** The kernel takes a while to find a neighbour again. */
async function reached<T>(work: () => Promise<T>): Promise<T> {
  for (let tries = 0; ; tries++) {
    try {
      return await work()
    } catch (error) {
      if (tries === 10 || !/cannot be reached/.test(String(error))) throw error
      await delay(1_000)
    }
  }
}

/** At the far end: the near one sees nothing but silence. */
async function link({ link: { receiver } }: Hosts, state: 'up' | 'down'): Promise<void> {
  await run('env', [...receiver, 'ip', 'link', 'set', 'vs0', state])
}
