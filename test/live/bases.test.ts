/** Where the missing blocks come from, and how much of the chain a stream takes in. */
import assert from 'node:assert/strict'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { VIR_DOMAIN_XML_INACTIVE } from '../../src/index.js'
import { run } from '../../src/util/run.js'
import { diskXml, powerOff, startGuest, startPlain, testRoot, virError } from '../support/domain.js'
import { backingOf, checkImage, overlay, ownBytes, patternImage } from '../support/images.js'
import { BLOCK_SIZE, checkPattern } from '../support/pattern.js'
import { freePort } from '../support/ports.js'
import { requires, type Requirement } from '../support/requires.js'
import { httpFile, nbdkit, nbdUri, qemuNbd } from '../support/servers.js'
import { assertRight } from '../support/streamed.js'

const MiB = 1024 * 1024

interface Remote {
  /** starts the server of `image` and answers how an overlay names it */
  serve: (t: TestContext, folder: string, image: string) => Promise<string>
  needs: Requirement[]
}

const remotes: Record<string, Remote> = {
  'qemu-nbd on a unix socket': {
    needs: ['program:qemu-nbd'],
    async serve(t, folder, image) {
      const at = { path: join(folder, 'base.nbd') }
      await qemuNbd(t, image, at)
      return nbdUri(at)
    },
  },
  'qemu-nbd on TCP': {
    needs: ['program:qemu-nbd'],
    async serve(t, _folder, image) {
      const at = { port: await freePort() }
      await qemuNbd(t, image, at)
      return nbdUri(at)
    },
  },
  'nbdkit on a unix socket': {
    needs: ['program:nbdkit'],
    async serve(t, folder, image) {
      const path = join(folder, 'base.nbd')
      await nbdkit(t, path, ['file', image])
      return nbdUri({ path }, '')
    },
  },
  HTTP: {
    needs: ['file:/usr/lib/x86_64-linux-gnu/qemu/block-curl.so'],
    serve: (t, _folder, image) => httpFile(t, image),
  },
}

for (const [name, { serve, needs }] of Object.entries(remotes)) {
  test(`a base behind ${name} is streamed while the guest works on it`, async (t) => {
    if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', ...needs)) return
    const root = await testRoot(t)
    const base = await patternImage(root.folder, 32 * MiB)
    const backing = await serve(t, root.folder, base.path)
    const path = await overlay(root.folder, backing)
    const { dom, guest } = await startGuest(t, root, { devices: diskXml('vda', path) })
    assert.match(await dom.getXMLDesc(0), /<backingStore type='network'/)
    await guest.base('vda', base.seed, base.size)
    await guest.work('vda')
    const stream = await dom.stream('vda', { bandwidth: 32 * MiB })
    await stream.finished
    assert.equal(await backingOf(path), undefined)
    const nodes = JSON.parse(await dom.qemuMonitorCommand('{"execute":"query-named-block-nodes"}')) as {
      return: { drv: string }[]
    }
    assert.deepEqual(
      nodes.return.filter(({ drv }) => ['nbd', 'http', 'quorum', 'raw'].includes(drv)),
      [],
    )
    await assertRight(guest)
    await powerOff(dom, guest)
    await checkImage(path)
  })
}

/** top.qcow2 → mid.qcow2 → low.qcow2 → base, and the domain that has it as its disk; `full`: low holds all itself */
async function chain(t: TestContext, full = false) {
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 16 * MiB)
  const low = await overlay(root.folder, base.path, { name: 'low.qcow2' })
  if (full) {
    await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', base.path, low])
    await run('qemu-img', ['rebase', '-u', '-f', 'qcow2', '-b', base.path, '-F', 'raw', low])
  }
  const mid = await overlay(root.folder, low, { name: 'mid.qcow2', backingFormat: 'qcow2' })
  const top = await overlay(root.folder, mid, { name: 'top.qcow2', backingFormat: 'qcow2' })
  const dom = await startPlain(root, { name: 'chain', devices: diskXml('vda', top) })
  return { root, base, low, mid, top, dom }
}

test('a stream down to a base takes in what lies above it, a later one all the rest', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { base, low, mid, top, dom } = await chain(t)
  await assert.rejects(
    dom.stream('vda', { base: '/nosuch.qcow2' }),
    virError('VIR_ERR_INVALID_ARG', /could not find image '\/nosuch.qcow2' beneath '.*top.qcow2' in chain for 'vda'/),
  )
  await assert.rejects(dom.stream('vda', { base: top }), virError('VIR_ERR_INVALID_ARG', /could not find image/))

  await (
    await dom.stream('vda', { base: low })
  ).finished
  assert.equal(await backingOf(top), low)
  const live = await dom.getXMLDesc(0)
  assert.ok(!live.includes(mid) && live.includes(low) && live.includes(base.path), live)

  await (
    await dom.stream('vda', { base: base.path })
  ).finished
  assert.equal(await backingOf(top), base.path)
  assert.ok(!(await dom.getXMLDesc(0)).includes(low))

  await (
    await dom.stream('vda')
  ).finished
  assert.equal(await backingOf(top), undefined)
  assert.match(await dom.getXMLDesc(0), /<backingStore\/>/)
  assert.doesNotMatch(await dom.getXMLDesc(VIR_DOMAIN_XML_INACTIVE), /<backingStore type/)
  await dom.destroy()
  for (const path of [base.path, low, mid]) await rm(path)
  await checkImage(top)
  const { bad, base: right } = await checkPattern(top, 'qcow2', base.seed)
  assert.deepEqual({ bad, right }, { bad: 0, right: base.size / BLOCK_SIZE })
  await dom.create()
  assert.equal(await dom.isActive(), true)
})

test('a stream that has just ended by itself can be stopped', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { low, top, dom } = await chain(t)
  for (let i = 0; i < 5; i++) {
    await dom.blockRebase('vda', low)
    await dom.blockJobAbort('vda').catch((error: unknown) => {
      assert.match(String(error), /disk 'vda' does not have an active block job/)
    })
    assert.deepEqual(await dom.streamDiskInfo(), [])
  }
  const backing = (await backingOf(top)) ?? ''
  assert.ok((await dom.getXMLDesc(0)).includes(`<source file='${backing}'/>`), backing)
})

test('blockRebase down to a base that is stopped leaves the chain whole, and the full stream takes over', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const { base, mid, low, top, dom } = await chain(t, true)
  await dom.blockRebase('vda', base.path, 1)
  await dom.blockJobAbort('vda')
  assert.equal(await backingOf(top), mid)
  const xml = await dom.getXMLDesc(0)
  for (const path of [mid, low, base.path]) assert.ok(xml.includes(`'${path}'`), path)
  await (
    await dom.stream('vda')
  ).finished
  assert.equal(await backingOf(top), undefined)
  await dom.destroy()
  assert.equal((await checkPattern(top, 'qcow2', base.seed)).bad, 0)
})

test('a QED overlay is streamed', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 32 * MiB)
  const path = await overlay(root.folder, base.path, { format: 'qed' })
  const { dom, guest } = await startGuest(t, root, { name: 'qed', devices: diskXml('vda', path, { format: 'qed' }) })
  await guest.base('vda', base.seed, base.size)
  await guest.work('vda')
  await (
    await dom.stream('vda', { bandwidth: 32 * MiB })
  ).finished
  assert.equal(await backingOf(path), undefined)
  await guest.stop()
  assert.equal((await guest.verify('vda')).bad, 0)
  const digest = await guest.digest('vda')
  await powerOff(dom, guest)
  await checkImage(path, 'qed')
  assert.equal((await checkPattern(path, 'qed', base.seed)).digest, digest)
})

test('an overlay larger than its base reads zeros behind the end of it, also when it is streamed', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 16 * MiB)
  const path = await overlay(root.folder, base.path, { size: 40 * MiB })
  const { dom, guest } = await startGuest(t, root, { name: 'larger', devices: diskXml('vda', path) })
  await guest.base('vda', base.seed, base.size)
  await guest.work('vda')
  const stream = await dom.stream('vda', { bandwidth: 1 })
  assert.equal((await stream.info())?.size, 40 * MiB)
  await stream.setBandwidth(0)
  await stream.finished
  await guest.stop()
  assert.equal((await guest.verify('vda')).bad, 0)
  await powerOff(dom, guest)
  assert.equal(await backingOf(path), undefined)
  const report = await checkPattern(path, 'qcow2', base.seed, base.size)
  assert.deepEqual([report.bad, report.blocks], [0, (40 * MiB) / BLOCK_SIZE])
  assert.ok((await ownBytes(path)) >= base.size)
})
