import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import type { DomainEvent, StreamDiskState } from '../../src/index.js'
import { Connect, VIR_DOMAIN_BLOCK_JOB_COMPLETED, VIR_STREAM_DISK_STOP } from '../../src/index.js'
import type { Domain } from '../../src/index.js'
import { ref, scripted } from './scripted-driver.js'

/** bytes/s that keep the test driver's 64 MiB busy for half a minute */
const SLOW = 2 * 1024 * 1024

async function testDomain(t: { after: (hook: () => Promise<void>) => void }): Promise<{ conn: Connect; dom: Domain }> {
  const conn = await Connect.open('test:///default')
  t.after(() => conn.close())
  return { conn, dom: await conn.domainLookupByName('test') }
}

test('a stream tells its positions, which only grow, and ends with all of them copied', async (t) => {
  const { dom } = await testDomain(t)
  const stream = await dom.stream('vda')
  const offsets: number[] = []
  for await (const { offset, size } of stream) {
    offsets.push(offset)
    assert.equal(size, 64 * 1024 * 1024)
  }
  await stream.finished
  assert.deepEqual(
    offsets,
    offsets.toSorted((a, b) => a - b),
  )
  assert.equal(offsets.at(-1), 64 * 1024 * 1024)
  assert.equal(await stream.info(), undefined)
  assert.match(await dom.getXMLDesc(), /<backingStore\/>/)
})

test('a disk may be named by target, alias or source path, and the stream has its target', async (t) => {
  const { dom } = await testDomain(t)
  for (const name of ['vda', 'virtio-disk0', '/guest/diskimage1']) {
    const stream = await dom.stream(name, { bandwidth: SLOW })
    assert.equal(stream.disk, 'vda')
    assert.equal((await stream.info())?.path, 'virtio-disk0')
    await stream.stop()
    await assert.rejects(stream.finished, { code: 'VIR_ERR_OPERATION_ABORTED', message: /was stopped/ })
  }
})

test('a stream that nobody awaits may fail without an unhandled rejection', async (t) => {
  const { dom } = await testDomain(t)
  const unhandled: unknown[] = []
  const listener = (reason: unknown): void => void unhandled.push(reason)
  process.on('unhandledRejection', listener)
  t.after(() => void process.off('unhandledRejection', listener))
  const stream = await dom.stream('vda', { bandwidth: SLOW })
  await stream.stop()
  await delay(20)
  assert.deepEqual(unhandled, [])
})

test('iteration throws what `finished` rejects with', async (t) => {
  const { dom } = await testDomain(t)
  const stream = await dom.stream('vda', { bandwidth: SLOW })
  const iterating = (async () => {
    for await (const { offset } of stream) assert.ok(offset >= 0)
  })()
  await dom.streamDisk('vda', 0, VIR_STREAM_DISK_STOP)
  await assert.rejects(iterating, { code: 'VIR_ERR_OPERATION_ABORTED' })
})

test('a stream that ends with its domain is aborted', async (t) => {
  const { dom } = await testDomain(t)
  const stream = await dom.stream('vda', { bandwidth: SLOW })
  await dom.destroy()
  await assert.rejects(stream.finished, { code: 'VIR_ERR_OPERATION_ABORTED' })
})

test('a signal stops the stream', async (t) => {
  const { dom } = await testDomain(t)
  const abort = new AbortController()
  const stream = await dom.stream('vda', { bandwidth: SLOW, signal: abort.signal })
  abort.abort()
  await assert.rejects(stream.finished, { code: 'VIR_ERR_OPERATION_ABORTED' })
  assert.deepEqual(await dom.streamDiskInfo(), [])
})

test('setBandwidth changes the limit of the running stream', async (t) => {
  const { dom } = await testDomain(t)
  const stream = await dom.stream('vda', { bandwidth: 1 })
  assert.equal((await stream.info())?.bandwidth, 1)
  await stream.setBandwidth(0)
  await stream.finished
})

test('a handle that is let go of leaves the stream running, and another one can take over', async (t) => {
  const { dom } = await testDomain(t)
  let gone
  {
    await using stream = await dom.stream('vda', { bandwidth: SLOW })
    gone = stream.finished
  }
  await assert.rejects(gone, { code: 'VIR_ERR_INVALID_STREAM', message: /let go of/ })
  assert.equal((await dom.streamDiskInfo()).length, 1)
  const again = await dom.attachStream('virtio-disk0')
  await again.setBandwidth(0)
  const offsets: number[] = []
  for await (const { offset } of again) offsets.push(offset)
  assert.equal(offsets.at(-1), 64 * 1024 * 1024)
  await again.finished
})

test('there is nothing to attach to where nothing streams', async (t) => {
  const { dom } = await testDomain(t)
  await assert.rejects(dom.attachStream('vda'), { code: 'VIR_ERR_OPERATION_INVALID', message: /not being streamed/ })
})

test('`finished` rejects when the connection closes, since the end cannot be heard any more', async () => {
  const conn = await Connect.open('test:///default')
  const dom = await conn.domainLookupByName('test')
  const stream = await dom.stream('vda', { bandwidth: SLOW })
  await conn.close()
  await assert.rejects(stream.finished, { code: 'VIR_ERR_INVALID_CONN' })
})

test('a stream that cannot begin leaves no listener and no handle behind', async (t) => {
  const { dom } = await testDomain(t)
  await assert.rejects(dom.stream('sda'), { code: 'VIR_ERR_OPERATION_INVALID', message: /no medium/ })
  await assert.rejects(dom.stream('nope'), { code: 'VIR_ERR_INVALID_ARG', message: /invalid path 'nope'/ })
  const stream = await dom.stream('vda', { bandwidth: SLOW })
  await assert.rejects(dom.stream('vda'), { code: 'VIR_ERR_OPERATION_INVALID', message: /already in active block job/ })
  await stream.stop()
})

test('an aborted signal is not an event listener for ever', async (t) => {
  const { dom } = await testDomain(t)
  const abort = new AbortController()
  const stream = await dom.stream('vda', { signal: abort.signal })
  await stream.finished
  const aborted = once(abort.signal, 'abort')
  abort.abort()
  await aborted
  assert.deepEqual(await dom.streamDiskInfo(), [])
})

const completed: DomainEvent = {
  kind: 'block-job',
  domain: ref,
  disk: 'vda',
  path: '/i',
  type: 1,
  status: VIR_DOMAIN_BLOCK_JOB_COMPLETED,
}
const resumed: DomainEvent = { kind: 'lifecycle', domain: ref, event: 4, detail: 0 }

/** A stream of a driver that says only what the test lets it say. */
async function silentStream(states: StreamDiskState[]) {
  const xml = "<domain type='test'><name>guest</name><memory>1</memory><os><type>hvm</type></os></domain>"
  const { conn, emit } = await scripted({
    domainGetXMLDesc: () => Promise.resolve(xml),
    domainStreamDisk: () => Promise.resolve(0),
    domainStreamDiskInfo: () => Promise.resolve(states),
  })
  return { emit, stream: await (await conn.domainLookupByName('guest')).stream('vda') }
}

test('the end is heard however many other events come before it', async () => {
  const { emit, stream } = await silentStream([])
  for (let count = 0; count < 3000; count += 1) emit(resumed)
  emit(completed)
  await stream.finished
})

test('a stream whose end was lost among too many events does not wait for ever', async () => {
  const { emit, stream } = await silentStream([])
  emit(resumed) // this one is read at once
  emit(completed)
  for (let count = 0; count < 3000; count += 1) emit(resumed)
  await assert.rejects(stream.finished, { code: 'VIR_ERR_OPERATION_FAILED', message: /is not known/ })
})

test('a stream that still runs after too many events goes on', async () => {
  const state = { path: 'virtio-disk0', disk: 'vda', mode: 'full', bandwidth: 0, status: 'running' } as const
  const { emit, stream } = await silentStream([{ ...state, offset: 5, size: 9 }])
  for (let count = 0; count < 3000; count += 1) emit(resumed)
  for await (const { offset } of stream) {
    assert.equal(offset, 5)
    break
  }
  emit(completed)
  await stream.finished
})
