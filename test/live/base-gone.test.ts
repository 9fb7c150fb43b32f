/** The server of the base goes away in mid-stream: for some seconds, and for good. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { test, type TestContext } from 'node:test'
import {
  VIR_DOMAIN_RUNNING,
  VIR_DOMAIN_SHUTOFF_DESTROYED,
  VIR_STREAM_DISK_STOP,
  type Domain,
  type StreamDiskState,
} from '../../src/index.js'
import { assertNothingRuns, diskXml, startGuest, testRoot, until, virError } from '../support/domain.js'
import { backingOf, checkImage, overlay, patternImage } from '../support/images.js'
import { BLOCK_SIZE, checkPattern } from '../support/pattern.js'
import { requires } from '../support/requires.js'
import { assertStreamed, untilWaits } from '../support/streamed.js'
import { nbdUri, qemuNbd } from '../support/servers.js'

const MiB = 1024 * 1024

/** A guest on an overlay of a base behind qemu-nbd. */
async function setUp(t: TestContext, name: string) {
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 48 * MiB)
  const at = { path: join(root.folder, 'base.nbd') }
  const server = await qemuNbd(t, base.path, at)
  const path = await overlay(root.folder, nbdUri(at))
  const { dom, guest } = await startGuest(t, root, { name, devices: diskXml('vda', path) })
  await guest.base('vda', base.seed, base.size)
  return { root, base, server, path, dom, guest }
}

const stateOf = async (dom: Domain): Promise<StreamDiskState | undefined> => (await dom.streamDiskInfo())[0]

for (const engine of ['job', 'pull'] as const) {
  test(`engine '${engine}': a base that is gone for five seconds is waited for, and nothing is wrong`, async (t) => {
    if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-nbd')) return
    const { base, server, path, dom, guest } = await setUp(t, `away-${engine}`)
    await guest.work('vda', 'slowly')
    const stream = await dom.stream('vda', { bandwidth: 2 * MiB, engine })
    await until('the stream moves', async () => ((await stateOf(dom))?.offset ?? 0) > MiB)
    await server.kill()
    const gone = performance.now()
    const waiting = await untilWaits(dom)
    assert.match(waiting.error ?? '', /the base does not answer: .*(ENOENT|ECONNREFUSED)/)
    assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)
    await delay(Math.max(0, 5_000 - (performance.now() - gone)))
    // what it has not asked the base for goes on
    await guest.command('ping')

    await server.start()
    const reached = waiting.offset
    await until('the stream moves again', async () => ((await stateOf(dom))?.offset ?? Infinity) > reached)
    await stream.setBandwidth(0)
    await stream.finished
    await assertStreamed({ dom, guest, path, base })
  })
}

test('a base that is gone for good: a stop says why it waits, the domain can be destroyed and started later', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-nbd')) return
  const { root, base, server, path, dom, guest } = await setUp(t, 'lost')
  await guest.command('write vda 5')
  await dom.stream('vda', { bandwidth: 2 * MiB, engine: 'job' })
  await until('the stream moves', async () => ((await stateOf(dom))?.offset ?? 0) > MiB)
  await server.kill()
  await untilWaits(dom)
  const late = virError(
    'VIR_ERR_OPERATION_TIMEOUT',
    /the stream of disk 'vda' stops as soon as .* \(the base does not answer/,
  )
  await assert.rejects(dom.streamDisk('vda', 0, VIR_STREAM_DISK_STOP), late)

  guest[Symbol.dispose]()
  await dom.destroy()
  assert.equal((await dom.getState()).reason, VIR_DOMAIN_SHUTOFF_DESTROYED)
  assertNothingRuns(root)

  await server.start()
  await checkImage(path)
  await dom.create()
  await (
    await dom.stream('vda')
  ).finished
  await dom.destroy()
  assert.equal(await backingOf(path), undefined)
  const report = await checkPattern(path, 'qcow2', base.seed)
  assert.equal(report.bad, 0)
  assert.ok(report.written <= 1 && report.base + report.written === base.size / BLOCK_SIZE)
})

test('a base that is gone for good: a pull is stopped at once, and a new stream is refused by name', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img', 'program:qemu-nbd')) return
  const { root, server, path, dom } = await setUp(t, 'pulled')
  await dom.stream('vda', { bandwidth: 2 * MiB, engine: 'pull' })
  await until('the stream moves', async () => ((await stateOf(dom))?.offset ?? 0) > MiB)
  await server.kill()
  await untilWaits(dom)
  await dom.streamDisk('vda', 0, VIR_STREAM_DISK_STOP)
  const away = virError('VIR_ERR_OPERATION_FAILED', /^base '.*base\.nbd.*' of disk 'vda' does not answer: /)
  await assert.rejects(dom.stream('vda'), away)
  await assert.rejects(dom.blockPull('vda'), away)
  assert.deepEqual(await dom.streamDiskInfo(), [])
  await server.start()
  await (
    await dom.stream('vda')
  ).finished
  assert.equal(await backingOf(path), undefined)
  await dom.destroy()
  assertNothingRuns(root)
})
