/** The whole way as whoever runs this: `node user-way.js FOLDER OVERLAY SECRET`; says 'done' or throws. See user.test.ts. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { Connect, VIR_DOMAIN_RUNNING } from '../../src/index.js'
import { diskXml, guestXml, plainXml, virError } from './domain.js'
import { Guest } from './guest.js'
import { assertRight } from './streamed.js'

const MiB = 1024 * 1024

const [folder = '', path = '', secret = ''] = process.argv.slice(2)
const conn = await Connect.open(`qemu:///embed?root=${join(folder, 'root')}`)
const dom = await conn.domainDefineXML(await guestXml(folder, { name: 'own', devices: diskXml('vda', path) }))
try {
  await dom.create()
  assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)
  const guest = await Guest.connect(join(folder, 'own.serial'))
  await guest.ready()
  await guest.base('vda', 7)
  await guest.work('vda')
  await (
    await dom.stream('vda', { bandwidth: 16 * MiB })
  ).finished
  await assertRight(guest)
  guest[Symbol.dispose]()
} finally {
  if (await dom.isActive()) await dom.destroy()
}
await dom.undefine()

const barred = await conn.domainDefineXML(plainXml({ name: 'barred', devices: diskXml('vda', secret) }))
await assert.rejects(barred.create(), virError('VIR_ERR_SYSTEM_ERROR', /secret\.qcow2.*permission denied/i))
assert.equal(await barred.isActive(), false)
await barred.undefine()
assert.deepEqual(await conn.listAllDomains(), [])
await conn.close()
console.log('done')
