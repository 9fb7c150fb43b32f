import assert from 'node:assert/strict'
import { readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import {
  Connect,
  lockDriver,
  VIR_DOMAIN_EVENT_SUSPENDED,
  VIR_DOMAIN_EVENT_SUSPENDED_IOERROR,
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_PAUSED_IOERROR,
  VIR_DOMAIN_RUNNING,
  VIR_DOMAIN_SHUTOFF,
  type Domain,
  type Lease,
  type LockDriver,
} from '../../src/index.js'
import { run, RunError } from '../../src/util/run.js'
import {
  diskXml,
  lifecycleOf,
  plainXml,
  qemuPid,
  recordEvents,
  reopen,
  runDirOf,
  startPlain,
  testRoot,
  until,
  virError,
  type TestRoot,
} from '../support/domain.js'
import { overlay, patternImage, temporaryFolder } from '../support/images.js'
import { requires } from '../support/requires.js'
import { startVirtlockd } from '../support/virtlockd.js'
import { exclusive, startHolding } from './support.js'

const MiB = 1024 * 1024
const qemu = ['program:qemu-system-x86_64', 'program:qemu-img'] as const

const busy = (path: string, name: string): object =>
  virError('VIR_ERR_RESOURCE_BUSY', new RegExp(`image '${path}' is in use by domain '${name}' \\(process \\d+`))

function leasesOf(root: TestRoot, dom: Domain): Lease[] {
  const status = JSON.parse(readFileSync(join(runDirOf(root, dom), 'status.json'), 'utf8')) as {
    access?: { leases: Lease[] }
  }
  return status.access?.leases ?? []
}

const isOff = async (dom: Domain): Promise<boolean> => (await dom.getState()).state === VIR_DOMAIN_SHUTOFF

test('two domains of two roots on one image: the second is refused, until the first is gone', async (t) => {
  if (!requires(t, ...qemu)) return
  const lockManager = await lockDriver('ofd', { directory: join(await temporaryFolder(t), 'locks') })
  const [a, b] = [await testRoot(t, { lockManager }), await testRoot(t, { lockManager })]
  const base = await patternImage(a.folder, 4 * MiB)
  const image = await overlay(a.folder, base.path)
  const link = join(b.folder, 'link.qcow2')
  symlinkSync(image, link)

  const one = await startPlain(a, { name: 'one', devices: diskXml('vda', image) })
  const modes = leasesOf(a, one).map(({ resources: [resource] }) => resource)
  assert.deepEqual(modes, [
    { path: image, mode: 'exclusive' },
    { path: base.path, mode: 'read-only' },
  ])
  await assert.rejects(startPlain(b, { name: 'two', devices: diskXml('vda', link) }), busy(image, 'one'))
  const two = await b.conn.domainLookupByName('two')
  assert.equal(await isOff(two), true)

  // another overlay of the same base is no conflict
  const other = await overlay(b.folder, base.path)
  await (await startPlain(b, { name: 'three', devices: diskXml('vda', other) })).destroy()

  process.kill(qemuPid(a, one), 'SIGKILL')
  await until('the domain is off', () => isOff(one))
  await two.create()
  await assert.rejects(one.create(), busy(image, 'two'))
  await two.destroy()
  await one.create()
})

test('after a stream the domain has nothing of its base any more', async (t) => {
  if (!requires(t, ...qemu)) return
  const root = await testRoot(t, { lockManager: await lockDriver('ofd', { directory: await temporaryFolder(t) }) })
  const base = await patternImage(root.folder, 4 * MiB)
  const image = await overlay(root.folder, base.path)
  const dom = await startPlain(root, { devices: diskXml('vda', image) })
  assert.equal(leasesOf(root, dom).length, 2)
  await (
    await dom.stream('vda')
  ).finished
  await until('the base is let go', () => leasesOf(root, dom).length === 1)
  assert.deepEqual(
    leasesOf(root, dom).map(({ resources: [resource] }) => resource),
    [{ path: image, mode: 'exclusive' }],
  )
  // who wants to write the base may
  await startPlain(root, { name: 'two', devices: diskXml('vda', base.path, { format: 'raw' }) })
})

test('the settings of a root name a lock manager; its own directory keeps the domains of the root apart', async (t) => {
  if (!requires(t, ...qemu)) return
  const root = await testRoot(t)
  const settings = join(root.folder, 'root/etc/qemu.json')
  writeFileSync(settings, JSON.stringify({ lockManager: 'ofd' }))
  await reopen(root)
  const { path } = await patternImage(root.folder, 4 * MiB)
  const devices = diskXml('vda', path, { format: 'raw' })
  const one = await startPlain(root, { name: 'one', devices })
  await assert.rejects(startPlain(root, { name: 'two', devices }), busy(path, 'one'))
  assert.equal(readdirSync(join(root.folder, 'root/lib/lock')).length, 1)

  // another lock manager later: what it does not know it leaves alone
  writeFileSync(settings, JSON.stringify({ lockManager: 'none' }))
  await reopen(root)
  assert.equal(await (await root.conn.domainLookupByName(one.name)).isActive(), true)
  await (await root.conn.domainLookupByName(one.name)).destroy()
  writeFileSync(settings, JSON.stringify({ lockManager: 'ofd', lockDirectory: 'locks' }))
  await assert.rejects(reopen(root), virError('VIR_ERR_CONF_SYNTAX', /setting 'lockDirectory'/))
})

test('shareable disks go together, but not with one that is not', async (t) => {
  if (!requires(t, ...qemu)) return
  const root = await testRoot(t, { lockManager: await lockDriver('ofd', { directory: await temporaryFolder(t) }) })
  const { path } = await patternImage(root.folder, 4 * MiB)
  const shareable = { devices: diskXml('vda', path, { format: 'raw', extra: '<shareable/>' }) }
  await startPlain(root, { name: 'one', ...shareable })
  await startPlain(root, { name: 'two', ...shareable })
  const alone = { name: 'three', devices: diskXml('vda', path, { format: 'raw' }) }
  await assert.rejects(startPlain(root, alone), busy(path, 'one'))
})

test('a domain keeps its locks while no process of ours is there, and the next process frees them', async (t) => {
  if (!requires(t, ...qemu)) return
  const directory = await temporaryFolder(t)
  const root = await testRoot(t, { lockManager: await lockDriver('ofd', { directory }) })
  const image = (await patternImage(root.folder, 4 * MiB)).path
  const devices = diskXml('vda', image, { format: 'raw' })

  // started by a process that is killed
  const index = fileURLToPath(new URL('../../src/index.js', import.meta.url))
  await root.conn.close()
  const script = `import { Connect, lockDriver, VIR_DOMAIN_START_PAUSED } from '${index}'
    const lockManager = await lockDriver('ofd', { directory: '${directory}' })
    const conn = await Connect.open('${root.uri}', { lockManager })
    const dom = await conn.domainDefineXML(\`${plainXml({ name: 'one', devices })}\`)
    await dom.create(VIR_DOMAIN_START_PAUSED)
    process.kill(process.pid, 'SIGKILL')`
  await assert.rejects(run(process.execPath, ['--input-type=module', '-e', script]), (error) => {
    assert.ok(error instanceof RunError)
    assert.equal(error.reason, 'signal', error.message)
    return true
  })
  const other = await testRoot(t, { lockManager: await lockDriver('ofd', { directory }) })
  const two = await other.conn.domainDefineXML(plainXml({ name: 'two', devices }))
  await assert.rejects(two.create(), busy(image, 'one'))

  await reopen(root)
  const one = await root.conn.domainLookupByName('one')
  await assert.rejects(two.create(), busy(image, 'one'))
  await one.destroy()
  await two.create()
  await two.destroy()

  // its QEMU dies while nobody watches
  await one.create()
  await root.conn.close()
  process.kill(qemuPid(root, one), 'SIGKILL')
  await until('the lock is free', () =>
    two.create().then(
      () => true,
      () => false,
    ),
  )
  await reopen(root)
})

test('a lock that gets lost is had again, and a guest whose image another has by then is paused', async (t) => {
  if (!requires(t, ...qemu)) return
  const lockManager = await lockDriver('ofd', { directory: await temporaryFolder(t) })
  const root = await testRoot(t, { lockManager })
  const { path } = await patternImage(root.folder, 4 * MiB)
  const dom = await startPlain(root, { name: 'one', devices: diskXml('vda', path, { format: 'raw' }) })
  await dom.resume()
  const events = recordEvents(root.conn)
  const [first] = leasesOf(root, dom)
  assert.ok(first !== undefined)
  await lockManager.release(first)
  await until('it is had again', () => lockManager.inquire(first))
  assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)

  const [second] = leasesOf(root, dom)
  assert.ok(second !== undefined && second.data !== first.data)
  await lockManager.release(second)
  await startHolding(t, lockManager, 'thief', [exclusive(path)])
  await until('it is paused', async () => (await dom.getState()).state === VIR_DOMAIN_PAUSED)
  assert.deepEqual(await dom.getState(), { state: VIR_DOMAIN_PAUSED, reason: VIR_DOMAIN_PAUSED_IOERROR })
  await until('it is told', () =>
    lifecycleOf(events).includes(`${VIR_DOMAIN_EVENT_SUSPENDED}/${VIR_DOMAIN_EVENT_SUSPENDED_IOERROR}`),
  )
})

for (const stage of ['asked for', 'had again'] as const)
  test(`a lock that is being ${stage} when its QEMU is killed does not outlive it`, async (t) => {
    if (!requires(t, ...qemu, 'program:virtlockd')) return
    const locks = await lockDriver('virtlockd', { socket: (await startVirtlockd(t)).socket })
    const root = await testRoot(t, { lockManager: locks })
    const { path } = await patternImage(root.folder, 4 * MiB)
    const devices = diskXml('vda', path, { format: 'raw' })
    const pid = qemuPid(root, await startPlain(root, { name: 'one', devices }))
    await root.conn.close()
    let markReleased = (): void => undefined
    const released = new Promise<void>((resolve) => (markReleased = resolve))
    const die = async (): Promise<void> => {
      process.kill(pid, 'SIGKILL')
      await released
    }
    const lockManager: LockDriver = {
      ...locks,
      release: (lease) => locks.release(lease).finally(markReleased),
      inquire: async (lease) => {
        if (stage === 'asked for') await die()
        return stage === 'asked for' && locks.inquire(lease)
      },
      acquire: async (...wanted) => {
        if (stage === 'had again' && wanted[0].pid === pid) await die()
        return locks.acquire(...wanted)
      },
    }
    root.conn = await Connect.open(root.uri, { lockManager })
    await until('it is off', async () => isOff(await root.conn.domainLookupByName('one')))
    await startPlain(root, { name: 'two', devices })
  })

test('what a QEMU that cannot start had is free at once', async (t) => {
  if (!requires(t, ...qemu)) return
  const lockManager = await lockDriver('ofd', { directory: await temporaryFolder(t) })
  const root = await testRoot(t, { lockManager })
  const { path } = await patternImage(root.folder, 4 * MiB)
  const broken = { name: 'one', devices: diskXml('vda', path, { format: 'raw' }) }
  const args = `<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-nonsense'/></qemu:commandline>`
  await assert.rejects(startPlain(root, { ...broken, extra: args }), virError('VIR_ERR_INTERNAL_ERROR', /nonsense/))
  await startPlain(root, { ...broken, name: 'two' })
})
