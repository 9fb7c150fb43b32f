/** The definition of a domain that does not run moves to another root. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  VIR_DOMAIN_DEFINE_VALIDATE,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_XML_INACTIVE,
  VIR_MIGRATE_LIVE,
  VIR_MIGRATE_NON_SHARED_DISK,
  VIR_MIGRATE_OFFLINE,
  VIR_MIGRATE_PERSIST_DEST,
  VIR_MIGRATE_STREAM_DISKS,
  VIR_MIGRATE_TUNNELLED,
  VIR_MIGRATE_UNDEFINE_SOURCE,
  type Domain,
} from '../../src/index.js'
import {
  diskXml,
  lifecycleOf,
  plainXml,
  recordEvents,
  startPlain,
  testRoot,
  until,
  virError,
} from '../support/domain.js'
import { requires } from '../support/requires.js'

const OFFLINE = VIR_MIGRATE_OFFLINE | VIR_MIGRATE_PERSIST_DEST

test('a definition goes to another root, under another name too, and stays or goes where it was', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const [here, there] = [await testRoot(t), await testRoot(t)]
  const xml = plainXml({ devices: diskXml('vda', join(here.folder, 'not-there-yet.qcow2')) })
  const dom = await here.conn.domainDefineXML(xml, VIR_DOMAIN_DEFINE_VALIDATE)
  const events = recordEvents(there.conn)
  const moved = await dom.migrate(there.conn, {}, OFFLINE)
  assert.equal(await moved.isPersistent(), true)
  assert.equal((await moved.getState()).state, VIR_DOMAIN_SHUTOFF)
  assert.equal(await definition(moved), await definition(dom))
  await until('it is told', () => lifecycleOf(events).length === 1)
  assert.deepEqual(lifecycleOf(events), ['0/0'])

  await moved.undefine()
  const before = await definition(dom)
  const renamed = await dom.migrate(there.conn, { destinationName: 'other' }, OFFLINE | VIR_MIGRATE_UNDEFINE_SOURCE)
  assert.equal(renamed.name, 'other')
  assert.equal(await definition(renamed), before.replace('<name>guest<', '<name>other<'))
  assert.deepEqual(await here.conn.listAllDomains(), [])
})

test('a domain that runs keeps running where it is while its definition is copied; one that runs there is left alone', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const [here, there] = [await testRoot(t), await testRoot(t)]
  const dom = await startPlain(here, { devices: '' })
  const moved = await dom.migrate(there.conn, {}, OFFLINE)
  assert.equal(await dom.isActive(), true)
  assert.equal(await moved.isActive(), false)
  await moved.create()
  await assert.rejects(dom.migrate(there.conn, {}, OFFLINE), virError('VIR_ERR_OPERATION_INVALID', /already active/))
})

test('what an offline migration cannot do is refused by name, and nothing has changed', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const [here, there] = [await testRoot(t), await testRoot(t)]
  const dom = await here.conn.domainDefineXML(plainXml({ devices: '' }))
  const refused = (flags: number, code: Parameters<typeof virError>[0], words: RegExp, params = {}): Promise<void> =>
    assert.rejects(dom.migrate(there.conn, params, flags), virError(code, words))
  await refused(0, 'VIR_ERR_OPERATION_INVALID', /domain is not running/)
  await refused(VIR_MIGRATE_OFFLINE, 'VIR_ERR_OPERATION_INVALID', /persistent flag/)
  await refused(OFFLINE | VIR_MIGRATE_LIVE, 'VIR_ERR_INVALID_ARG', /mutually exclusive/)
  await refused(OFFLINE | VIR_MIGRATE_NON_SHARED_DISK, 'VIR_ERR_OPERATION_INVALID', /non-shared storage/)
  await refused(OFFLINE | VIR_MIGRATE_STREAM_DISKS, 'VIR_ERR_OPERATION_INVALID', /VIR_MIGRATE_STREAM_DISKS/)
  await refused(OFFLINE | VIR_MIGRATE_TUNNELLED, 'VIR_ERR_OPERATION_INVALID', /does not make sense/)
  const other = (await definition(dom)).replace("<vcpu placement='static'>1<", "<vcpu placement='static'>2<")
  await refused(OFFLINE, 'VIR_ERR_CONFIG_UNSUPPORTED', /'vcpu/, { persistXML: other })
  assert.deepEqual(await there.conn.listAllDomains(), [])
  assert.equal(await dom.isPersistent(), true)
})

const definition = (dom: Domain): Promise<string> => dom.getXMLDesc(VIR_DOMAIN_XML_INACTIVE)
