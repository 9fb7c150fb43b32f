import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import type { NbdServed } from '../../src/nbd/served.js'
import { serveNbd } from '../../src/nbd/server.js'
import { run } from '../../src/util/run.js'
import { MemoryDisk } from '../nbd/memory.js'
import { temporaryFolder } from '../support/images.js'
import { requires } from '../support/requires.js'

const MiB = 2 ** 20

/** Our server on a unix socket until the test ends; `ends` tells how each client left. */
async function listen(
  t: TestContext,
  exports: Map<string, NbdServed>,
): Promise<{ folder: string; socket: string; ends: string[] }> {
  const folder = await temporaryFolder(t)
  const socket = join(folder, 'socket')
  const ends: string[] = []
  const server = createServer((stream) => {
    serveNbd(stream, exports).then(
      () => ends.push('left'),
      (error: unknown) => ends.push(String(error)),
    )
  })
  await new Promise<void>((resolve) => server.listen(socket, resolve))
  t.after(() => server.close())
  return { folder, socket, ends }
}

/** A disk with 1 MiB of data at 1 MiB and zeroes elsewhere. */
async function disk(): Promise<MemoryDisk> {
  const memory = new MemoryDisk(8 * MiB)
  await memory.write(MiB, Buffer.from(Array.from({ length: MiB }, (_, index) => index % 253)))
  return memory
}

test('nbdinfo understands what we say of an export', async (t) => {
  if (!requires(t, 'program:nbdinfo')) return
  const memory = await disk()
  const readOnly: NbdServed = { size: 512, read: (offset, length) => memory.read(offset, length) }
  const { socket } = await listen(
    t,
    new Map<string, NbdServed>([
      ['disk', memory],
      ['small', readOnly],
    ]),
  )
  const { stdout } = await run('nbdinfo', ['--json', '--list', `nbd+unix:///?socket=${socket}`])
  const { exports } = JSON.parse(stdout) as { exports: Record<string, unknown>[] }
  const [big, small] = exports
  assert.equal(exports.length, 2)
  assert.equal(big?.['export-name'], 'disk')
  assert.equal(big['export-size'], 8 * MiB)
  assert.equal(big['description'], 'a disk in memory')
  assert.deepEqual(big['contexts'], ['base:allocation', 'test:written'])
  for (const can of ['can_cache', 'can_df', 'can_flush', 'can_fua', 'can_trim', 'can_zero'])
    assert.equal(big[can], true, can)
  assert.equal(big['is_read_only'], false)
  assert.equal(small?.['is_read_only'], true)
  assert.equal(small['can_trim'], false)
})

test('nbdinfo --map shows our extents', async (t) => {
  if (!requires(t, 'program:nbdinfo')) return
  const { socket, ends } = await listen(t, new Map([['disk', await disk()]]))
  const { stdout } = await run('nbdinfo', ['--json', '--map', `nbd+unix:///disk?socket=${socket}`])
  const extents = (JSON.parse(stdout) as { offset: number; length: number; type: number }[]).map((extent) => [
    extent.offset,
    extent.length,
    extent.type,
  ])
  assert.deepEqual(extents, [
    [0, MiB, 3],
    [MiB, MiB, 0],
    [2 * MiB, 6 * MiB, 3],
  ])
  assert.deepEqual(ends, ['left'])
})

test('nbdcopy copies from our server and to it', async (t) => {
  if (!requires(t, 'program:nbdcopy')) return
  const [from, to] = [await disk(), new MemoryDisk(8 * MiB)]
  const { socket, folder } = await listen(
    t,
    new Map([
      ['from', from],
      ['to', to],
    ]),
  )
  const file = join(folder, 'copy')
  await run('nbdcopy', [`nbd+unix:///from?socket=${socket}`, file])
  assert.ok(from.bytes.equals(await readFile(file)))
  await run('nbdcopy', ['--flush', file, `nbd+unix:///to?socket=${socket}`])
  assert.ok(to.bytes.equals(from.bytes))
  assert.ok(to.calls.includes('flush'))
})

test('qemu-img compares, converts and maps our export', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const memory = await disk()
  const { socket, folder } = await listen(t, new Map([['disk', memory]]))
  const uri = `nbd+unix:///disk?socket=${socket}`
  const copy = join(folder, 'copy.qcow2')
  await run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', uri, copy])
  const compared = await run('qemu-img', ['compare', '-f', 'raw', '-F', 'qcow2', uri, copy])
  assert.match(compared.stdout, /Images are identical/)
  const map = await run('qemu-img', ['map', '--output=json', '-f', 'raw', uri])
  const data = (JSON.parse(map.stdout) as { start: number; length: number; data: boolean }[]).filter(
    (extent) => extent.data,
  )
  assert.deepEqual(
    data.map((extent) => [extent.start, extent.length]),
    [[MiB, MiB]],
  )
})

test('qemu-io writes, zeroes and discards on our export', async (t) => {
  if (!requires(t, 'program:qemu-io')) return
  const memory = await disk()
  const { socket } = await listen(t, new Map([['disk', memory]]))
  const commands = [
    'write -P 9 4k 8k',
    'write -z 1M 64k',
    'discard 1536k 64k',
    'flush',
    'read -P 9 4k 8k',
    'read -P 0 1M 64k',
  ]
  const { stdout } = await run('qemu-io', [
    '-f',
    'raw',
    '-d',
    'unmap',
    ...commands.flatMap((command) => ['-c', command]),
    `nbd+unix:///disk?socket=${socket}`,
  ])
  assert.doesNotMatch(stdout, /fail/i)
  assert.deepEqual(memory.bytes.subarray(4096, 12288), Buffer.alloc(8192, 9))
  assert.deepEqual(memory.bytes.subarray(MiB, MiB + 65536), Buffer.alloc(65536))
  assert.deepEqual(memory.bytes.subarray(1.5 * MiB, 1.5 * MiB + 65536), Buffer.alloc(65536))
  assert.equal(memory.bytes[MiB + 65536], 65536 % 253)
})

test('what our server refuses reaches a QEMU tool as the right error', async (t) => {
  if (!requires(t, 'program:qemu-io')) return
  const memory = await disk()
  memory.write = () => Promise.reject(Object.assign(new Error('full'), { code: 'ENOSPC' }))
  const { socket } = await listen(t, new Map([['disk', memory]]))
  const uri = `nbd+unix:///disk?socket=${socket}`
  const failed = await run('qemu-io', ['-f', 'raw', '-c', 'write 0 4k', uri]).catch((error: unknown) => error)
  assert.match(JSON.stringify(failed) + String(failed), /No space left on device/)
})
