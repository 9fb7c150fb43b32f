/** Domains that cannot start: the reason comes back, nothing is left behind, and they start once the cause is gone. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdir, open, rename, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import {
  Connect,
  VIR_DOMAIN_EVENT_STARTED,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_START_PAUSED,
  VIR_DOMAIN_XML_INACTIVE,
  type Domain,
} from '../../src/index.js'
import { run } from '../../src/util/run.js'
import {
  assertNothingRuns,
  diskXml,
  lifecycleOf,
  plainXml,
  recordEvents,
  testRoot,
  virError,
  type TestRoot,
} from '../support/domain.js'
import { emptyImage, overlay, patternImage } from '../support/images.js'
import { freePort } from '../support/ports.js'
import { requires } from '../support/requires.js'
import { nbdUri, qemuNbd } from '../support/servers.js'

const MiB = 1024 * 1024

/** The start is refused and leaves nothing; after `remove` it goes well. */
async function startsOnlyAfter(
  root: TestRoot,
  dom: Domain,
  refusal: ReturnType<typeof virError>,
  remove: () => Promise<unknown>,
  times = 2,
): Promise<void> {
  const events = recordEvents(root.conn)
  const before = await dom.getXMLDesc(VIR_DOMAIN_XML_INACTIVE)
  for (let i = 0; i < times; i++) {
    await assert.rejects(dom.create(VIR_DOMAIN_START_PAUSED), refusal)
    assert.equal(await dom.isActive(), false)
    assert.equal((await dom.getState()).state, VIR_DOMAIN_SHUTOFF)
    assertNothingRuns(root)
  }
  assert.equal(await dom.getXMLDesc(VIR_DOMAIN_XML_INACTIVE), before)
  assert.ok(!lifecycleOf(events).some((event) => event.startsWith(`${VIR_DOMAIN_EVENT_STARTED}/`)))
  await remove()
  await dom.create(VIR_DOMAIN_START_PAUSED)
  assert.equal(await dom.isActive(), true)
}

test('an image that is missing', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const path = join(root.folder, 'image.qcow2')
  const dom = await root.conn.domainDefineXML(plainXml({ devices: diskXml('vda', path) }))
  const missing = virError('VIR_ERR_SYSTEM_ERROR', /image\.qcow2.*No such file or directory/i)
  await startsOnlyAfter(root, dom, missing, () => emptyImage(root.folder, 'qcow2', MiB))
})

test('a backing image that is missing', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, MiB)
  const path = await overlay(root.folder, base.path)
  await rename(base.path, `${base.path}.away`)
  const dom = await root.conn.domainDefineXML(plainXml({ devices: diskXml('vda', path) }))
  const missing = virError('VIR_ERR_SYSTEM_ERROR', /base-7\.raw.*No such file or directory/i)
  await startsOnlyAfter(root, dom, missing, () => rename(`${base.path}.away`, base.path))
})

test('an image that is a folder', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const path = join(root.folder, 'image.qcow2')
  await mkdir(path)
  const dom = await root.conn.domainDefineXML(plainXml({ devices: diskXml('vda', path) }))
  await startsOnlyAfter(
    root,
    dom,
    virError('VIR_ERR_CONFIG_UNSUPPORTED', /image\.qcow2' is a directory, not an image/),
    async () => {
      await rm(path, { recursive: true })
      await emptyImage(root.folder, 'qcow2', MiB)
    },
  )
})

test("an image that another domain's QEMU has locked: the refusal names that domain", async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const other = await testRoot(t)
  const path = await emptyImage(root.folder, 'qcow2', MiB)
  const holder = await other.conn.domainDefineXML(plainXml({ name: 'holder', devices: diskXml('vda', path) }))
  await holder.create(VIR_DOMAIN_START_PAUSED)
  const dom = await root.conn.domainDefineXML(plainXml({ devices: diskXml('vda', path) }))
  const events = recordEvents(root.conn)
  const locked = virError(
    'VIR_ERR_RESOURCE_BUSY',
    /image '.*image\.qcow2' is in use by domain 'holder' \(process \d+\)$/,
  )
  await assert.rejects(dom.create(), locked)
  assert.equal(await dom.isActive(), false)
  assert.deepEqual(lifecycleOf(events), [])
  assert.equal(await holder.isActive(), true)
  await holder.destroy()
  assertNothingRuns(root)
  await dom.create(VIR_DOMAIN_START_PAUSED)
})

test('an image of another format than declared', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const { path } = await patternImage(root.folder, MiB)
  const dom = await root.conn.domainDefineXML(plainXml({ devices: diskXml('vda', path) }))
  const wrong = virError('VIR_ERR_INTERNAL_ERROR', /base-7\.raw.*'?qcow2'?/)
  await startsOnlyAfter(root, dom, wrong, async () => {
    await rm(path)
    await emptyImage(root.folder, 'qcow2', MiB, 'base-7.raw')
  })
})

test('a raw image is never probed: what looks like an overlay in it stays the content of the disk', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const secret = await patternImage(root.folder, MiB)
  const path = await overlay(root.folder, secret.path, { name: 'guest-wrote-this.raw' })
  const dom = await root.conn.domainDefineXML(plainXml({ devices: diskXml('vda', path, { format: 'raw' }) }))
  await dom.create(VIR_DOMAIN_START_PAUSED)
  assert.ok(!(await dom.getXMLDesc(0)).includes(secret.path))
  const nodes = await dom.qemuMonitorCommand('{"execute":"query-named-block-nodes"}')
  assert.ok(!nodes.includes(secret.path) && nodes.includes(path), nodes)
  assert.doesNotMatch(nodes, /"drv": ?"qcow2"/)
})

test('an overlay that does not say the format of its backing image', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, MiB)
  const path = await overlay(root.folder, base.path)
  const rebase = (...args: string[]): Promise<unknown> =>
    run('qemu-img', ['rebase', '-u', '-f', 'qcow2', '-b', base.path, ...args, path])
  await forgetBackingFormat(path)
  const dom = await root.conn.domainDefineXML(plainXml({ devices: diskXml('vda', path) }))
  const unsaid = virError('VIR_ERR_OPERATION_INVALID', /format of backing image '.*base-7\.raw' .* was not specified/)
  await startsOnlyAfter(root, dom, unsaid, () => rebase('-F', 'raw'))
})

/** The header extension with the backing format gets another, unknown type (qcow2 specification, header extensions). */
async function forgetBackingFormat(path: string): Promise<void> {
  const file = await open(path, 'r+')
  try {
    const header = Buffer.alloc(65_536)
    await file.read(header, 0, header.length, 0)
    const at = header.indexOf(Buffer.from('e2792aca', 'hex'))
    await file.write(Buffer.from('00badbad', 'hex'), 0, 4, at)
  } finally {
    await file.close()
  }
}

test('a backing chain that loops', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, MiB)
  const low = await overlay(root.folder, base.path, { name: 'low.qcow2' })
  const top = await overlay(root.folder, low, { name: 'top.qcow2', backingFormat: 'qcow2' })
  const onto = (backing: string, format: string): Promise<unknown> =>
    run('qemu-img', ['rebase', '-u', '-f', 'qcow2', '-b', backing, '-F', format, low])
  await onto(top, 'qcow2')
  const dom = await root.conn.domainDefineXML(plainXml({ devices: diskXml('vda', top) }))
  const loops = virError('VIR_ERR_INTERNAL_ERROR', /backing chain of '.*top\.qcow2' loops: '.*' is in it twice/)
  await startsOnlyAfter(root, dom, loops, () => onto(base.path, 'raw'))
})

test('a base whose server is not there', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-nbd')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, MiB)
  const at = { port: await freePort() }
  const path = join(root.folder, 'overlay.qcow2')
  const create = ['create', '-q', '-u', '-f', 'qcow2', '-b', nbdUri(at), '-F', 'raw', path, String(MiB)]
  await run('qemu-img', create)
  const dom = await root.conn.domainDefineXML(plainXml({ devices: diskXml('vda', path) }))
  const absent = virError('VIR_ERR_OPERATION_FAILED', /^base 'nbd:.*' of disk 'vda' does not answer: .*ECONNREFUSED/)
  await startsOnlyAfter(root, dom, absent, () => qemuNbd(t, base.path, at), 1)
})

test('a QEMU that does not understand its command line: its own words come back', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const namespace = "xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'"
  const options = (arg: string) =>
    plainXml({
      devices: '',
      attributes: namespace,
      extra: `<qemu:commandline><qemu:arg value='${arg}'/></qemu:commandline>`,
    }).replace(/<uuid>.*<\/uuid>/, '<uuid>5d8a3a5c-2d6c-4b3c-9a53-0d0a59c9a001</uuid>')
  const dom = await root.conn.domainDefineXML(options('-nonsense'))
  const words = virError(
    'VIR_ERR_INTERNAL_ERROR',
    /^process exited while connecting to monitor: .*-nonsense: invalid option/,
  )
  await startsOnlyAfter(root, dom, words, () => root.conn.domainDefineXML(options('-no-hpet')))
})

test('a kernel that is missing, and a serial line on a path that is taken', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const kernel = plainXml({ name: 'kernel', devices: '' }).replace('</os>', '<kernel>/nosuch/vmlinuz</kernel></os>')
  const dom = await root.conn.domainDefineXML(kernel)
  await assert.rejects(dom.create(), virError('VIR_ERR_INTERNAL_ERROR', /\/nosuch\/vmlinuz/))
  assertNothingRuns(root)

  const path = join(root.folder, 'line')
  await mkdir(path)
  const devices = `<serial type='unix'><source mode='bind' path='${path}'/></serial>`
  const serial = await root.conn.domainDefineXML(plainXml({ name: 'serial', devices }))
  await startsOnlyAfter(root, serial, virError('VIR_ERR_INTERNAL_ERROR', /line/), () => rm(path, { recursive: true }))
})

test('a VNC port that somebody else has', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const server = createServer()
  const port = await freePort()
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => server.close())
  const devices = `<graphics type='vnc' port='${port}' autoport='no' listen='127.0.0.1'/>`
  const dom = await root.conn.domainDefineXML(plainXml({ devices }))
  await startsOnlyAfter(root, dom, virError('VIR_ERR_INTERNAL_ERROR', /Address already in use/), async () => {
    server.close()
    await once(server, 'close')
  })
})

test('a transient domain that cannot start leaves no trace of itself', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const xml = plainXml({ name: 'gone', devices: diskXml('vda', '/nosuch/image.qcow2') })
  await assert.rejects(root.conn.domainCreateXML(xml), virError('VIR_ERR_SYSTEM_ERROR', /nosuch/))
  assert.deepEqual(await root.conn.listAllDomains(), [])
  await assert.rejects(root.conn.domainLookupByName('gone'), virError('VIR_ERR_NO_DOMAIN', /'gone'/))
  assertNothingRuns(root)
})

test('a root that is no folder, too long, or not absolute', async (t) => {
  const root = await testRoot(t)
  const file = join(root.folder, 'file')
  await writeFile(file, '')
  const openRoot = (path: string): Promise<Connect> => Connect.open(`qemu:///embed?root=${path}`)
  await assert.rejects(openRoot(file), virError('VIR_ERR_SYSTEM_ERROR', /cannot make the tree of root '.*file'/))
  await assert.rejects(
    openRoot('relative'),
    virError('VIR_ERR_INVALID_ARG', /must be an absolute path, not 'relative'/),
  )
  const long = join(root.folder, 'x'.repeat(100))
  await assert.rejects(openRoot(long), virError('VIR_ERR_INVALID_ARG', /is longer than \d+ bytes/))
  await assert.rejects(Connect.open('qemu:///embed'), virError('VIR_ERR_INVALID_ARG', /lacks 'root'/))
  await assert.rejects(openRoot(`${file}&rot=1`), virError('VIR_ERR_INVALID_ARG', /unknown parameter 'rot'/))
})
