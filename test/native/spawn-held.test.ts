import assert from 'node:assert/strict'
import { existsSync, openSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { native, type SpawnOptions } from '../../src/native.js'
import { assertNoMoreFds, exitOf, openFds, scratch, sh, standardFds } from './spawned.js'

const commands = (script: string): SpawnOptions => ({
  file: sh,
  args: ['sh', '-c', script],
  env: { PATH: '/usr/bin:/bin' },
  fds: standardFds,
})

test('a held child does nothing of its program until it is told to go on, and keeps its pid', async (t) => {
  const mark = join(scratch(t), 'mark')
  const before = openFds()
  const { pid, connection } = native.spawnHeld(commands(`echo $$ > ${mark}; exit 3`))
  assert.equal(connection, undefined)
  await delay(50)
  assert.equal(existsSync(mark), false)
  native.resumeHeld(pid)
  assert.deepEqual(await exitOf(pid), { code: 3, signal: null })
  assert.equal(Number(readFileSync(mark, 'utf8')), pid)
  assert.throws(() => native.resumeHeld(pid), { code: 'ESRCH' })
  await assertNoMoreFds(before)
})

test('what a held child cannot run is an error once it goes on; what it cannot reach is one at once', (t) => {
  const before = openFds()
  const { pid } = native.spawnHeld({ ...commands(''), file: '/nonexistent/program' })
  assert.throws(() => native.resumeHeld(pid), { code: 'ENOENT', syscall: 'spawn execve', path: '/nonexistent/program' })
  const path = join(scratch(t), 'nobody')
  assert.throws(() => native.spawnHeld(commands(''), path), { code: 'ENOENT', syscall: 'spawn connect', path })
  writeFileSync(path, '')
  assert.throws(() => native.spawnHeld(commands(''), path), { code: 'ECONNREFUSED', path })
  assert.throws(() => native.spawnHeld(commands(''), 'x'.repeat(200)), { code: 'ENAMETOOLONG' })
  assert.equal(openFds(), before)
})

test('a held child that is dropped is gone, and so is one whose parent dies', async (t) => {
  const { pid } = native.spawnHeld(commands('exit 0'))
  native.dropHeld(pid)
  assert.equal(existsSync(`/proc/${pid}`), false)
  assert.throws(() => native.dropHeld(pid), { code: 'ESRCH' })

  const addon = fileURLToPath(new URL('../../src/native.js', import.meta.url))
  const note = join(scratch(t), 'pid')
  const script = `import { native } from '${addon}'; import { writeFileSync } from 'node:fs'
    writeFileSync('${note}', String(native.spawnHeld(${JSON.stringify(commands('sleep 60'))}).pid)); process.kill(process.pid, 9)`
  const parent = native.spawn({
    ...commands(''),
    file: process.execPath,
    args: ['node', '--input-type=module', '-e', script],
  })
  assert.equal((await exitOf(parent)).signal, 9)
  const orphan = Number(readFileSync(note, 'utf8'))
  const until = Date.now() + 5000
  const isThere = (): boolean =>
    existsSync(`/proc/${orphan}`) && !/\) Z /.test(readFileSync(`/proc/${orphan}/stat`, 'utf8'))
  while (isThere() && Date.now() < until) await delay(10)
  assert.equal(isThere(), false)
})

test('the child itself connects: the peer sees its pid, and the connection ends with the program', async (t) => {
  const path = join(scratch(t), 'sock')
  const server = createServer()
  t.after(() => server.close())
  const peer = new Promise<{ pid: number; ended: Promise<void> }>((resolve) => {
    server.on('connection', (socket) => {
      const { fd } = (socket as unknown as { _handle: { fd: number } })._handle
      const ended = new Promise<void>((done) => {
        socket.on('close', () => done())
      })
      socket.resume()
      resolve({ pid: native.peerCredentials(fd).pid, ended })
    })
  })
  await new Promise<void>((done) => {
    server.listen(path, done)
  })
  const { pid, connection } = native.spawnHeld(commands('read line'), path)
  assert.ok(connection !== undefined)
  const seen = await peer
  assert.equal(seen.pid, pid)
  native.close(connection)
  native.resumeHeld(pid)
  let closed = false
  void seen.ended.then(() => (closed = true))
  await delay(100)
  assert.equal(closed, false)
  const exit = exitOf(pid)
  process.kill(pid, 'SIGKILL')
  await exit
  await seen.ended
})

test('a copy of another process’s descriptor is the same open file', async (t) => {
  const path = join(scratch(t), 'file')
  const fd = openSync(path, 'w+')
  assert.equal(native.lockFile(fd, { type: 'write', start: 0, length: 1 }), true)
  const pid = native.spawn({ ...commands('read line'), fds: [...standardFds, { source: fd, target: 9 }] })
  const exit = exitOf(pid)
  try {
    const copy = native.copyFd(pid, 9)
    assert.equal(readlinkSync(`/proc/self/fd/${copy}`), path)
    assert.equal(native.testLock(copy, { type: 'write', start: 0, length: 1 }), undefined, 'its own lock')
    native.close(copy)
    assert.throws(() => native.copyFd(pid, 77), { code: 'EBADF', syscall: 'pidfd_getfd' })
  } finally {
    process.kill(pid, 'SIGKILL')
    await exit
  }
  assert.throws(() => native.copyFd(pid, 9), { code: 'ESRCH' })
})
