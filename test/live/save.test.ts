import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { Connect, VIR_DOMAIN_RUNNING, VIR_DOMAIN_SHUTOFF } from '../../src/index.js'
import { completeSaveFile, createSaveFile, isIncomplete } from '../../src/qemu/core/save-file.js'
import { driverProcess } from '../support/driver-process.js'
import { guestXml, testRoot, until } from '../support/domain.js'
import { temporaryFolder } from '../support/images.js'
import { requires } from '../support/requires.js'

test('a save file says whether it was completed', async (t) => {
  const path = join(await temporaryFolder(t), 'x.save')
  const fd = createSaveFile(path, '<domain/>', true)
  assert.equal(isIncomplete(path), true)
  completeSaveFile(fd)
  assert.equal(isIncomplete(path), false)
})

test('a managed save that was never finished does not keep the domain from starting', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const dom = await root.conn.domainDefineXML(await guestXml(root.folder, { devices: '' }))
  createSaveFile(join(root.folder, 'root/lib/qemu/save/guest.save'), '<domain/>', true)
  await dom.create()
  assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)
  assert.equal(await dom.hasManagedSaveImage(), false)
})

test('killed while it saves, our process leaves a guest that goes on, or one that is saved: never one that is lost', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const dom = await root.conn.domainDefineXML(await guestXml(root.folder, { devices: '' }))
  await dom.create()
  await root.conn.close()
  const child = driverProcess(t, root.uri, { name: 'guest', do: 'save' })
  const file = join(root.folder, 'root/lib/qemu/save/guest.save')
  await until('it saves', () => existsSync(file))
  await child.kill()
  root.conn = await Connect.open(root.uri)
  const again = await root.conn.domainLookupByName('guest')
  const saved = await again.hasManagedSaveImage()
  await until(
    'it runs or is saved',
    async () => (await again.getState()).state === (saved ? VIR_DOMAIN_SHUTOFF : VIR_DOMAIN_RUNNING),
  )
  if (saved) await again.create()
  assert.equal((await again.getState()).state, VIR_DOMAIN_RUNNING)
})
