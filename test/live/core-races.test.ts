/** Calls that come at the same time, or find another state than the one that they were made for. */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import * as c from '../../src/index.js'
import {
  assertNothingRuns,
  lifecycleOf,
  plainXml,
  qemuPid,
  recordEvents,
  reopen,
  startPlain,
  testRoot,
  until,
  virError,
} from '../support/domain.js'
import { requires } from '../support/requires.js'

const paused = c.VIR_DOMAIN_START_PAUSED
const gone = { state: c.VIR_DOMAIN_SHUTOFF, reason: c.VIR_DOMAIN_SHUTOFF_DESTROYED }

const outcome = (results: PromiseSettledResult<unknown>[]): string[] => results.map(({ status }) => status).sort()

test('of two starts of one domain one fails, and one QEMU runs', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const dom = await root.conn.domainDefineXML(plainXml({ devices: '' }))
  assert.deepEqual(outcome(await Promise.allSettled([dom.create(paused), dom.create(paused)])), [
    'fulfilled',
    'rejected',
  ])
  assert.equal(readdirSync(join(root.folder, 'root/run/qemu')).length, 1)
  await dom.destroy()
  assertNothingRuns(root)
})

test('of two starts of the same XML one fails, and the domain of the other is listed', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const xml = plainXml({ devices: '' })
  const results = await Promise.allSettled([
    root.conn.domainCreateXML(xml, paused),
    root.conn.domainCreateXML(xml, paused),
  ])
  assert.deepEqual(outcome(results), ['fulfilled', 'rejected'])
  const [dom] = await root.conn.listAllDomains(c.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
  assert.ok(dom)
  await dom.destroy()
  assert.deepEqual(await root.conn.listAllDomains(), [])
  assertNothingRuns(root)
})

test('a start that waited for one that failed begins anew, and its domain is listed', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const good = plainXml({ devices: '' })
  const bad = good.replace(
    '</domain>',
    "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-nosuch'/></commandline></domain>",
  )
  const [first, second] = await Promise.allSettled([
    root.conn.domainCreateXML(bad, paused),
    root.conn.domainCreateXML(good, paused),
  ])
  assert.equal(first.status, 'rejected')
  assert.equal(second.status, 'fulfilled')
  assert.equal((await root.conn.listAllDomains()).length, 1)
  await (await root.conn.domainLookupByName('guest')).destroy()
  assertNothingRuns(root)
})

test('a start that waited for an undefine finds no domain', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const dom = await root.conn.domainDefineXML(plainXml({ devices: '' }))
  const [undefined_, created] = await Promise.allSettled([dom.undefine(), dom.create(paused)])
  assert.equal(undefined_.status, 'fulfilled')
  assert.equal(created.status, 'rejected')
  assert.match(String(created.reason), /no domain with matching uuid/)
  assertNothingRuns(root)
})

test('a domain that is undefined while it starts runs on as a transient one', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const dom = await root.conn.domainDefineXML(plainXml({ devices: '' }))
  await Promise.all([dom.create(paused), dom.undefine()])
  assert.equal(await dom.isPersistent(), false)
  assert.equal(await dom.isActive(), true)
  await dom.destroy()
  assert.deepEqual(await root.conn.listAllDomains(), [])
})

test('two calls that destroy a domain both come back, and it is told of once', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const dom = await startPlain(root, { devices: '' })
  const events = recordEvents(root.conn)
  await Promise.all([dom.destroy(), dom.destroy()])
  assert.deepEqual(await dom.getState(), gone)
  await until('the event', () => events.length > 0)
  assert.deepEqual(lifecycleOf(events), [`${c.VIR_DOMAIN_EVENT_STOPPED}/${c.VIR_DOMAIN_EVENT_STOPPED_DESTROYED}`])
})

test('a start that is interrupted by destroy fails, and leaves nothing', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const dom = await root.conn.domainDefineXML(plainXml({ devices: '' }))
  const start = dom.create(paused).then(
    () => 'started',
    () => 'failed',
  )
  await until('QEMU is there', async () => dom.isActive())
  await dom.destroy()
  await start
  assert.equal(await dom.isActive(), false)
  assertNothingRuns(root)
  await dom.create(paused)
  await dom.destroy()
})

test('of two restores from one file one fails, and the domain of the other is listed', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const file = join(root.folder, 'saved')
  const dom = await root.conn.domainCreateXML(plainXml({ devices: '' }), paused)
  await dom.save(file)
  assert.deepEqual(await root.conn.listAllDomains(), [])
  assert.deepEqual(outcome(await Promise.allSettled([root.conn.domainRestore(file), root.conn.domainRestore(file)])), [
    'fulfilled',
    'rejected',
  ])
  const [restored] = await root.conn.listAllDomains()
  assert.ok(restored)
  assert.equal(await restored.isActive(), true)
  await restored.destroy()
  assertNothingRuns(root)
})

test('a saved state is not restored beside a domain that has its name by now', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const file = join(root.folder, 'saved')
  const dom = await root.conn.domainCreateXML(plainXml({ devices: '' }), paused)
  await dom.save(file)
  await root.conn.domainDefineXML(plainXml({ devices: '' }))
  await assert.rejects(root.conn.domainRestore(file), virError('VIR_ERR_OPERATION_FAILED', /already exists with uuid/))
  assert.equal((await root.conn.listAllDomains()).length, 1)
})

test('a guest that was saved paused is restored so, and the event says why', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const dom = await startPlain(root, { devices: '' })
  await dom.managedSave()
  const events = recordEvents(root.conn)
  await dom.create()
  await until('two events', () => events.length === 2)
  assert.deepEqual(lifecycleOf(events), [
    `${c.VIR_DOMAIN_EVENT_STARTED}/${c.VIR_DOMAIN_EVENT_STARTED_RESTORED}`,
    `${c.VIR_DOMAIN_EVENT_SUSPENDED}/${c.VIR_DOMAIN_EVENT_SUSPENDED_RESTORED}`,
  ])
  await dom.destroy()
})

test('an undefine that is refused for the variable store leaves the managed saved state', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const dom = await startPlain(root, { devices: '' })
  await dom.managedSave()
  const store = join(root.folder, 'store.fd')
  writeFileSync(store, 'store')
  const xml = (await dom.getXMLDesc()).replace(
    '</os>',
    `<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE.fd</loader><nvram>${store}</nvram></os>`,
  )
  await root.conn.domainDefineXML(xml)
  await assert.rejects(dom.undefine(c.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE), virError('VIR_ERR_OPERATION_INVALID', /nvram/))
  assert.equal(await dom.hasManagedSaveImage(), true)
  await dom.undefine(c.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | c.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
  assert.equal(readFileSync(store, 'utf8'), 'store')
  assert.deepEqual(readdirSync(join(root.folder, 'root/lib/qemu/save')), [])
})

test('a managed saved state that was not written to its end is thrown away, and the domain boots', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const dom = await startPlain(root, { devices: '' })
  await dom.managedSave()
  const file = join(root.folder, 'root/lib/qemu/save/guest.save')
  const saved = readFileSync(file)
  saved.write('LibvirtQemudPart', 0, 'latin1')
  writeFileSync(file, saved)
  const events = recordEvents(root.conn)
  await dom.create(paused)
  await until('it is told of', () => events.length > 0)
  assert.equal(lifecycleOf(events)[0], `${c.VIR_DOMAIN_EVENT_STARTED}/${c.VIR_DOMAIN_EVENT_STARTED_BOOTED}`)
  assert.equal(await dom.hasManagedSaveImage(), false)
  await reopen(root)
})

test('a root is closed while a QEMU in it stands still, and whoever opens it next has the domain', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const dom = await startPlain(root, { devices: '' })
  const pid = qemuPid(root, dom)
  await root.conn.close()
  process.kill(pid, 'SIGSTOP')
  try {
    root.conn = await c.Connect.open(root.uri)
    let closed = false
    const closing = root.conn.close().then(() => (closed = true))
    await until('it is closed', () => closed)
    await closing
  } finally {
    process.kill(pid, 'SIGCONT')
  }
  root.conn = await c.Connect.open(root.uri)
  const again = await root.conn.domainLookupByName('guest')
  assert.deepEqual(await again.getState(), { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_USER })
  await again.destroy()
  assertNothingRuns(root)
})

test('a call that has not begun its work when the root is closed does not begin it any more', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const [started, defined] = [plainXml({ name: 'started', devices: '' }), plainXml({ name: 'defined', devices: '' })]
  const late = Promise.allSettled([root.conn.domainCreateXML(started, paused), root.conn.domainDefineXML(defined)])
  await root.conn.close()
  for (const result of await late) {
    assert.ok(result.status === 'rejected')
    assert.equal((result.reason as { code?: unknown }).code, 'VIR_ERR_INVALID_CONN')
  }
  assertNothingRuns(root)
  await reopen(root)
  assert.deepEqual(await root.conn.listAllDomains(), [])
})
