/** A base that comes back at another place is given to the guest and to its stream while both are at work. */
import assert from 'node:assert/strict'
import { rm, writeFile } from 'node:fs/promises'
import { connect, createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import {
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_RUNNING,
  VIR_DOMAIN_XML_INACTIVE,
  VIR_STREAM_DISK_START,
  type Domain,
} from '../../src/index.js'
import {
  diskXml,
  plainXml,
  powerOff,
  reopen,
  startGuest,
  startPlain,
  testRoot,
  until,
  virError,
} from '../support/domain.js'
import { backingOf, emptyImage, overlay, patternImage } from '../support/images.js'
import { checkPattern } from '../support/pattern.js'
import { freePort } from '../support/ports.js'
import { requires } from '../support/requires.js'
import { assertStreamed, untilWaits } from '../support/streamed.js'
import { nbdUri, qemuNbd } from '../support/servers.js'

const MiB = 1024 * 1024
const programs = ['program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-nbd'] as const

/** An image behind qemu-nbd on a unix socket, another socket for later, and an overlay of it. */
async function images(t: TestContext) {
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 32 * MiB)
  const [here, there] = [{ path: join(root.folder, 'here.nbd') }, { path: join(root.folder, 'there.nbd') }]
  const server = await qemuNbd(t, base.path, here)
  const path = await overlay(root.folder, nbdUri(here))
  return { root, base, server, here, there, path }
}

const offsetOf = async (dom: Domain): Promise<number> => (await dom.streamDiskInfo())[0]?.offset ?? 0

for (const engine of ['job', 'pull'] as const) {
  test(`engine '${engine}': requests that wait for a base without end are answered from its new place`, async (t) => {
    if (!requires(t, ...programs)) return
    const { root, base, server, here, there, path } = await images(t)
    const { dom, guest } = await startGuest(t, root, { name: `moved-${engine}`, devices: diskXml('vda', path) })
    await guest.base('vda', base.seed, base.size)
    await guest.work('vda')
    const stream = await dom.stream('vda', { bandwidth: 2 * MiB, engine })
    await until('the stream moves', async () => (await offsetOf(dom)) > 1 * MiB)
    await server.kill()
    await untilWaits(dom)
    const reached = await offsetOf(dom)

    await assert.rejects(
      stream.setBase(nbdUri(there)),
      virError('VIR_ERR_OPERATION_FAILED', /does not answer: .*ENOENT/),
    )
    const small = await emptyImage(root.folder, 'raw', 16 * MiB)
    await assert.rejects(stream.setBase(small), virError('VIR_ERR_INVALID_ARG', /has 16777216 bytes, .* has 33554432$/))
    // as if the former server had been on another host: nobody can stand in for it
    await rm(here.path)
    await writeFile(here.path, '')
    await assert.rejects(
      stream.setBase(base.path),
      virError(
        'VIR_ERR_OPERATION_INVALID',
        /^requests wait for base '.*here\.nbd', and nobody can answer them .*EADDRINUSE/,
      ),
    )
    await rm(here.path)
    assert.match(await dom.getXMLDesc(), new RegExp(here.path))
    const second = await qemuNbd(t, base.path, there)
    await stream.setBase(nbdUri(there))
    assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)
    for (const flags of [0, VIR_DOMAIN_XML_INACTIVE]) {
      const xml = await dom.getXMLDesc(flags)
      assert.ok(xml.includes(there.path) && !xml.includes(here.path), xml)
    }
    await until('the stream moves again', async () => (await offsetOf(dom)) > reached)

    // and once more, from a server that answers to a file
    await stream.setBase(base.path)
    await second.kill()
    await stream.setBandwidth(0)
    await stream.finished
    const nodes = JSON.parse(await dom.qemuMonitorCommand('{"execute":"query-named-block-nodes"}')) as {
      return: { drv: string }[]
    }
    assert.deepEqual(
      nodes.return.filter(({ drv }) => ['nbd', 'quorum', 'raw'].includes(drv)),
      [],
    )
    await assertStreamed({ dom, guest, path, base })
  })
}

test('a base that went away while no process was there is known to be away, and another one is given', async (t) => {
  if (!requires(t, ...programs)) return
  const { root, base, server, path } = await images(t)
  const { dom, guest } = await startGuest(t, root, { name: 'moved-alone', devices: diskXml('vda', path) })
  await guest.base('vda', base.seed, base.size)
  await dom.stream('vda', { bandwidth: 2 * MiB, engine: 'job' })
  await until('the stream moves', async () => (await offsetOf(dom)) > 1 * MiB)
  await root.conn.close()
  await server.kill()
  await reopen(root)
  const again = await root.conn.domainLookupByName('moved-alone')
  assert.match((await untilWaits(again)).error ?? '', /^the base does not answer: /)
  await again.streamDiskSetBase('vda', base.path)
  await guest.command('ping')
  const stream = await again.attachStream('vda')
  await stream.setBandwidth(0)
  await stream.finished
  await assertStreamed({ dom: again, guest, path, base })
})

test('a guest that was paused for want of its base goes on with another one, also after its next start', async (t) => {
  if (!requires(t, ...programs)) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 32 * MiB)
  const at = { port: await freePort() }
  const server = await qemuNbd(t, base.path, at)
  const path = await overlay(root.folder, nbdUri(at))
  const extra = `<metadata><virstream:stream xmlns:virstream='urn:virstream:stream:1' disk='vda' bandwidth='1048576' baseTimeout='2'/></metadata>`
  const { dom, guest } = await startGuest(t, root, { name: 'moved-paused', devices: diskXml('vda', path), extra })
  await guest.base('vda', base.seed, base.size)
  await until('the stream moves', async () => (await offsetOf(dom)) > 0)
  await guest.work('vda')
  await server.kill()
  await until('the guest is paused', async () => (await dom.getState()).state === VIR_DOMAIN_PAUSED)
  const there = { path: join(root.folder, 'there.nbd') }
  await qemuNbd(t, base.path, there)
  await dom.streamDiskSetBase('vda', nbdUri(there))
  await dom.resume()
  const reached = await offsetOf(dom)
  await until('the stream moves again', async () => (await offsetOf(dom)) > reached)
  const { bad, errors } = await guest.stop()
  assert.deepEqual({ bad, errors }, { bad: 0, errors: 0 })
  assert.equal((await guest.verify('vda')).bad, 0)
  const digest = await guest.digest('vda')
  await powerOff(dom, guest)
  await until('the header names the new base', async () => (await backingOf(path)) === nbdUri(there))
  assert.equal((await checkPattern(path, 'qcow2', base.seed)).digest, digest)
  await dom.create()
  await until('the stream moves after the start', async () => (await offsetOf(dom)) > 0)
  await dom.destroy()
})

test('an image far down in the chain moves while a job streams', async (t) => {
  if (!requires(t, ...programs)) return
  const { root, base, server, there, path: mid } = await images(t)
  const path = await overlay(root.folder, mid, { name: 'top.qcow2', backingFormat: 'qcow2' })
  const dom = await startPlain(root, { name: 'moved-deep', devices: diskXml('vda', path) })
  const stream = await dom.stream('vda', { bandwidth: 1 * MiB, engine: 'job' })
  await qemuNbd(t, base.path, there)
  await stream.setBase(nbdUri(there))
  await server.kill()
  assert.equal((await stream.info())?.status, 'running')
  await stream.stop()
  await dom.destroy()
  // the image in the middle may be below other disks: only the definition changes
  assert.ok((await backingOf(mid))?.includes('here.nbd'))
  await dom.create()
  await (
    await dom.stream('vda')
  ).finished
  await dom.destroy()
  assert.equal((await checkPattern(path, 'qcow2', base.seed)).bad, 0)
})

test('a domain that does not run, streamed or not, gets another base', async (t) => {
  if (!requires(t, ...programs, 'program:qemu-storage-daemon')) return
  const { root, base, server, here, there, path } = await images(t)
  const dom = await root.conn.domainDefineXML(plainXml({ name: 'moved-off', devices: diskXml('vda', path) }))
  const stream = await dom.stream('vda', { bandwidth: 1 * MiB })
  await until('the stream moves', async () => (await offsetOf(dom)) > 0)
  await server.kill()
  await untilWaits(dom)
  await qemuNbd(t, base.path, there)
  await stream.setBase(nbdUri(there))
  const reached = await offsetOf(dom)
  await until('the stream moves again', async () => (await offsetOf(dom)) > reached)
  await stream.stop()
  await until('the header names the new base', async () => (await backingOf(path)) === nbdUri(there))

  await dom.streamDiskSetBase('vda', base.path)
  assert.equal(await backingOf(path), base.path)
  assert.ok(!(await dom.getXMLDesc()).includes(here.path))
  await (
    await dom.stream('vda')
  ).finished
  const { bad } = await checkPattern(path, 'qcow2', base.seed)
  assert.equal(bad, 0)
  assert.equal(await backingOf(path), undefined)
})

/** A socket behind which is another one, for whoever waits until `gate` lets the bytes through. */
function relay(t: TestContext, path: string, target: string, gate: () => Promise<unknown>): void {
  const carry = async (from: Socket, to: Socket): Promise<void> => {
    for await (const chunk of from) {
      await gate()
      to.write(chunk as Buffer)
    }
    to.end()
  }
  const server = createServer((near) => {
    const far = connect(target)
    for (const socket of [near, far]) socket.on('error', () => undefined)
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const)
      carry(from, to).catch(() => to.destroy())
  }).listen(path)
  t.after(() => server.close())
}

test('a stream that ends while the new place of another disk is asked does not take the guest along', async (t) => {
  if (!requires(t, ...programs)) return
  const { root, base, here, there, path } = await images(t)
  await qemuNbd(t, base.path, there)
  const [held, slow] = [{ path: join(root.folder, 'held.nbd') }, { path: join(root.folder, 'slow.nbd') }]
  let gate: Promise<unknown> = Promise.resolve()
  relay(t, held.path, here.path, () => gate)
  const other = await overlay(root.folder, nbdUri(held), { name: 'other.qcow2' })
  const devices = `${diskXml('vda', other)}${diskXml('vdb', path)}`
  const dom = await startPlain(root, { name: 'moved-meanwhile', devices })
  let open = (): void => undefined
  gate = new Promise<void>((resolve) => (open = resolve))
  await dom.streamDisk('vda', 0, VIR_STREAM_DISK_START, { engine: 'job' })
  // the new place answers when the stream of the other disk has ended, which nobody settles before this call is over
  const ended = (): Promise<void> => {
    open()
    return until('the other disk has no base', async () => (await backingOf(other)) === undefined)
  }
  relay(t, slow.path, there.path, ended)
  await assert.rejects(
    dom.streamDiskSetBase('vdb', nbdUri(slow)),
    virError('VIR_ERR_OPERATION_INVALID', /^a stream of the domain is just about to end$/),
  )
  await until('that stream is settled', async () => (await dom.streamDiskInfo()).length === 0)
  await dom.streamDiskSetBase('vdb', nbdUri(there))
  assert.ok((await dom.getXMLDesc()).includes(there.path))
  await dom.destroy()
})
