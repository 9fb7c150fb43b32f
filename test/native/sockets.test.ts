import assert from 'node:assert/strict'
import { spawn as nodeSpawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, fstatSync, openSync, readFileSync, readSync, statSync, writeFileSync } from 'node:fs'
import { createServer, Socket } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { native } from '../../src/native.js'
import { requires } from '../support/requires.js'
import { exitOf, openFds, run, scratch, sh } from './spawned.js'

const bytes = (text: string): Uint8Array => Buffer.from(text)

function isCloseOnExec(fd: number): boolean {
  const flags = /^flags:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1] ?? '0'
  return (parseInt(flags, 8) & 0o2000000) !== 0
}

function isNonBlocking(fd: number): boolean {
  const flags = /^flags:\s*(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1] ?? '0'
  return (parseInt(flags, 8) & 0o4000) !== 0
}

test('descriptors go over a socket with their bytes and refer to the same open files', (t) => {
  const path = join(scratch(t), 'file')
  writeFileSync(path, 'hello')
  const before = openFds()
  const [a, b] = native.socketpair()
  assert.ok(isCloseOnExec(a) && isCloseOnExec(b) && isNonBlocking(a) && isNonBlocking(b))
  assert.equal(native.recvFds(b, 100), undefined, 'nothing is there yet')
  const file = openSync(path, 'r')
  assert.equal(native.sendFds(a, bytes('take these'), [file, file]), 10)
  const got = native.recvFds(b, 100)
  assert.equal(Buffer.from(got?.bytes ?? []).toString(), 'take these')
  const [first = -1, second = -1] = got?.fds ?? []
  assert.equal(got?.fds.length, 2)
  assert.ok(isCloseOnExec(first))
  assert.equal(fstatSync(first).ino, fstatSync(file).ino)
  const buffer = Buffer.alloc(2)
  readSync(file, buffer, 0, 2, null)
  readSync(second, buffer, 0, 2, null)
  assert.equal(buffer.toString(), 'll', 'the position is shared: it is the same open file')
  closeSync(file)
  native.close(first)
  native.close(second)
  native.close(a)
  assert.deepEqual(native.recvFds(b, 100), { bytes: new Uint8Array(0), fds: [] }, 'the end of the stream')
  native.close(b)
  assert.equal(openFds(), before)
})

test('bytes without descriptors can be sent and read in pieces', () => {
  const [a, b] = native.socketpair()
  assert.equal(native.sendFds(a, bytes('abcdef'), []), 6)
  assert.equal(Buffer.from(native.recvFds(b, 4)?.bytes ?? []).toString(), 'abcd')
  assert.equal(Buffer.from(native.recvFds(b, 4)?.bytes ?? []).toString(), 'ef')
  native.close(a)
  native.close(b)
})

test('a full socket takes what fits, then answers 0 instead of blocking', () => {
  const [a, b] = native.socketpair()
  const chunk = new Uint8Array(1 << 20)
  let sent = 0
  let last = -1
  while (last !== 0) {
    last = native.sendFds(a, chunk, [])
    sent += last
  }
  assert.ok(sent > 0 && sent < 64 << 20)
  let received = 0
  for (let part = native.recvFds(b, 1 << 20); part !== undefined; part = native.recvFds(b, 1 << 20)) {
    received += part.bytes.length
  }
  assert.equal(received, sent)
  native.close(a)
  native.close(b)
})

test('253 descriptors go at once, one more is refused', () => {
  const before = openFds()
  const [a, b] = native.socketpair()
  const many = Array.from({ length: 253 }, () => a)
  assert.equal(native.sendFds(a, bytes('x'), many), 1)
  const got = native.recvFds(b, 1)
  assert.equal(got?.fds.length, 253)
  for (const fd of got.fds) native.close(fd)
  assert.throws(() => native.sendFds(a, bytes('x'), [...many, a]), RangeError)
  native.close(a)
  native.close(b)
  assert.equal(openFds(), before)
})

test('when our table of descriptors is too full to take what was sent, none leaks and EMFILE says so', async (t) => {
  const addon = new URL('../../../build/Release/virstream.node', import.meta.url).pathname
  const script = `
    const native = require(process.argv[1])
    const { readdirSync } = require('node:fs')
    const [a, b] = native.socketpair()
    native.sendFds(a, Buffer.from('x'), Array.from({ length: 200 }, () => a))
    const before = readdirSync('/proc/self/fd').length
    try { native.recvFds(b, 1) } catch (error) { console.log(error.code, error.syscall) }
    console.log(readdirSync('/proc/self/fd').length - before)`
  const done = await run(t, sh, ['-c', 'ulimit -n 100; exec "$@"', 'sh', process.execPath, '-e', script, addon])
  assert.equal(done.output, 'EMFILE recvmsg\n0\n')
})

test('wrong arguments and closed descriptors are errors', () => {
  const [a, b] = native.socketpair()
  assert.throws(() => native.sendFds(a, new Uint8Array(0), [a]), RangeError)
  assert.throws(() => native.sendFds(a, bytes('x'), [65535]), { code: 'EBADF', syscall: 'sendmsg' })
  assert.throws(() => native.sendFds(a, 'x' as unknown as Uint8Array, []), TypeError)
  assert.throws(() => native.sendFds(a, bytes('x'), 5 as unknown as number[]), TypeError)
  assert.throws(() => native.recvFds(a, 0), RangeError)
  assert.throws(() => native.recvFds(a, 1e9), RangeError)
  native.close(b)
  assert.throws(() => native.sendFds(a, bytes('x'), []), { code: 'EPIPE', errno: -32, syscall: 'sendmsg' })
  native.close(a)
  assert.throws(() => native.close(a), {
    code: 'EBADF',
    syscall: 'close',
    message: /^EBADF: bad file descriptor, close$/,
  })
  assert.throws(() => native.close(-1), RangeError)
  assert.throws(() => native.close(1.5), RangeError)
  assert.throws(() => native.close('0' as unknown as number), TypeError)
})

test('a listening socket has the asked mode whatever the umask, and takes connections by Node and by us', async (t) => {
  const path = join(scratch(t), 'socket')
  const before = process.umask(0o077)
  const fd = native.listenUnix(path, 0o666, 5)
  process.umask(before)
  assert.equal(statSync(path).mode & 0o7777, 0o666)
  assert.ok(isCloseOnExec(fd) && isNonBlocking(fd))
  const server = createServer((socket) => socket.end('welcome'))
  server.listen({ fd })
  t.after(() => server.close())
  const connection = native.connectUnix(path)
  assert.ok(isCloseOnExec(connection) && isNonBlocking(connection))
  const socket = new Socket({ fd: connection })
  const [chunk] = (await once(socket, 'data')) as [Buffer]
  assert.equal(chunk.toString(), 'welcome')
})

test('listening where a file is, and connecting where nobody listens, fail like Node', (t) => {
  const path = join(scratch(t), 'socket')
  const before = openFds()
  assert.throws(() => native.connectUnix(path), {
    code: 'ENOENT',
    syscall: 'connect',
    message: `ENOENT: no such file or directory, connect '${path}'`,
  })
  native.close(native.listenUnix(path, 0o600, 1))
  assert.throws(() => native.listenUnix(path, 0o600, 1), { code: 'EADDRINUSE', syscall: 'bind', path })
  assert.throws(() => native.connectUnix(path), { code: 'ECONNREFUSED', syscall: 'connect', path })
  const long = '/tmp/' + 'x'.repeat(120)
  assert.throws(() => native.listenUnix(long, 0o600, 1), { code: 'ENAMETOOLONG', path: long })
  assert.throws(() => native.connectUnix(''), { code: 'EINVAL' })
  assert.throws(() => native.connectUnix('/tmp/a\0b'), TypeError)
  assert.equal(openFds(), before)
})

test('the credentials of a peer are its pid, user and group at the time of connecting', async (t) => {
  const [a, b] = native.socketpair()
  const self = { pid: process.pid, uid: process.getuid?.(), gid: process.getgid?.() }
  assert.deepEqual(native.peerCredentials(a), self)
  native.close(a)
  native.close(b)
  assert.throws(() => native.peerCredentials(openNull(t)), { code: 'ENOTSOCK', syscall: 'getsockopt' })

  const path = join(scratch(t), 'socket')
  const listening = native.listenUnix(path, 0o666, 5)
  const server = createServer({ pauseOnConnect: true })
  server.listen({ fd: listening })
  t.after(() => server.close())
  const script = `require('node:net').connect(process.argv[1]).on('close', () => process.exit(0))`
  const peer = nodeSpawn(process.execPath, ['-e', script, path], { stdio: 'inherit' })
  const [connection] = (await once(server, 'connection')) as [Socket & { _handle: { fd: number } }]
  assert.equal(native.peerCredentials(connection._handle.fd).pid, peer.pid)
  connection.destroy()
  await once(peer, 'exit')
})

test('a peer that runs as another user is told apart', async (t) => {
  if (!requires(t, 'root', 'program:python3')) return
  const path = join(scratch(t), 'socket')
  // the directory of the test is private: the peer gets its end by inheritance
  const listening = native.listenUnix(path, 0o666, 5)
  const server = createServer({ pauseOnConnect: true })
  server.listen({ fd: listening })
  t.after(() => server.close())
  const script = 'import socket; s = socket.socket(socket.AF_UNIX); s.connect("socket"); s.recv(1)'
  const directory = openSync(join(path, '..'), 'r')
  t.after(() => closeSync(directory))
  const pid = native.spawn({
    file: '/usr/bin/python3',
    args: ['python3', '-c', `import os; os.fchdir(3); ${script}`],
    env: {},
    cwd: '/',
    fds: [...[0, 1, 2].map((fd) => ({ source: fd, target: fd })), { source: directory, target: 3 }],
    uid: 12345,
    gid: 23456,
  })
  native.spawn({
    file: '/bin/chmod',
    args: ['chmod', '755', join(path, '..')],
    env: {},
    fds: [0, 1, 2].map((fd) => ({ source: fd, target: fd })),
  })
  const [connection] = (await once(server, 'connection')) as [Socket & { _handle: { fd: number } }]
  assert.deepEqual(native.peerCredentials(connection._handle.fd), { pid, uid: 12345, gid: 23456 })
  connection.destroy()
  assert.deepEqual(await exitOf(pid), { code: 0, signal: null })
})

function openNull(t: { after(hook: () => void): void }): number {
  const fd = openSync('/dev/null', 'r')
  t.after(() => closeSync(fd))
  return fd
}
