import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { connect } from 'node:net'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { NbdClient, type NbdExtent } from '../../src/nbd/client.js'
import { run } from '../../src/util/run.js'
import { temporaryFolder } from '../support/images.js'
import { startNbdkit, startQemuNbd } from '../support/nbd-server.js'
import { requires } from '../support/requires.js'

const MiB = 2 ** 20

async function all(extents: AsyncIterable<NbdExtent>): Promise<NbdExtent[]> {
  const found: NbdExtent[] = []
  for await (const extent of extents) found.push(extent)
  return found
}

/** A thin overlay of a base that has data in [1 MiB, 3 MiB), and data of its own in the first 64 KiB. */
async function overlay(t: TestContext): Promise<{ folder: string; top: string }> {
  const folder = await temporaryFolder(t)
  const [base, top] = [join(folder, 'base.raw'), join(folder, 'top.qcow2')]
  await run('qemu-img', ['create', '-q', '-f', 'raw', base, '64M'])
  await run('qemu-io', ['-f', 'raw', '-c', 'write -P 7 1M 2M', base])
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', top])
  await run('qemu-io', ['-f', 'qcow2', '-c', 'write -P 1 0 64k', top])
  return { folder, top }
}

test('qemu-nbd: reads, writes, zeroes, trims, flushes and tells extents', async (t) => {
  if (!requires(t, 'program:qemu-nbd', 'program:qemu-img', 'program:qemu-io')) return
  const { folder, top } = await overlay(t)
  const socket = join(folder, 'socket')
  const server = await startQemuNbd(t, { image: top, format: 'qcow2', export: 'disk', writable: true, socket })
  const client = await NbdClient.connect(connect(socket), { export: 'disk', metaContexts: ['base:allocation'] })
  assert.equal(client.size, 64 * MiB)
  assert.equal(client.maxPayload, 32 * MiB)
  assert.deepEqual(client.metaContexts, ['base:allocation'])
  assert.deepEqual(await client.read(0, 65536), Buffer.alloc(65536, 1))
  // data, a hole and data again in one structured reply
  const wide = await client.read(65536 - 512, 32 * MiB)
  assert.equal(wide.indexOf(7), MiB - 65536 + 512)
  assert.equal(wide.lastIndexOf(7), 3 * MiB - 65536 + 512 - 1)
  await Promise.all(
    Array.from({ length: 64 }, (_, index) => client.write(8 * MiB + index * 4096, Buffer.alloc(4096, index + 1))),
  )
  const written = await client.read(8 * MiB, 64 * 4096)
  for (let index = 0; index < 64; index++) assert.equal(written[index * 4096 + 100], index + 1)
  await client.write(16 * MiB, Buffer.from('through'), { fua: true })
  await client.writeZeroes(8 * MiB, 4096)
  await client.writeZeroes(8 * MiB + 4096, 4096, { noHole: true })
  await client.trim(8 * MiB + 65536, 65536)
  await client.cache(0, MiB)
  await client.flush()
  assert.deepEqual(await client.read(8 * MiB, 8192), Buffer.alloc(8192))
  const extents = await all(client.extents('base:allocation'))
  assert.equal(
    extents.reduce((sum, extent) => sum + extent.length, 0),
    64 * MiB,
  )
  assert.deepEqual(extents[0], { offset: 0, length: 65536, flags: 0 })
  assert.deepEqual(extents[1], { offset: 65536, length: MiB - 65536, flags: 3 })
  await client.disconnect()
  await server.stop()
  const check = await run('qemu-io', ['-r', '-f', 'qcow2', '-c', `read -P 41 ${8 * MiB + 40 * 4096} 4096`, top])
  assert.doesNotMatch(check.stdout, /Pattern verification failed/)
})

test('qemu-nbd: the list, what an export is, and one that is not there', async (t) => {
  if (!requires(t, 'program:qemu-nbd', 'program:qemu-img', 'program:qemu-io')) return
  const { folder, top } = await overlay(t)
  const socket = join(folder, 'socket')
  await startQemuNbd(t, { image: top, format: 'qcow2', export: 'disk', socket })
  assert.deepEqual(await NbdClient.list(connect(socket)), [{ name: 'disk', description: '' }])
  const info = await NbdClient.info(connect(socket), 'disk')
  assert.equal(info.size, 64 * MiB)
  assert.equal(info.blockSizes?.maximum, 32 * MiB)
  await assert.rejects(NbdClient.connect(connect(socket), { export: 'other' }), { code: 'ENOENT', message: /'other'/ })
  const client = await NbdClient.connect(connect(socket), { export: 'disk' })
  assert.equal(client.readOnly, true)
  await assert.rejects(client.write(0, Buffer.alloc(512)), { code: 'EPERM' })
  await client.disconnect()
})

test('a read-only export of QEMU tells depths, and caching a range pulls it from the backing image', async (t) => {
  if (!requires(t, 'program:qemu-storage-daemon', 'program:qemu-img', 'program:qemu-io')) return
  const { folder, top } = await overlay(t)
  const socket = join(folder, 'socket')
  const daemon = spawn(
    'qemu-storage-daemon',
    [
      ['--blockdev', `driver=file,node-name=file,filename=${top}`],
      ['--blockdev', 'driver=qcow2,node-name=disk,file=file'],
      ['--nbd-server', `addr.type=unix,addr.path=${socket}`],
      ['--export', 'type=nbd,id=e,node-name=disk,name=disk,allocation-depth=on'],
    ].flat(),
    { stdio: 'inherit' },
  )
  t.after(() => daemon.kill())
  const client = await connectWhenThere(socket)
  assert.equal(client.readOnly, true)
  const depths = async (): Promise<number[][]> =>
    (await all(client.extents('qemu:allocation-depth', 0, 4 * MiB))).map((extent) => [
      extent.offset,
      extent.length,
      extent.flags,
    ])
  assert.deepEqual(await depths(), [
    [0, 65536, 1],
    [65536, 4 * MiB - 65536, 2],
  ])
  await Promise.all([client.cache(MiB, MiB), client.cache(2 * MiB, 65536)])
  await client.flush()
  assert.deepEqual(await depths(), [
    [0, 65536, 1],
    [65536, MiB - 65536, 2],
    [MiB, MiB + 65536, 1],
    [2 * MiB + 65536, 2 * MiB - 65536, 2],
  ])
  await assert.rejects(client.cache(0, 33 * MiB), { code: 'EINVAL', errno: 22 })
  assert.equal(client.connected, true)
  daemon.kill('SIGKILL')
  await client.ended
  await assert.rejects(client.flush(), { code: 'ECONNRESET' })
  const map = await run('qemu-img', ['map', '--output=json', '-f', 'qcow2', top])
  const kept = (JSON.parse(map.stdout) as { start: number; depth: number }[]).find((extent) => extent.start === MiB)
  assert.equal(kept?.depth, 0, 'what was flushed outlives a killed server')
})

async function connectWhenThere(path: string): Promise<NbdClient> {
  for (let tries = 0; ; tries++) {
    const socket = connect(path)
    try {
      await once(socket, 'connect')
    } catch (error) {
      if (tries === 200) throw error
      await delay(20)
      continue
    }
    return NbdClient.connect(socket, { export: 'disk', metaContexts: ['qemu:allocation-depth', 'base:allocation'] })
  }
}

test('nbdkit: a disk in memory, its description and zeroes', async (t) => {
  if (!requires(t, 'program:nbdkit')) return
  const socket = join(await temporaryFolder(t), 'socket')
  await startNbdkit(t, { plugin: ['memory', '16M'], writable: true, socket })
  const client = await NbdClient.connect(connect(socket), {
    metaContexts: ['base:allocation', 'qemu:allocation-depth'],
  })
  assert.deepEqual(client.metaContexts, ['base:allocation'])
  const data = Buffer.from(Array.from({ length: 100_001 }, (_, index) => index % 251))
  await client.write(12_345, data)
  assert.deepEqual(await client.read(12_345, data.length), data)
  await client.writeZeroes(12_345, 1000, { fua: true })
  assert.deepEqual(await client.read(12_345, 1000), Buffer.alloc(1000))
  await client.trim(0, MiB)
  await client.flush()
  assert.deepEqual(await all(client.extents('base:allocation')), [{ offset: 0, length: 16 * MiB, flags: 3 }])
  await client.disconnect()
})

test('nbdkit with the error filter: the errno comes through, and the connection goes on', async (t) => {
  if (!requires(t, 'program:nbdkit')) return
  const socket = join(await temporaryFolder(t), 'socket')
  await startNbdkit(t, {
    plugin: ['memory', '16M'],
    filters: ['error'],
    parameters: [
      'error-rate=100%',
      'error-pread=EPERM',
      'error-pwrite=ENOSPC',
      'error-zero=ENOMEM',
      'error-trim=ESHUTDOWN',
      'error-extents=EIO',
    ],
    writable: true,
    socket,
  })
  const client = await NbdClient.connect(connect(socket), { metaContexts: ['base:allocation'] })
  const results = await Promise.allSettled([
    client.read(0, 512),
    client.write(0, Buffer.alloc(512)),
    client.writeZeroes(0, 512),
    client.trim(0, 512),
    client.blockStatus(0, 512),
    client.flush(),
  ])
  assert.deepEqual(
    results.map((result) => (result.status === 'rejected' ? (result.reason as { code: string }).code : 'well')),
    ['EPERM', 'ENOSPC', 'ENOMEM', 'ESHUTDOWN', 'EIO', 'well'],
  )
  await client.disconnect()
})

test('nbdkit with the delay filter: many reads wait at the same time', async (t) => {
  if (!requires(t, 'program:nbdkit')) return
  const socket = join(await temporaryFolder(t), 'socket')
  await startNbdkit(t, { plugin: ['memory', '16M'], filters: ['delay'], parameters: ['rdelay=250ms'], socket })
  const client = await NbdClient.connect(connect(socket))
  const start = performance.now()
  await Promise.all(Array.from({ length: 32 }, (_, index) => client.read(index * 65536, 4096)))
  assert.ok(performance.now() - start < (32 * 250) / 2, 'far less than one after the other')
  const lost = client.read(0, 512)
  client.destroy()
  await assert.rejects(lost, { code: 'ECONNRESET' })
})

test('nbdkit asks for block sizes to be kept', async (t) => {
  if (!requires(t, 'program:nbdkit')) return
  const socket = join(await temporaryFolder(t), 'socket')
  await startNbdkit(t, {
    plugin: ['memory', '16M'],
    filters: ['blocksize-policy'],
    parameters: [
      'blocksize-minimum=4096',
      'blocksize-preferred=65536',
      'blocksize-maximum=1M',
      'blocksize-error-policy=error',
    ],
    socket,
  })
  const client = await NbdClient.connect(connect(socket))
  assert.equal(client.minBlockSize, 4096)
  assert.equal(client.maxPayload, MiB)
  assert.equal((await client.read(4096, MiB)).length, MiB)
  await assert.rejects(client.read(512, 4096), { code: 'EINVAL', message: /multiples of the block size 4096/ })
  await client.disconnect()
})
