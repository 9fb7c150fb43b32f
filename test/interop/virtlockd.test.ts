/** Our lock driver and the real virtlockd. */
import assert from 'node:assert/strict'
import { mkdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  Connect,
  lockDriver,
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_PAUSED_IOERROR,
  VIR_DOMAIN_RUNNING,
  type Lease,
  type LockDriver,
} from '../../src/index.js'
import { busyImage } from '../../src/locking/image-users.js'
import { virtlockdLocks } from '../../src/locking/virtlockd.js'
import { exclusive, readOnly, shared, startHolding } from '../locking/support.js'
import { diskXml, plainXml, qemuPid, reopen, startPlain, testRoot, until, virError } from '../support/domain.js'
import { patternImage, temporaryFolder } from '../support/images.js'
import { mayUnshare, startLibvirtd } from '../support/libvirtd.js'
import { requires } from '../support/requires.js'
import { startVirtlockd } from '../support/virtlockd.js'

const MiB = 1024 * 1024
const busy = virError('VIR_ERR_RESOURCE_BUSY', /^image '.*' is locked, in use by/)

async function imageIn(folder: string, name = 'image'): Promise<string> {
  const path = join(folder, name)
  writeFileSync(path, 'x'.repeat(4096))
  return Promise.resolve(path)
}

for (const indirect of [false, true]) {
  const kind = indirect ? 'of lock files in a lockspace' : 'on the images themselves'
  test(`virtlockd keeps the locks ${kind} as long as the process lives`, async (t) => {
    if (!requires(t, 'program:virtlockd')) return
    const folder = await temporaryFolder(t)
    const { socket } = await startVirtlockd(t)
    const options = { socket, ...(indirect && { fileLockspace: join(folder, 'lockspace') }) }
    const [here, there] = [virtlockdLocks(options), virtlockdLocks(options)]
    assert.equal(await here.probe?.(), undefined)
    const image = await imageIn(folder)

    const first = await startHolding(t, here, 'first', [exclusive(image)])
    assert.equal(await there.inquire(first.leases[0] as Lease), true)
    await assert.rejects(startHolding(t, there, 'second', [exclusive(image)]), busy)
    await assert.rejects(startHolding(t, there, 'second', [shared(image)]), busy)
    await (await startHolding(t, there, 'third', [readOnly(image)])).kill()

    await first.kill()
    await there.release(first.leases[0] as Lease)
    const second = await startHolding(t, there, 'second', [exclusive(image)])
    await here.release(first.leases[0] as Lease)
    assert.equal(await here.inquire(second.leases[0] as Lease), true, 'a lease that is gone takes nothing along')
    assert.equal(await here.release(second.leases[0] as Lease), undefined)
    assert.equal(await here.inquire(second.leases[0] as Lease), false)

    const sharers = [
      await startHolding(t, here, 'a', [shared(image)]),
      await startHolding(t, there, 'b', [shared(image)]),
    ]
    await assert.rejects(startHolding(t, here, 'c', [exclusive(image)]), busy)
    for (const { kill } of sharers) await kill()
    // the daemon itself notices
    await until('the locks are free', () =>
      startHolding(t, here, 'c', [exclusive(image)]).then(
        () => true,
        () => false,
      ),
    )
  })
}

test('the daemon frees nothing when only our own connection ends, and gives more to a process that runs', async (t) => {
  if (!requires(t, 'program:virtlockd')) return
  const folder = await temporaryFolder(t)
  const { socket, log } = await startVirtlockd(t)
  const locks = virtlockdLocks({ socket })
  const [image, other] = [await imageIn(folder), await imageIn(folder, 'other')]
  const first = await startHolding(t, locks, 'first', [exclusive(image)])
  const lease = await locks.acquire(first.owner, [exclusive(other)])
  await assert.rejects(startHolding(t, locks, 'second', [exclusive(other)]), busy)
  assert.match(readFileSync(log, 'utf8'), new RegExp(`ownerName=first ownerId=1 ownerPid=${first.owner.pid}`))
  process.kill(first.owner.pid, 0)
  await locks.release(JSON.parse(JSON.stringify(lease)) as Lease)
  const second = await startHolding(t, locks, 'second', [exclusive(other)])

  // all or nothing
  await assert.rejects(locks.acquire(second.owner, [exclusive(join(folder, 'image')), exclusive(other)]), busy)
  const third = await imageIn(folder, 'third')
  await assert.rejects(locks.acquire(second.owner, [exclusive(third), exclusive(image)]), busy)
  await startHolding(t, locks, 'third', [exclusive(third)])
})

test('one image under two names is one image, as libvirt spells it or in full', async (t) => {
  if (!requires(t, 'program:virtlockd')) return
  const folder = await temporaryFolder(t)
  const { socket } = await startVirtlockd(t)
  const locks = virtlockdLocks({ socket })
  const image = await imageIn(folder)
  const link = join(folder, 'link')
  symlinkSync(image, link)
  await startHolding(t, locks, 'first', [{ ...exclusive(image), alias: link }])
  await assert.rejects(startHolding(t, locks, 'second', [exclusive(image)]), busy)
  await assert.rejects(startHolding(t, locks, 'second', [exclusive(link)]), busy)
})

test('a daemon that is not there or breaks down is said; what was lost is known', async (t) => {
  if (!requires(t, 'program:virtlockd')) return
  const folder = await temporaryFolder(t)
  const nowhere = virtlockdLocks({ socket: join(folder, 'nobody') })
  assert.match((await nowhere.probe?.()) ?? '', /cannot connect to virtlockd at '.*nobody'/)
  await assert.rejects(testRoot(t, { lockManager: nowhere }), virError('VIR_ERR_CONFIG_UNSUPPORTED', /cannot be used/))

  const socket = join(folder, 'sock')
  const daemon = await startVirtlockd(t, socket)
  const locks = virtlockdLocks({ socket })
  const image = await imageIn(folder)
  const { owner, leases } = await startHolding(t, locks, 'first', [exclusive(image)])
  await daemon.kill()
  await assert.rejects(locks.inquire(leases[0] as Lease), virError('VIR_ERR_SYSTEM_ERROR', /cannot connect/))
  rmSync(socket)
  await startVirtlockd(t, socket)
  assert.equal(await locks.inquire(leases[0] as Lease), false)
  await locks.acquire(owner, [exclusive(image)])
  await assert.rejects(startHolding(t, locks, 'second', [exclusive(image)]), busy)
})

test('domains of two roots, QEMU the owner: the second start is refused and names the first', async (t) => {
  if (!requires(t, 'program:virtlockd', 'program:qemu-system-x86_64')) return
  const socket = join(await temporaryFolder(t), 'sock')
  let daemon = await startVirtlockd(t, socket)
  const lockManager = await lockDriver('virtlockd', { socket })
  const [a, b] = [await testRoot(t, { lockManager }), await testRoot(t, { lockManager })]
  const { path } = await patternImage(a.folder, 4 * MiB)
  const devices = diskXml('vda', path, { format: 'raw' })
  const one = await startPlain(a, { name: 'one', devices })
  const named = virError('VIR_ERR_RESOURCE_BUSY', new RegExp(`'${path}' is locked, in use by domain 'one' \\(process`))
  await assert.rejects(startPlain(b, { name: 'two', devices }), named)
  const two = await b.conn.domainLookupByName('two')
  await one.destroy()
  await two.create()
  await two.destroy()

  // the owner's end is enough, without us
  await one.create()
  await a.conn.close()
  process.kill(qemuPid(a, one), 'SIGKILL')
  await until('the lock is free', () =>
    two.create().then(
      () => true,
      () => false,
    ),
  )
  await reopen(a)

  // what the daemon lost is locked anew when the root is opened again
  await daemon.kill()
  rmSync(socket)
  daemon = await startVirtlockd(t, socket)
  await reopen(b)
  const again = await a.conn.domainLookupByName('one')
  await assert.rejects(again.create(), virError('VIR_ERR_RESOURCE_BUSY', /in use by domain 'two'/))
})

test('a guest whose lock was lost to somebody else is paused when we find it', async (t) => {
  if (!requires(t, 'program:virtlockd', 'program:qemu-system-x86_64')) return
  const socket = join(await temporaryFolder(t), 'sock')
  const daemon = await startVirtlockd(t, socket)
  const root = await testRoot(t, { lockManager: await lockDriver('virtlockd', { socket }) })
  const { path } = await patternImage(root.folder, 4 * MiB)
  const dom = await startPlain(root, { name: 'one', devices: diskXml('vda', path, { format: 'raw' }) })
  await dom.resume()
  await daemon.kill()
  rmSync(socket)
  await startVirtlockd(t, socket)
  const thief = await startHolding(t, virtlockdLocks({ socket }), 'thief', [exclusive(path)])
  // somebody has it, and the daemon does not say who: that is all that can be known
  await reopen(root)
  const found = await root.conn.domainLookupByName('one')
  assert.equal((await found.getState()).state, VIR_DOMAIN_RUNNING)
  await thief.kill()
  await root.conn.close()

  // a lock driver that does know
  const lost: LockDriver = {
    name: 'virtlockd',
    acquire: (_owner, [resource]) => Promise.reject(busyImage(resource ?? exclusive(path))),
    release: () => Promise.resolve(undefined),
    inquire: () => Promise.resolve(false),
  }
  root.options = { lockManager: lost }
  root.conn = await Connect.open(root.uri, root.options)
  const state = await (await root.conn.domainLookupByName('one')).getState()
  assert.deepEqual(state, { state: VIR_DOMAIN_PAUSED, reason: VIR_DOMAIN_PAUSED_IOERROR })
})

test('a domain of libvirtd and one of ours respect each other', async (t) => {
  if (!requires(t, 'root', 'program:virtlockd', 'program:libvirtd', 'program:virsh', 'program:qemu-system-x86_64'))
    return
  if (!(await mayUnshare())) {
    t.skip('needs to run as root that may make mount namespaces')
    return
  }
  const folder = await temporaryFolder(t)
  const runDir = join(folder, 'libvirt/run')
  mkdirSync(runDir, { recursive: true })
  const { socket } = await startVirtlockd(t, join(runDir, 'virtlockd-sock'))
  const { virsh } = await startLibvirtd(t, join(folder, 'libvirt'), 'lock_manager = "lockd"\n')
  const root = await testRoot(t, { lockManager: await lockDriver('virtlockd', { socket }) })
  const { path } = await patternImage(folder, 4 * MiB)
  const devices = diskXml('vda', path, { format: 'raw' })
  const xml = join(folder, 'theirs.xml')
  writeFileSync(xml, plainXml({ name: 'theirs', devices }))
  await virsh('define', xml)

  // not a QEMU, whose own locks would come before those that libvirtd takes when the guest begins to run
  const holding = await startHolding(t, virtlockdLocks({ socket }), 'ours', [exclusive(path)])
  await assert.rejects(virsh('start', 'theirs'), /resource busy: Lockspace resource '.*' is locked/)
  await holding.kill()

  await until('the lock is free', () => virsh('start', 'theirs').then(() => true, () => false)) // prettier-ignore
  const ours = await root.conn.domainDefineXML(plainXml({ name: 'ours', devices }))
  try {
    await assert.rejects(ours.create(), virError('VIR_ERR_RESOURCE_BUSY', /in use by domain 'theirs' \(process \d+\)/))
  } finally {
    await virsh('destroy', 'theirs')
  }
  await ours.create()
})
