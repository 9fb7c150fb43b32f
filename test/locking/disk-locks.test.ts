/** What a migration does with the locks of disks, at both of its ends, for each lock driver. */
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import { parseDomainXml } from '../../src/conf/parse.js'
import type { DomainDef } from '../../src/conf/domain-def.js'
import type { LockDriver } from '../../src/index.js'
import { Access } from '../../src/qemu/access/access.js'
import type { AccessRecord } from '../../src/qemu/access/record.js'
import type { LockCookie } from '../../src/locking/lock-driver.js'
import { SecurityStack } from '../../src/security/security-stack.js'
import { diskXml, plainXml, virError } from '../support/domain.js'
import { patternImage, temporaryFolder } from '../support/images.js'
import { exclusive, lockManagers, shared, startGated, startHolding } from './support.js'

const MiB = 1024 * 1024
const busy = virError('VIR_ERR_RESOURCE_BUSY', /in use by/)

interface End {
  def: DomainDef
  access: Access
  record: () => AccessRecord | undefined
  kill: () => Promise<void>
}

/** One end of a migration: a process in QEMU's place, with its images; `unlocked`: those that it must not lock yet. */
async function end(
  t: TestContext,
  locks: LockDriver,
  definition: DomainDef,
  unlocked: readonly string[] = [],
): Promise<End> {
  const def = { ...structuredClone(definition), id: 1 }
  const security = new SecurityStack([], () => undefined)
  let saved: AccessRecord | undefined
  const access = new Access({ security, locks }, def, (text) => t.diagnostic(text))
  access.persist = () => (saved = structuredClone(access.record))
  access.leaveLocks(unlocked)
  const kill = await startGated(t, await access.gate())
  return { def, access, record: () => saved, kill }
}

const diskLocks = ({ access, def }: End): string[] => def.disks.map((disk) => access.diskLock(disk))

function definition(paths: readonly string[]): DomainDef {
  const disks = paths.map((path, nth) => diskXml(`vd${'ab'[nth] ?? 'c'}`, path, { format: 'raw' }))
  return parseDomainXml(plainXml({ name: 'moving', devices: disks.join('') }))
}

for (const manager of lockManagers) {
  test(`the lock of a disk that is served is shared, and exclusive again when that is called off: ${manager.name}`, async (t) => {
    const locks = await manager.start(t)
    if (locks === undefined) return
    const folder = await temporaryFolder(t)
    const image = (await patternImage(folder, MiB)).path
    const source = await end(t, locks, definition([image]))
    const { disks } = source.def
    assert.deepEqual(await source.access.setDiskLocks(disks, 'shared'), { driver: locks.name, states: {} })
    assert.deepEqual(source.record()?.diskLocks, { vda: 'shared' })
    assert.deepEqual(source.record()?.leases[0]?.resources, [shared(image)])
    await assert.rejects(startHolding(t, locks, 'other', [exclusive(image)]), busy)
    const reader = await startHolding(t, locks, 'reader', [shared(image)])
    await assert.rejects(source.access.setDiskLocks(disks, 'held'), busy)
    assert.deepEqual([source.record()?.diskLocks, source.record()?.leases.length], [{ vda: 'shared' }, 1])
    await reader.free()
    await source.access.setDiskLocks(disks, 'held')
    assert.deepEqual([source.record()?.diskLocks, source.record()?.leases[0]?.resources], [{}, [exclusive(image)]])
    await assert.rejects(startHolding(t, locks, 'reader', [shared(image)]), busy)
  })

  test(`the lock of a disk goes from source to destination, and back: ${manager.name}`, async (t) => {
    const locks = await manager.start(t)
    if (locks === undefined) return
    const folder = await temporaryFolder(t)
    const image = (await patternImage(folder, MiB)).path
    const def = definition([image])
    const source = await end(t, locks, def)
    const destination = await end(t, locks, def, ['vda'])
    assert.deepEqual([destination.record()?.leases ?? [], diskLocks(destination)], [[], ['released']])
    await assert.rejects(destination.access.setDiskLocks(def.disks, 'held'), busy)

    const cookie = await source.access.setDiskLocks(source.def.disks, 'released')
    assert.equal(cookie.driver, locks.name)
    await destination.access.setDiskLocks(
      destination.def.disks,
      'held',
      JSON.parse(JSON.stringify(cookie)) as LockCookie,
    )
    await assert.rejects(source.access.setDiskLocks(source.def.disks, 'held'), busy)
    assert.deepEqual(diskLocks(source), ['released'])

    // the destination gives up
    const back = await destination.access.setDiskLocks(destination.def.disks, 'released')
    await source.access.setDiskLocks(source.def.disks, 'held', back)
    assert.deepEqual(source.record()?.leases[0]?.resources, [exclusive(image)])
    await destination.kill()
    await destination.access.revoke()
    await assert.rejects(startHolding(t, locks, 'other', [exclusive(image)]), busy)
  })

  test(`of several disks all locks change, or none: ${manager.name}`, async (t) => {
    const locks = await manager.start(t)
    if (locks === undefined) return
    const folder = await temporaryFolder(t)
    const images = [(await patternImage(folder, MiB, 1)).path, (await patternImage(folder, MiB, 2)).path]
    const source = await end(t, locks, definition(images))
    await source.access.setDiskLocks(source.def.disks, 'released')
    const thief = await startHolding(t, locks, 'thief', [exclusive(images[1] ?? '')])
    await assert.rejects(source.access.setDiskLocks(source.def.disks, 'held', { states: {} }), busy)
    assert.deepEqual(source.record()?.diskLocks, { vda: 'released', vdb: 'released' })
    assert.deepEqual(source.record()?.leases, [])
    await thief.free()
    if (manager.remembers)
      await assert.rejects(
        source.access.setDiskLocks(source.def.disks, 'held'),
        virError('VIR_ERR_OPERATION_FAILED', /another domain had image '.*' since its lock was let go of/),
      )
    // whoever knows that the guest did not run meanwhile may do without what was said
    await source.access.setDiskLocks(source.def.disks, 'held', { states: {} })
    assert.equal(source.record()?.leases.length, 2)
  })
}

test('another lock manager at the other end is no way to go on', async (t) => {
  const locks = await lockManagers[0]?.start(t)
  assert.ok(locks !== undefined)
  const image = (await patternImage(await temporaryFolder(t), MiB)).path
  const { access, def } = await end(t, locks, definition([image]), ['vda'])
  await assert.rejects(
    access.setDiskLocks(def.disks, 'held', { driver: 'sanlock', states: {} }),
    virError('VIR_ERR_INTERNAL_ERROR', /the other host's lock manager is 'sanlock', this one's is 'ofd'/),
  )
})
