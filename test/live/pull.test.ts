import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { VIR_STREAM_DISK_ONE, VIR_STREAM_DISK_START, VIR_STREAM_DISK_STOP, type Domain } from '../../src/index.js'
import { run } from '../../src/util/run.js'
import { diskXml, guestXml, reopen, startGuest, startPlain, testRoot, until, type TestRoot } from '../support/domain.js'
import type { Guest } from '../support/guest.js'
import { backingOf, checkImage, overlay, patternImage, type PatternImage } from '../support/images.js'
import { startNbdkit } from '../support/nbd-server.js'
import { checkPattern } from '../support/pattern.js'
import { requires } from '../support/requires.js'
import { httpFile } from '../support/servers.js'
import { assertRight, assertStreamed } from '../support/streamed.js'

const MiB = 1024 * 1024

interface Stage {
  root: TestRoot
  base: PatternImage
  path: string
  dom: Domain
  guest: Guest
}

/** A guest at work on an overlay of a base that an NBD server serves, each read delayed. */
async function stage(
  t: TestContext,
  size: number,
  delayMs: number,
  devices = (path: string) => diskXml('vda', path),
): Promise<Stage> {
  const root = await testRoot(t)
  const base = await patternImage(root.folder, size)
  const server = await startNbdkit(t, {
    plugin: ['file', base.path],
    filters: ['delay'],
    parameters: [`rdelay=${delayMs}ms`],
    socket: `${root.folder}/base.sock`,
  })
  const path = await overlay(root.folder, server.uri, { size })
  const { dom, guest } = await startGuest(t, root, { devices: devices(path) })
  await guest.base('vda', base.seed, base.size)
  return { root, base, path, dom, guest }
}

async function assertWhole(stage: Stage): Promise<void> {
  await assertStreamed(stage)
  await checkImage(stage.path)
}

test('a remote base is pulled by parallel requests while the guest writes, and nothing but the image is left', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:nbdkit')) return
  const s = await stage(t, 64 * MiB, 5)
  await s.guest.work('vda')
  const stream = await s.dom.stream('vda', { bandwidth: MiB })
  const [state] = await s.dom.streamDiskInfo()
  assert.equal(state?.engine, 'pull')
  assert.ok(state.offset < state.size, 'not complete while the link is there')
  await stream.setBandwidth(0)
  await stream.finished
  assert.equal(await backingOf(s.path), undefined)
  assert.match(await s.dom.getXMLDesc(0), /<backingStore\/>/)
  await assertWhole(s)
})

test('a pull is stopped at once, keeps what it has, obeys a bandwidth, and goes on', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:nbdkit')) return
  const s = await stage(t, 32 * MiB, 1)
  await s.dom.streamDisk('vda', 0, VIR_STREAM_DISK_START, { bandwidth: 2 * MiB })
  await until('some of it is there', async () => ((await s.dom.streamDiskInfo())[0]?.offset ?? 0) > 4 * MiB)
  await s.dom.streamDisk('vda', 0, VIR_STREAM_DISK_STOP)
  assert.deepEqual(await s.dom.streamDiskInfo(), [])
  assert.notEqual(await backingOf(s.path), undefined)
  const { stdout } = await run('qemu-img', ['map', '-U', '--output=json', s.path], { timeout: 10_000 })
  const kept = (JSON.parse(stdout) as { depth: number; length: number }[]).filter((extent) => extent.depth === 0)
  assert.ok(kept.reduce((sum, extent) => sum + extent.length, 0) >= 4 * MiB, 'what was pulled is on disk')
  const stream = await s.dom.stream('vda', { bandwidth: 1 })
  await stream.setBandwidth(0)
  await stream.finished
  await assertWhole(s)
})

test('a pull goes on when the root is opened again', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:nbdkit')) return
  const s = await stage(t, 32 * MiB, 1)
  await s.guest.work('vda')
  await s.dom.streamDisk('vda', 0, VIR_STREAM_DISK_START, { bandwidth: MiB })
  let reached = 0
  const offset = async (): Promise<number> => (await s.dom.streamDiskInfo())[0]?.offset ?? 0
  await until('it has begun', async () => (reached = await offset()) > 0)
  await reopen(s.root)
  s.dom = await s.root.conn.domainLookupByName('guest')
  assert.ok((await offset()) >= reached, 'it did not go back')
  const stream = await s.dom.attachStream('vda')
  await stream.setBandwidth(0)
  await stream.finished
  assert.equal(await backingOf(s.path), undefined)
  await assertWhole(s)
})

for (const engine of ['pull', 'job'] as const)
  test(`a base that stays in the chain: engine '${engine}' streams down to it`, async (t) => {
    if (!requires(t, 'program:qemu-system-x86_64')) return
    const root = await testRoot(t)
    const base = await patternImage(root.folder, 16 * MiB)
    const middle = await overlay(root.folder, base.path, { name: 'middle.qcow2' })
    await run('qemu-io', ['-f', 'qcow2', '-c', 'write -P 7 4M 1M', middle], { timeout: 10_000 })
    const path = await overlay(root.folder, middle, { name: 'top.qcow2', backingFormat: 'qcow2' })
    const { dom } = await startGuest(t, root, { devices: diskXml('vda', path) })
    await (
      await dom.stream('vda', { base: base.path, engine })
    ).finished
    assert.equal(await backingOf(path), base.path)
    await run('qemu-io', ['-U', '-f', 'qcow2', '-r', '-c', 'read -P 7 4M 1M', path], { timeout: 10_000 })
    await (
      await dom.stream('vda', { engine })
    ).finished
    assert.equal(await backingOf(path), undefined)
  })

test('unit after unit until the size comes back and the link is gone, across a reset, with the guest at work', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:nbdkit')) return
  const s = await stage(t, 16 * MiB, 0)
  await s.guest.work('vda')
  const units: number[] = []
  s.root.conn.on('stream-unit', (event) => units.push(event.offset))
  let offset = 0
  while (offset < 16 * MiB) {
    const next = await s.dom.streamDisk('vda', offset, VIR_STREAM_DISK_ONE, { unit: 1 * MiB })
    assert.ok(next > offset, `${next} comes after ${offset}`)
    offset = next
  }
  assert.equal(offset, 16 * MiB)
  assert.ok(units.length > 0)
  assert.equal(await backingOf(s.path), undefined)
  await assertWhole(s)
})

test('a definition asks in its metadata for a stream from the start, and gets it at each start until it is done', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 16 * MiB)
  const path = await overlay(root.folder, base.path)
  const metadata = (bandwidth: string) =>
    `<metadata><v:stream xmlns:v='urn:virstream:stream:1' disk='vda' bandwidth='${bandwidth}'/></metadata>`
  const options = (bandwidth: string) => ({ devices: diskXml('vda', path), extra: metadata(bandwidth) })
  const define = async (bandwidth: string) => root.conn.domainDefineXML(await guestXml(root.folder, options(bandwidth)))
  await assert.rejects(define('fast'), /'fast' is not a bandwidth/)
  const { dom } = await startGuest(t, root, options('65536'))
  await until('it streams', async () => (await dom.streamDiskInfo()).length === 1)
  assert.equal((await dom.streamDiskInfo())[0]?.bandwidth, 65_536)
  await dom.destroy()
  assert.notEqual(await backingOf(path), undefined)
  await dom.create()
  await until('it streams again', async () => (await dom.streamDiskInfo()).length === 1)
  const stream = await dom.attachStream('vda')
  await stream.setBandwidth(0)
  await stream.finished
  await dom.destroy()
  await dom.create()
  assert.deepEqual(await dom.streamDiskInfo(), [])
})

for (const engine of ['pull', 'job'] as const)
  test(`policy 'idle': engine '${engine}' rests while the guest works on its disk, and runs when it is quiet`, async (t) => {
    if (!requires(t, 'program:qemu-system-x86_64')) return
    const root = await testRoot(t)
    const base = await patternImage(root.folder, 64 * MiB)
    const path = await overlay(root.folder, base.path)
    const { dom, guest } = await startGuest(t, root, { devices: diskXml('vda', path) })
    await guest.base('vda', base.seed, base.size)
    await guest.work('vda')
    await until('the guest works', async () => (await guest.stat()).reads > 5)
    const stream = await dom.stream('vda', { policy: 'idle', engine, bandwidth: 8 * MiB })
    // a machine that is busy, too, may keep the guest from its disk for a moment, in which the stream runs
    const look = async (): Promise<{ offset: number | undefined; reads: number }> => ({
      offset: (await stream.info())?.offset,
      reads: (await guest.stat()).reads,
    })
    await until('the guest works while the stream stands still', async () => {
      const before = await look()
      await delay(500)
      const after = await look()
      assert.ok(before.offset !== undefined && after.offset !== undefined, 'it is at its end, as without a guest')
      return after.offset === before.offset && after.reads > before.reads
    })
    await stream.setBandwidth(0)
    await guest.stop()
    await stream.finished
    assert.equal(await backingOf(path), undefined)
    assert.equal((await guest.verify('vda')).bad, 0)
  })

test('a stream over HTTP that the server cannot answer so many requests at once for is left to the job of QEMU', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'file:/usr/lib/x86_64-linux-gnu/qemu/block-curl.so')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 16 * MiB)
  const path = await overlay(root.folder, await httpFile(t, base.path, { atOnce: 1 }))
  const dom = await startPlain(root, { devices: diskXml('vda', path) })
  const stream = await dom.stream('vda')
  assert.equal((await stream.info())?.engine, 'pull')
  await until('it is left to the job', async () => (await stream.info())?.engine !== 'pull')
  await stream.finished
  assert.equal(await backingOf(path), undefined)
  await dom.destroy()
  assert.equal((await checkPattern(path, 'qcow2', base.seed, base.size)).bad, 0)
})

test('a stream over HTTP that is stopped in the middle leaves neither request nor export', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'file:/usr/lib/x86_64-linux-gnu/qemu/block-curl.so')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 32 * MiB)
  const path = await overlay(root.folder, await httpFile(t, base.path))
  const { dom, guest } = await startGuest(t, root, { devices: diskXml('vda', path) })
  await guest.base('vda', base.seed, base.size)
  await guest.work('vda')
  for (let times = 0; times < 3; times++) {
    const stream = await dom.stream('vda', { bandwidth: 2 * MiB })
    await until('some of it is there', async () => ((await stream.info())?.offset ?? 0) > 0)
    await stream.stop()
    const answer = await dom.qemuMonitorCommand('{"execute":"query-block-exports"}')
    assert.deepEqual((JSON.parse(answer) as { return: unknown[] }).return, [])
  }
  await (
    await dom.stream('vda')
  ).finished
  await assertRight(guest)
})
