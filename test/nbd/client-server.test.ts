import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { NbdClient, type NbdExtent } from '../../src/nbd/client.js'
import { NbdError } from '../../src/nbd/error.js'
import type { NbdServed } from '../../src/nbd/served.js'
import { type NbdServeOptions, serveNbd } from '../../src/nbd/server.js'
import { MemoryDisk } from './memory.js'
import { pipe, type PipeFaults } from './pipe.js'

const MiB = 2 ** 20

interface Joined {
  client: NbdClient
  /** settles when the server is done with the client */
  served: Promise<void>
}

async function join(
  disk: NbdServed,
  options: { faults?: PipeFaults; metaContexts?: string[]; serve?: NbdServeOptions } = {},
): Promise<Joined> {
  const [near, far] = pipe(options.faults)
  const served = serveNbd(far, new Map([['disk', disk]]), options.serve)
  served.catch(() => undefined)
  const client = await NbdClient.connect(near, { export: 'disk', metaContexts: options.metaContexts ?? [] })
  return { client, served }
}

for (const [how, pieces] of [
  ['whole', Infinity],
  ['in pieces of 7 bytes', 7],
  ['one byte at a time', 1],
] as const) {
  test(`every request works when the bytes arrive ${how}`, async () => {
    const disk = new MemoryDisk(64 * 1024)
    const { client, served } = await join(disk, {
      faults: { pieces },
      metaContexts: ['base:allocation', 'test:written', 'nobody:knows'],
    })
    assert.equal(client.size, 65536)
    assert.equal(client.readOnly, false)
    assert.deepEqual(client.metaContexts, ['base:allocation', 'test:written'])
    const data = Buffer.from('0123456789abcdef'.repeat(256))
    await client.write(8192, data)
    assert.deepEqual(await client.read(8192, 4096), data)
    assert.deepEqual(await client.read(8190, 5), Buffer.from('\0\x00012'))
    await client.write(0, Buffer.from('x'), { fua: true })
    await client.writeZeroes(8192, 16, { noHole: true })
    await client.trim(0, 4096)
    await client.cache(0, 65536)
    await client.flush()
    assert.deepEqual(disk.calls, [
      'write 8192+4096',
      'write 0+1',
      'flush',
      'writeZeroes noHole 8192+16',
      'trim 0+4096',
      'cache 0+65536',
      'flush',
    ])
    const status = await client.blockStatus(4096, 61440)
    assert.deepEqual(status.get('base:allocation'), [
      { offset: 4096, length: 4096, flags: 3 },
      { offset: 8192, length: 4096, flags: 0 },
      { offset: 12288, length: 53248, flags: 3 },
    ])
    assert.equal(status.get('test:written')?.length, 3)
    assert.equal((await client.blockStatus(4096, 61440, { one: true })).get('test:written')?.length, 1)
    await client.disconnect()
    await served
    assert.equal(client.connected, false)
  })
}

test('extents walks a whole export however few the server tells at once', async () => {
  const disk = new MemoryDisk(256 * 1024)
  for (const at of [3, 17, 40]) await disk.write(at * 4096, Buffer.alloc(4096, 1))
  const all = disk.contexts['test:written']
  const stingy = Object.assign(Object.create(disk) as MemoryDisk, {
    contexts: { 'test:written': async (offset: number, length: number) => (await all(offset, length)).slice(0, 1) },
  })
  const { client } = await join(stingy, { metaContexts: ['test:written'] })
  const found: NbdExtent[] = []
  for await (const extent of client.extents('test:written')) found.push(extent)
  assert.equal(
    found.reduce((sum, extent) => sum + extent.length, 0),
    disk.size,
  )
  assert.deepEqual(
    found.filter((extent) => extent.flags === 1).map((extent) => extent.offset / 4096),
    [3, 17, 40],
  )
  await assert.rejects(client.extents('base:allocation').next(), { code: 'ENOTSUP' })
  client.destroy()
})

test('requests in flight are answered in any order, each with its own data', async () => {
  const disk = new MemoryDisk(MiB)
  for (let at = 0; at < MiB; at += 4) disk.bytes.writeUInt32BE(at, at)
  let now = 0
  let most = 0
  disk.read = async (offset, length) => {
    most = Math.max(most, ++now)
    await delay((offset / 4096) % 7)
    now--
    return disk.bytes.subarray(offset, offset + length)
  }
  const { client } = await join(disk, { serve: { maxInFlight: 8 }, faults: { pieces: 1000 } })
  const order: number[] = []
  const reads = Array.from({ length: 200 }, async (_, index) => {
    const data = await client.read(index * 4096, 4096)
    order.push(index)
    assert.equal(data.readUInt32BE(0), index * 4096)
    assert.equal(data.readUInt32BE(4092), index * 4096 + 4092)
  })
  await Promise.all(reads)
  assert.equal(most, 8, 'the server works on as many as it was told, not on more')
  assert.notDeepEqual(
    order,
    order.toSorted((a, b) => a - b),
  )
  await client.disconnect()
})

test('an error of what is served reaches the one request, with number and message, and others go on', async () => {
  const disk = new MemoryDisk(MiB)
  disk.read = (offset) => {
    if (offset === 4096) return Promise.reject(Object.assign(new Error('the medium is scratched'), { code: 'EIO' }))
    if (offset === 8192) return Promise.reject(new Error('no code at all'))
    if (offset === 12288) return Promise.resolve(Buffer.alloc(1))
    return Promise.resolve(Buffer.alloc(4096, 7))
  }
  disk.write = () => Promise.reject(Object.assign(new Error('full'), { code: 'ENOSPC' }))
  const { client } = await join(disk)
  const results = await Promise.allSettled([0, 4096, 8192, 12288, 16384].map((offset) => client.read(offset, 4096)))
  assert.deepEqual(
    results.map((result) => result.status),
    ['fulfilled', 'rejected', 'rejected', 'rejected', 'fulfilled'],
  )
  await assert.rejects(client.read(4096, 4096), {
    name: 'NbdError',
    code: 'EIO',
    errno: 5,
    message: 'NBD read failed: the medium is scratched',
  })
  await assert.rejects(client.read(8192, 4096), { code: 'EIO', message: /no code at all/ })
  await assert.rejects(client.write(0, Buffer.alloc(10)), { code: 'ENOSPC', errno: 28, message: /full/ })
  await client.disconnect()
})

test('what the export can not take is refused without asking the server', async () => {
  const disk = new MemoryDisk(64 * MiB)
  const bare: NbdServed = {
    size: disk.size,
    blockSizes: { minimum: 512, preferred: 4096, maximum: MiB },
    read: (offset, length) => disk.read(offset, length),
  }
  const { client } = await join(bare, { metaContexts: ['base:allocation'] })
  assert.equal(client.readOnly, true)
  assert.equal(client.maxPayload, MiB)
  assert.equal(client.minBlockSize, 512)
  assert.deepEqual(client.metaContexts, [])
  await assert.rejects(client.write(0, Buffer.alloc(512)), { code: 'EPERM', errno: 0 })
  await assert.rejects(client.trim(0, 512), { code: 'EPERM' })
  await assert.rejects(client.flush(), { code: 'ENOTSUP' })
  await assert.rejects(client.cache(0, 512), { code: 'ENOTSUP' })
  await assert.rejects(client.blockStatus(0, 512), { code: 'ENOTSUP' })
  await assert.rejects(client.read(0, 2 * MiB), { code: 'EINVAL', message: /more than one request/ })
  await assert.rejects(client.read(disk.size, 512), { code: 'EINVAL', message: /past the end/ })
  await assert.rejects(client.read(1, 512), { code: 'EINVAL', message: /multiples of the block size 512/ })
  await assert.rejects(client.read(-512, 512), { code: 'EINVAL', message: /no range/ })
  await assert.rejects(client.read(0, 0), { code: 'EINVAL', message: /no range/ })
  await assert.rejects(client.read(0.5, 512), { code: 'EINVAL', message: /no range/ })
  assert.equal((await client.read(0, MiB)).length, MiB)
  const { client: other } = await join(disk)
  await assert.rejects(other.writeZeroes(0, 512, { fastZero: true }), { code: 'ENOTSUP' })
  client.destroy()
  other.destroy()
})

test('an unknown export is refused by name', async () => {
  const [near, far] = pipe()
  const served = serveNbd(far, new Map([['disk', new MemoryDisk(4096)]]))
  await assert.rejects(NbdClient.connect(near, { export: 'other' }), {
    code: 'ENOENT',
    message: "NBD GO 'other' failed: there is no export 'other'",
  })
  await served
  assert.equal(near.destroyed, true)
  await assert.rejects(NbdClient.connect(pipe()[0], { export: 'x'.repeat(5000) }), { code: 'EINVAL' })
})

test('the list of exports and what they are can be asked for without using one', async () => {
  const exports = new Map<string, NbdServed>([
    ['a', new MemoryDisk(4096)],
    ['b', { size: 512, read: () => Promise.resolve(Buffer.alloc(512)) }],
  ])
  const [near, far] = pipe({ pieces: 3 })
  const served = serveNbd(far, exports)
  assert.deepEqual(await NbdClient.list(near), [
    { name: 'a', description: 'a disk in memory' },
    { name: 'b', description: '' },
  ])
  await served
  const [again, other] = pipe()
  const servedAgain = serveNbd(other, exports)
  const info = await NbdClient.info(again, 'a')
  assert.deepEqual({ ...info, flags: 0 }, { size: 4096, flags: 0, description: 'a disk in memory' })
  await servedAgain
})

test('disconnect waits for what is in flight, destroy does not', async () => {
  const disk = new MemoryDisk(MiB)
  disk.read = async (_offset, length) => {
    await delay(30)
    return Buffer.alloc(length, 9)
  }
  const polite = await join(disk)
  const reading = polite.client.read(0, 512)
  const leaving = polite.client.disconnect()
  await assert.rejects(polite.client.read(0, 512), { code: 'ECONNRESET' })
  assert.equal((await reading)[0], 9)
  await leaving
  await polite.served

  const rude = await join(disk)
  const lost = [rude.client.read(0, 512), rude.client.flush()]
  rude.client.destroy()
  for (const one of lost) await assert.rejects(one, { code: 'ECONNRESET' })
  await assert.rejects(rude.client.read(0, 512), { code: 'ECONNRESET' })
  await rude.client.disconnect()
  await rude.client.ended
})

test('an abort ends a negotiation that goes nowhere', async () => {
  const [near] = pipe()
  const abort = new AbortController()
  const connecting = NbdClient.connect(near, { signal: abort.signal })
  abort.abort(new Error('enough'))
  await assert.rejects(connecting, /enough/)
  assert.equal(near.destroyed, true)
  const serving = serveNbd(pipe()[0], new Map(), { signal: abort.signal })
  await assert.rejects(serving, /enough/)
})

/** Connects and makes three requests at once; answers how many of the four steps went well. */
async function session(faults: PipeFaults, faultsBack: PipeFaults): Promise<number> {
  const [near, far] = pipe(faults, faultsBack)
  const served = serveNbd(far, new Map([['disk', new MemoryDisk(8192)]])).catch((error: unknown) => {
    assert.ok(error instanceof NbdError && error.code === 'ECONNRESET', String(error))
  })
  const client = await NbdClient.connect(near, { export: 'disk', metaContexts: ['base:allocation'] }).catch(
    (error: unknown) => {
      assert.ok(error instanceof NbdError && error.code === 'ECONNRESET', String(error))
      return undefined
    },
  )
  let good = 0
  if (client !== undefined) {
    const work = [client.write(0, Buffer.alloc(64, 1)), client.read(0, 64), client.blockStatus(0, 8192)]
    const results = await Promise.allSettled(work)
    for (const result of results) {
      if (result.status === 'rejected') assert.equal((result.reason as NbdError).code, 'ECONNRESET')
    }
    good = 1 + results.filter((result) => result.status === 'fulfilled').length
    await client.disconnect()
  }
  await served
  return good
}

test('wherever the connection is cut, in either direction, every waiter learns of it', async () => {
  const seen = new Set<number>()
  for (const direction of ['to the server', 'to the client'] as const) {
    for (let cutAfter = 0, good = 0; good < 4; cutAfter++) {
      const cut = { cutAfter }
      good = direction === 'to the server' ? await session(cut, {}) : await session({}, cut)
      seen.add(good)
      assert.ok(cutAfter < 2000, 'at some length all is well')
    }
  }
  assert.deepEqual([...seen].sort(), [0, 1, 2, 3, 4])
})
