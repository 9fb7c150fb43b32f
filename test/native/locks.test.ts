import assert from 'node:assert/strict'
import { spawn as nodeSpawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, openSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { native, type FileLock } from '../../src/native.js'
import { requires } from '../support/requires.js'
import { scratch } from './spawned.js'

const whole: FileLock = { type: 'write', start: 0, length: 0 }

function file(t: TestContext): string {
  const path = join(scratch(t), 'file')
  writeFileSync(path, 'x'.repeat(100))
  return path
}

function open(t: TestContext, path: string, flags = 'r+'): number {
  const fd = openSync(path, flags)
  t.after(() => {
    try {
      closeSync(fd)
    } catch {
      // the test closed it
    }
  })
  return fd
}

test('two openings of a file conflict, even in one process, until the holder lets go', (t) => {
  const path = file(t)
  const [a, b] = [open(t, path), open(t, path)]
  assert.equal(native.lockFile(a, whole), true)
  assert.equal(native.lockFile(a, whole), true, 'asking again for what one holds is no conflict')
  assert.equal(native.lockFile(b, whole), false)
  assert.deepEqual(native.testLock(b, whole), { ...whole, pid: -1 })
  assert.equal(native.testLock(a, whole), undefined)
  native.unlockFile(a, 0, 0)
  assert.equal(native.lockFile(b, whole), true)
})

test('a lock goes with the last descriptor of its opening, and not before', (t) => {
  const path = file(t)
  const [a, b, other] = [open(t, path), open(t, path), open(t, path)]
  assert.equal(native.lockFile(a, whole), true)
  closeSync(other)
  assert.equal(native.lockFile(b, whole), false, 'closing another opening changes nothing')
  closeSync(a)
  assert.equal(native.lockFile(b, whole), true)
})

test('readers share, ranges are apart, and a range can be given back in part', (t) => {
  const path = file(t)
  const [a, b] = [open(t, path), open(t, path)]
  assert.equal(native.lockFile(a, { type: 'read', start: 0, length: 10 }), true)
  assert.equal(native.lockFile(b, { type: 'read', start: 5, length: 10 }), true)
  assert.equal(native.lockFile(b, { type: 'write', start: 5, length: 1 }), false)
  assert.equal(native.lockFile(b, { type: 'write', start: 10, length: 1 }), true)
  native.unlockFile(a, 0, 5)
  assert.deepEqual(native.testLock(b, whole), { type: 'read', start: 5, length: 5, pid: -1 })
  assert.equal(native.lockFile(b, { type: 'write', start: 0, length: 5 }), true)
})

test('a lock may lie beyond 4 GiB', (t) => {
  const path = file(t)
  const [a, b] = [open(t, path), open(t, path)]
  const far: FileLock = { type: 'write', start: 2 ** 40 + 1, length: 2 ** 33 }
  assert.equal(native.lockFile(a, far), true)
  assert.deepEqual(native.testLock(b, whole), { ...far, pid: -1 })
})

test('illegal arguments and descriptors are errors', (t) => {
  const path = file(t)
  const fd = open(t, path)
  const reader = open(t, path, 'r')
  assert.throws(() => native.lockFile(reader, whole), { code: 'EBADF', syscall: 'fcntl' })
  assert.throws(() => native.lockFile(fd, { ...whole, start: -1 }), RangeError)
  assert.throws(() => native.lockFile(fd, { ...whole, length: Number.NaN }), RangeError)
  assert.throws(() => native.lockFile(fd, { ...whole, type: 'rw' as 'write' }), TypeError)
  assert.throws(() => native.lockFile(54321, whole), { code: 'EBADF' })
  assert.throws(() => native.unlockFile(54321, 0, 0), { code: 'EBADF' })
})

const addon = new URL('../../../build/Release/virstream.node', import.meta.url).pathname

test('a lock holds against another process and ends with it, however it ends', async (t) => {
  const path = file(t)
  const script = `const native = require(process.argv[1])
    const fd = require('node:fs').openSync(process.argv[2], 'r+')
    console.log(native.lockFile(fd, { type: 'write', start: 0, length: 0 }))
    setInterval(() => {}, 1000)`
  const holder = nodeSpawn(process.execPath, ['-e', script, addon, path], { stdio: ['ignore', 'pipe', 'inherit'] })
  const [said] = (await once(holder.stdout, 'data')) as [Buffer]
  assert.equal(said.toString(), 'true\n')
  const fd = open(t, path)
  assert.equal(native.lockFile(fd, whole), false)
  holder.kill('SIGKILL')
  await once(holder, 'exit')
  assert.equal(native.lockFile(fd, whole), true)
})

test('a QEMU image tool sees our lock where QEMU puts its own', async (t) => {
  if (!requires(t, 'program:qemu-img')) return
  const path = file(t)
  const fd = open(t, path)
  // QEMU's raw driver tests byte 201 + i for "nobody may unshare i"; 1 is the write permission
  assert.equal(native.lockFile(fd, { type: 'read', start: 201, length: 1 }), true)
  const info = nodeSpawn('qemu-img', ['resize', '-f', 'raw', path, '1M'], { stdio: ['ignore', 'ignore', 'pipe'] })
  const chunks: Buffer[] = []
  info.stderr.on('data', (chunk: Buffer) => chunks.push(chunk))
  const [code] = (await once(info, 'close')) as [number]
  assert.notEqual(code, 0)
  assert.match(Buffer.concat(chunks).toString(), /lock/)
})
