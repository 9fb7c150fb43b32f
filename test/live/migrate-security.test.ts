/** Migration between hosts whose QEMUs run as another user, their images locked: everything goes back to its owner. */
import assert from 'node:assert/strict'
import { chmod, readFile, writeFile } from 'node:fs/promises'
import { basename, join } from 'node:path'
import { test, type TestContext } from 'node:test'
import {
  VIR_DOMAIN_XML_MIGRATABLE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_NON_SHARED_DISK,
  VIR_MIGRATE_POSTCOPY,
  VIR_MIGRATE_STREAM_DISKS,
  type Domain,
  type SecurityDriver,
} from '../../src/index.js'
import { native } from '../../src/native.js'
import { run } from '../../src/util/run.js'
import { assertGivenBack, dacRoot, ownerOf } from '../support/dac.js'
import {
  agentOf,
  diskXml,
  plainXml,
  reopen,
  runDirOf,
  startGuest,
  startPlain,
  testRoot,
  until,
  virError,
} from '../support/domain.js'
import { emptyImage, patternImage } from '../support/images.js'
import { leftOf } from '../support/move.js'
import { requires } from '../support/requires.js'
import { assertRight } from '../support/streamed.js'

test('a guest moves as another user at both sides, over a restart, comes back and moves again', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-storage-daemon')) return
  const [here, there] = [await lockedRoot(t), await lockedRoot(t)]
  const [from, to] = [join(here.folder, 'disk.qcow2'), join(there.folder, 'disk.qcow2')]
  const base = await patternImage(here.folder, 32 << 20)
  await run('qemu-img', ['convert', '-O', 'qcow2', base.path, from])
  await chmod(from, 0o600)
  const { dom, guest } = await startGuest(t, here.root, { devices: diskXml('vda', from) })
  await guest.base('vda', base.seed, base.size)
  await guest.work('vda', 'slowly')
  const destinationXML = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
  const params = { destinationXML, diskStreamBandwidth: 1 << 20 }

  await dom
    .migrate(there.root.conn, { destinationXML }, VIR_MIGRATE_LIVE | VIR_MIGRATE_NON_SHARED_DISK)
    .then(async (moved) => {
      assert.equal(await ownerOf(to), there.theirs)
      const back = (await moved.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(to, `${from}.back`)
      const again = { destinationXML: back.replaceAll(there.folder, here.folder) }
      await moved.migrate(here.root.conn, again, VIR_MIGRATE_LIVE | VIR_MIGRATE_NON_SHARED_DISK)
    })
  await until('it is all here', async () => (await there.root.conn.listAllDomains()).length === 0)
  await assertGivenBack(from, to)
  await run('rm', [to])

  const moved = await dom.migrate(there.root.conn, params, VIR_MIGRATE_LIVE | VIR_MIGRATE_STREAM_DISKS)
  assert.match(await statusOf(there.root, moved), new RegExp(`^Uid:(\\t${there.user.uid}){4}$`, 'm'))
  // the image is read by who has it locked, and written by nobody
  await assert.rejects(startRival(here, `${from}.back`), virError('VIR_ERR_RESOURCE_BUSY', /disk\.qcow2/))
  await reopen(there.root)
  const after = await there.root.conn.domainLookupByName('guest')
  await until('its source is back', async () => (await after.streamDiskInfo())[0]?.status === 'running')
  await until('a part of it is there', async () => ((await after.streamDiskInfo())[0]?.offset ?? 0) > 2 << 20)
  await dom.abortJob()
  await until('nothing of it is left there', () => leftOf(there.root).length === 0)

  const last = await dom.migrate(there.root.conn, params, VIR_MIGRATE_LIVE | VIR_MIGRATE_STREAM_DISKS)
  await until('it streams', async () => (await last.streamDiskInfo()).length === 1)
  // a daemon that serves in the place of its QEMU has it locked as well
  process.kill(await pidOf(here.root, await here.root.conn.domainLookupByName('guest')), 'SIGKILL')
  await until('a daemon serves', async () => !(await dom.isActive()) && leftOf(here.root).length === 2)
  await assert.rejects(startRival(here, `${from}.back`), virError('VIR_ERR_RESOURCE_BUSY', /disk\.qcow2/))
  await last.blockJobSetSpeed('vda', 0)
  await until('the source is let go of', () => leftOf(here.root).length === 0)
  const agent = await agentOf(t, there.folder)
  await assertRight(agent)
  await assertGivenBack(`${from}.back`)
  await last.destroy()
  await assertGivenBack(to)
  assert.deepEqual([...leftOf(here.root), ...leftOf(there.root)], [])
})

test('sockets of a migration that a QEMU gets or connects to have the label of its domain', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { security, bare } = watchedSockets(t)
  const [here, there] = [await testRoot(t, { security }), await testRoot(t, { security })]
  const path = await emptyImage(here.folder, 'qcow2', 16 << 20, 'disk.qcow2')
  const dom = await startPlain(here, { devices: diskXml('vda', path) })
  const destinationXML = (await dom.getXMLDesc(VIR_DOMAIN_XML_MIGRATABLE)).replaceAll(here.folder, there.folder)
  const streaming = { destinationXML, diskStreamBandwidth: 1 << 20 }
  await dom.migrate(there.conn, streaming, VIR_MIGRATE_LIVE | VIR_MIGRATE_STREAM_DISKS | VIR_MIGRATE_POSTCOPY)
  await reopen(there)
  await dom.abortJob()
  await until('nothing of it is left there', () => leftOf(there).length === 0)
  await dom.migrate(there.conn, { destinationXML }, VIR_MIGRATE_LIVE | VIR_MIGRATE_NON_SHARED_DISK)
  // those that only processes of ours have
  assert.deepEqual(new Set(bare), new Set(['connects to mon.sock', 'listens on tunnel.sock']))
})

/** A security driver, and the sockets that are made without its label. */
function watchedSockets(t: TestContext): { security: SecurityDriver[]; bare: string[] } {
  const bare: string[] = []
  let isLabelled = false
  const own = { ...native }
  const noted = <T>(what: string, make: () => T): T => {
    if (!isLabelled) bare.push(what)
    return make()
  }
  Object.assign(native, {
    listenUnix: (path: string, mode: number, backlog: number) =>
      noted(`listens on ${basename(path)}`, () => own.listenUnix(path, mode, backlog)),
    connectUnix: (path: string) => noted(`connects to ${basename(path)}`, () => own.connectUnix(path)),
    socketpair: () => noted('pair', () => own.socketpair()),
  })
  t.after(() => Object.assign(native, own))
  const driver = {
    name: 'watched',
    probe: () => Promise.resolve(undefined),
    setSocketLabel: () => void (isLabelled = true),
    clearSocketLabel: () => void (isLabelled = false),
  }
  return { security: [driver], bare }
}

type LockedRoot = Awaited<ReturnType<typeof dacRoot>>

/** QEMUs are another user, and images are locked. */
async function lockedRoot(t: TestContext): Promise<LockedRoot> {
  const made = await dacRoot(t)
  const settings = { security: ['dac'], user: made.user.name, lockManager: 'ofd' }
  await writeFile(join(made.folder, 'root/etc/qemu.json'), JSON.stringify(settings))
  await reopen(made.root)
  return made
}

const startRival = (here: LockedRoot, image: string): Promise<Domain> =>
  here.root.conn.domainCreateXML(plainXml({ name: 'rival', devices: diskXml('vda', image) }))

const pidOf = async (root: LockedRoot['root'], dom: Domain): Promise<number> =>
  Number(await readFile(join(runDirOf(root, dom), 'qemu/pid'), 'utf8'))

const statusOf = async (root: LockedRoot['root'], dom: Domain): Promise<string> =>
  readFile(`/proc/${await pidOf(root, dom)}/status`, 'utf8')
