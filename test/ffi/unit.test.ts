/** Streams of domains that a libvirtd has: units through QEMU's monitor, and what a process that died leaves behind. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { join } from 'node:path'
import { test } from 'node:test'
import type { TestContext } from 'node:test'
import * as c from '../../src/index.js'
import { Connect } from '../../src/index.js'
import type { Domain } from '../../src/index.js'
import { diskXml, plainXml, testRoot, until, virError } from '../support/domain.js'
import { checkImage, overlay, patternImage } from '../support/images.js'
import { run } from '../../src/util/run.js'
import { daemonFor } from './support.js'

const MiB = 1024 * 1024

async function startDomain(t: TestContext): Promise<
  | {
      conn: Connect
      dom: Domain
      uri: string
      top: string
      base: string
      folder: string
      virsh: (...args: string[]) => Promise<string>
    }
  | undefined
> {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return undefined
  const { folder, uri, virsh } = daemon
  const base = await patternImage(folder, 8 * MiB)
  const top = await overlay(folder, base.path)
  const conn = await Connect.open(uri)
  const dom = await conn.domainDefineXML(plainXml({ name: 'units', devices: diskXml('vda', top) }))
  t.after(async () => {
    await dom.destroy().catch(() => undefined)
    await conn.close()
  })
  await dom.create(c.VIR_DOMAIN_START_PAUSED)
  return { conn, dom, uri, top, base: base.path, folder, virsh }
}

interface Answer {
  return: unknown
}
const monitor = async (dom: Domain, execute: string, args: object = {}): Promise<unknown> =>
  (JSON.parse(await dom.qemuMonitorCommand(JSON.stringify({ execute, arguments: args }))) as Answer).return

test('unit by unit QEMU copies, libvirt is not confused, and at the end its own job drops the link', async (t) => {
  const started = await startDomain(t)
  if (started === undefined) return
  const { dom, top, base, virsh } = started
  assert.equal(await dom.streamDisk(top, 0, c.VIR_STREAM_DISK_ONE, { unit: MiB }), MiB)
  assert.deepEqual(await monitor(dom, 'query-block-exports'), [])
  assert.match(await virsh('domblkinfo', 'units', 'vda'), /Capacity:\s+8388608/)
  assert.match(await dom.getXMLDesc(), /<backingStore type/)
  let offset = MiB
  for (let calls = 0; offset < 8 * MiB && calls < 16; calls++)
    offset = await dom.streamDisk('virtio-disk0', offset, c.VIR_STREAM_DISK_ONE, { unit: MiB })
  assert.equal(offset, 8 * MiB)
  assert.doesNotMatch(await virsh('dumpxml', 'units'), /<backingStore type/)
  await dom.destroy()
  await checkImage(top)
  await run('qemu-img', ['compare', '-q', '-f', 'qcow2', '-F', 'raw', top, base])
})

test('an export that a killed process left is cleaned up, one of somebody else is left alone', async (t) => {
  const started = await startDomain(t)
  if (started === undefined) return
  const { dom, uri, folder } = started
  // it dies with the export in place
  const script = `
    const { Connect } = await import('${new URL('../../src/index.js', import.meta.url).href}')
    const { NbdClient } = await import('${new URL('../../src/nbd/client.js', import.meta.url).href}')
    NbdClient.prototype.cache = () => process.kill(process.pid, 'SIGKILL')
    const conn = await Connect.open('${uri}')
    await (await conn.domainLookupByName('units')).streamDisk('vda', 0, 1)`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: 'inherit' })
  const [, signal] = (await once(child, 'exit')) as [number | null, string | null]
  assert.equal(signal, 'SIGKILL')
  assert.equal(((await monitor(dom, 'query-block-exports')) as unknown[]).length, 1)
  assert.equal(await dom.streamDisk('vda', 0, c.VIR_STREAM_DISK_ONE, { unit: MiB }), MiB)
  assert.deepEqual(await monitor(dom, 'query-block-exports'), [])

  const [block] = (await monitor(dom, 'query-block')) as { inserted: { 'node-name': string } }[]
  const path = join(folder, 'theirs')
  await monitor(dom, 'nbd-server-start', { addr: { type: 'unix', data: { path } } })
  const node = block?.inserted['node-name']
  await monitor(dom, 'block-export-add', { type: 'nbd', id: 'theirs', 'node-name': node, name: 'theirs' })
  await assert.rejects(
    dom.streamDisk('vda', MiB, c.VIR_STREAM_DISK_ONE),
    virError('VIR_ERR_OPERATION_INVALID', /'theirs'/),
  )
  assert.equal(((await monitor(dom, 'query-block-exports')) as unknown[]).length, 1)
})

test('what libvirt cannot do is said, with the reason', async (t) => {
  const started = await startDomain(t)
  if (started === undefined) return
  const { dom } = started
  const impossible = [
    { policy: 'idle' },
    { engine: 'pull' },
    { onShutdown: 'continue' },
    { weight: 2 },
    { baseTimeout: 5 },
  ] as const
  for (const options of impossible)
    await assert.rejects(
      dom.streamDisk('vda', 0, c.VIR_STREAM_DISK_START, options),
      virError('VIR_ERR_OPERATION_UNSUPPORTED', /not possible on a domain of libvirt/),
    )
  await dom.destroy()
  await assert.rejects(
    dom.streamDisk('vda', 0, c.VIR_STREAM_DISK_START),
    virError('VIR_ERR_OPERATION_UNSUPPORTED', /domain is not running: libvirt streams .* in a root of this host/),
  )
})

test('a disk of a domain that does not run is streamed by a root beside libvirtd, which keeps off it meanwhile', async (t) => {
  const started = await startDomain(t)
  if (started === undefined) return
  const { dom, top, base, virsh } = started
  await dom.destroy()
  const root = await testRoot(t)
  const own = await root.conn.domainDefineXML(await dom.getXMLDesc(c.VIR_DOMAIN_XML_INACTIVE))
  const stream = await own.stream('vda', { bandwidth: 4096 })
  await assert.rejects(dom.create(), /lock/)
  assert.match(await virsh('domstate', 'units'), /shut off/)
  await own.blockJobSetSpeed('vda', 0)
  await stream.finished
  await until('the image is free', async () => (await own.streamDiskInfo()).length === 0)
  await own.undefine()
  await dom.create(c.VIR_DOMAIN_START_PAUSED)
  assert.doesNotMatch(await dom.getXMLDesc(), /<backingStore type/)
  await dom.destroy()
  await checkImage(top)
  await run('qemu-img', ['compare', '-q', '-f', 'qcow2', '-F', 'raw', top, base])
})
