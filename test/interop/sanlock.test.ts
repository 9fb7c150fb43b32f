/** Our lock driver and the real sanlock. */
import assert from 'node:assert/strict'
import { existsSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { lockDriver, VIR_DOMAIN_START_PAUSED, type Lease } from '../../src/index.js'
import { sanlockLocks } from '../../src/locking/sanlock.js'
import { exclusive, readOnly, shared, startHolding } from '../locking/support.js'
import { diskXml, plainXml, qemuPid, reopen, startPlain, testRoot, until, virError } from '../support/domain.js'
import { patternImage, temporaryFolder } from '../support/images.js'
import { requires } from '../support/requires.js'
import { startSanlock } from '../support/sanlock.js'

const MiB = 1024 * 1024
const busy = virError('VIR_ERR_RESOURCE_BUSY', /^image '.*' is locked, in use by/)

test('sanlock keeps the leases as long as the process lives, also where a colon stands in the path', async (t) => {
  if (!requires(t, 'root', 'program:sanlock')) return
  const { runDir, directory } = await startSanlock(t)
  const options = { runDir, directory: `${directory}:x`, hostId: 1, ioTimeout: 1 }
  const [here, there] = [sanlockLocks(options), sanlockLocks(options)]
  assert.equal(await here.probe?.(), undefined)
  assert.equal(await there.probe?.(), undefined, 'the lockspace is joined already')

  const first = await startHolding(t, here, 'first', [exclusive('/i')])
  const lease = JSON.parse(JSON.stringify(first.leases[0])) as Lease
  assert.equal(await there.inquire(lease), true)
  await assert.rejects(startHolding(t, there, 'second', [exclusive('/k'), exclusive('/i')]), busy)
  await assert.rejects(startHolding(t, there, 'second', [shared('/i')]), busy)
  await (await startHolding(t, there, 'third', [exclusive('/l'), readOnly('/i')])).kill()
  const more = await here.acquire(first.owner, [exclusive('/j')])
  await assert.rejects(startHolding(t, there, 'second', [exclusive('/j')]), busy)
  await there.release(more)
  assert.equal(await here.inquire(more), false)

  await first.kill()
  await there.release(lease)
  assert.equal(await there.inquire(lease), false)
  const second = await startHolding(t, there, 'second', [exclusive('/i')])
  await assert.rejects(
    here.acquire(first.owner, [exclusive('/j')]),
    virError('VIR_ERR_OPERATION_FAILED', /sanlock does not know process \d+/),
  )
  await second.free()
  const sharers = [await startHolding(t, here, 'a', [shared('/i')]), await startHolding(t, there, 'b', [shared('/i')])]
  await assert.rejects(startHolding(t, here, 'c', [exclusive('/i')]), busy)
  for (const { free } of sharers) await free()
  await startHolding(t, here, 'c', [exclusive('/i')])
})

test('domains of two roots: the second is refused and told who has the image, also after a crash of ours', async (t) => {
  if (!requires(t, 'root', 'program:sanlock', 'program:qemu-system-x86_64')) return
  const { runDir, directory } = await startSanlock(t)
  const lockManager = await lockDriver('sanlock', { runDir, directory, hostId: 1, ioTimeout: 1 })
  const [a, b] = [await testRoot(t, { lockManager }), await testRoot(t, { lockManager })]
  const { path } = await patternImage(a.folder, 4 * MiB)
  const devices = diskXml('vda', path, { format: 'raw' })
  await startPlain(a, { name: 'one', devices })
  const named = virError('VIR_ERR_RESOURCE_BUSY', new RegExp(`'${path}' is locked, in use by domain 'one' \\(process`))
  const two = await b.conn.domainDefineXML(plainXml({ name: 'two', devices }))
  await assert.rejects(two.create(VIR_DOMAIN_START_PAUSED), named)
  await reopen(a)
  await assert.rejects(two.create(VIR_DOMAIN_START_PAUSED), named)
  await (await a.conn.domainLookupByName('one')).destroy()
  await two.create(VIR_DOMAIN_START_PAUSED)
  await two.destroy()

  // QEMU dies while nobody of us is there
  const again = await a.conn.domainLookupByName('one')
  await again.create(VIR_DOMAIN_START_PAUSED)
  await a.conn.close()
  process.kill(qemuPid(a, again), 'SIGKILL')
  await until('the lease is free', () => two.create(VIR_DOMAIN_START_PAUSED).then(() => true, () => false)) // prettier-ignore
  await reopen(a)
})

test('a daemon that is not there is said before anything starts', async (t) => {
  const folder = await temporaryFolder(t)
  const lockManager = sanlockLocks({ runDir: join(folder, 'nobody'), directory: join(folder, 'leases'), hostId: 1 })
  await assert.rejects(
    testRoot(t, { lockManager }),
    virError('VIR_ERR_CONFIG_UNSUPPORTED', /lock manager 'sanlock' cannot be used: there is no daemon at '.*nobody'/),
  )
  assert.equal(existsSync(join(folder, 'leases/__LIBVIRT__DISKS__')), false)
  rmSync(folder, { recursive: true })
  await assert.rejects(
    lockDriver('sanlock', { directory: '/x' }),
    virError('VIR_ERR_INVALID_ARG', /number of this host, 'hostId'/),
  )
})
