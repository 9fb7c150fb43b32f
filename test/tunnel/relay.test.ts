import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, statSync } from 'node:fs'
import { readFile, writeFile } from 'node:fs/promises'
import { connect, createServer, Socket, type Server as NetServer } from 'node:net'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { native } from '../../src/native.js'
import { dial } from '../../src/tunnel/dial.js'
import { descriptorFor, joinDuplex, joinUnix, unixSocket } from '../../src/tunnel/join.js'
import { listenTunnel } from '../../src/tunnel/listen.js'
import { loadCredentials } from '../../src/tunnel/pki.js'
import { UnixRelay, type UnixRelayOptions } from '../../src/tunnel/relay.js'
import type { Tunnel } from '../../src/tunnel/tunnel.js'
import { run } from '../../src/util/run.js'
import { temporaryFolder } from '../support/images.js'
import { requires } from '../support/requires.js'
import { nbdkit, qemuNbd, Server } from '../support/servers.js'
import { pipe } from '../nbd/pipe.js'
import { readAll, socketPair, tunnelOver, tunnelPair } from './pair.js'
import { TestAuthority } from './pki.js'

async function relay(t: TestContext, options: Omit<UnixRelayOptions, 'service'>): Promise<UnixRelay> {
  const made = await UnixRelay.listen({ service: 'nbd:1', ...options })
  t.after(() => made.close())
  return made
}

/** A server on a unix path that sends back what it gets. */
async function echoServer(t: TestContext, path: string): Promise<NetServer> {
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    socket.on('error', () => undefined)
    socket.pipe(socket)
  })
  server.listen(path)
  await once(server, 'listening')
  t.after(() => void server.close())
  return server
}

/** Client and server; channels that the client opens lead to `path` at the server. */
async function tunnelTo(t: TestContext, path: string): Promise<[client: Tunnel, server: Tunnel]> {
  const [client, server] = await tunnelPair(t)
  server.onOpen = (request) => void joinUnix(request, path)
  return [client, server]
}

async function echoed(socket: Socket): Promise<void> {
  const bytes = randomBytes(300_000)
  socket.end(bytes)
  assert.ok((await readAll(socket)).equals(bytes))
}

test('connections to a private path come out at a path of the other side', async (t) => {
  const folder = await temporaryFolder(t)
  await echoServer(t, join(folder, 'far'))
  const [client, server] = await tunnelTo(t, join(folder, 'far'))
  const near = await relay(t, { path: join(folder, 'near') })
  assert.equal(statSync(near.path).mode & 0o777, 0o600)
  near.setTunnel(client)
  await Promise.all([1, 2, 3, 4].map(async () => await echoed(await unixSocket(near.path))))
  assert.equal(server.stats.bytesIn, 1_200_000)
  assert.deepEqual([near.connections, near.held], [0, 0])
  await near.close()
  assert.ok(!existsSync(near.path))
})

test('while there is no tunnel connections wait, and go on as soon as there is one', async (t) => {
  const folder = await temporaryFolder(t)
  await echoServer(t, join(folder, 'far'))
  const near = await relay(t, { path: join(folder, 'near'), heldAtMost: 2 })
  const tooMany = connect(near.path).resume()
  await once(tooMany, 'connect')
  const waiting = [await unixSocket(near.path), await unixSocket(near.path)]
  await once(tooMany, 'close')
  assert.equal(near.held, 2)
  near.setTunnel((await tunnelTo(t, join(folder, 'far')))[0])
  await Promise.all(waiting.map(echoed))
})

test('a connection that hangs up while it waits is let go', async (t) => {
  const near = await relay(t, { path: join(await temporaryFolder(t), 'near') })
  const socket = await unixSocket(near.path)
  const stays = await unixSocket(near.path)
  while (near.held < 2) await nextTurn()
  socket.end()
  await once(socket.resume(), 'close')
  assert.equal(near.held, 1)
  stays.destroy()
})

test('a tunnel that breaks takes its connections along, and the next one serves new ones on the same path', async (t) => {
  const folder = await temporaryFolder(t)
  await echoServer(t, join(folder, 'far'))
  const near = await relay(t, { path: join(folder, 'near') })
  const [first, other] = await tunnelTo(t, join(folder, 'far'))
  near.setTunnel(first)
  const before = connect(near.path)
  before.on('error', () => undefined)
  before.write('x')
  await once(before, 'data')
  assert.equal(near.connections, 1)
  other.destroy()
  await new Promise((resolve) => before.once('close', resolve))
  assert.equal(near.tunnel, undefined)
  const after = await unixSocket(near.path)
  near.setTunnel((await tunnelTo(t, join(folder, 'far')))[0])
  await echoed(after)
})

test('a refused connection is tried again while it lives: the server may come back', async (t) => {
  const folder = await temporaryFolder(t)
  const near = await relay(t, { path: join(folder, 'near') })
  const [client, server] = await tunnelPair(t)
  let refused = 0
  server.onOpen = async (request) => {
    const error = await joinUnix(request, join(folder, 'far'))
    if (error?.code === 'ECONNREFUSED' && ++refused === 2) await echoServer(t, join(folder, 'far'))
  }
  near.setTunnel(client)
  await echoed(await unixSocket(near.path))
  assert.equal(refused, 2)
  const leaves = await unixSocket(near.path)
  leaves.destroy()
  await near.close()
})

test('whoever knows that the server is back has refused connections tried again at once', async (t) => {
  const folder = await temporaryFolder(t)
  const near = await relay(t, { path: join(folder, 'near') })
  const [client, server] = await tunnelPair(t)
  // pauses do not end by themselves
  t.mock.timers.enable({ apis: ['setTimeout'] })
  let refused = 0
  server.onOpen = async (request) => {
    if ((await joinUnix(request, join(folder, 'far')))?.code === 'ECONNREFUSED') refused += 1
  }
  near.setTunnel(client)
  const socket = await unixSocket(near.path)
  while (refused === 0) await nextTurn()
  for (let turns = 0; turns < 100; turns++) await nextTurn()
  assert.deepEqual([refused, near.held], [1, 1])
  await echoServer(t, join(folder, 'far'))
  near.retry()
  await echoed(socket)
  assert.equal(refused, 1)
})

test('a connection whose channel was reset in the moment in which it was accepted is not kept open', async (t) => {
  const near = await relay(t, { path: join(await temporaryFolder(t), 'near') })
  const [client, server] = await tunnelOver(t, await socketPair(t))
  // both go out as one piece, as they also do when whoever takes them is busy meanwhile
  server.onOpen = (request) => void request.accept().destroy(new Error('the server ended'))
  near.setTunnel(client)
  await once(connect(near.path).resume(), 'close')
  assert.deepEqual([near.connections, near.held], [0, 0])
})

test('a path that somebody listens on is not taken over, a dead one is', async (t) => {
  const path = join(await temporaryFolder(t), 'near')
  await echoServer(t, path)
  await assert.rejects(UnixRelay.listen({ path, service: 'x' }), { code: 'EINVAL', message: /somebody listens/ })
  const dead = join(await temporaryFolder(t), 'dead')
  native.close(native.listenUnix(dead, 0o600, 1))
  assert.equal((await relay(t, { path: dead })).path, dead)
})

test('a path whose listener is too busy to take connections is not taken over', async (t) => {
  const path = join(await temporaryFolder(t), 'busy')
  const listener = native.listenUnix(path, 0o600, 1)
  t.after(() => native.close(listener))
  const waiting: Socket[] = []
  t.after(() => waiting.forEach((socket) => socket.destroy()))
  const isTaken = async (): Promise<boolean> =>
    unixSocket(path).then(
      (socket) => waiting.push(socket) > 0,
      () => false,
    )
  while (await isTaken());
  await assert.rejects(UnixRelay.listen({ service: 'nbd:1', path }), /somebody listens/)
  assert.ok(existsSync(path))
})

test('joined streams pass on half closes, each way by itself', async (t) => {
  const folder = await temporaryFolder(t)
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    let length = 0
    socket.on('data', (bytes: Buffer) => (length += bytes.length))
    // answers only when it has read everything
    socket.on('end', () => socket.end(`got ${length}`))
  })
  server.listen(join(folder, 'far'))
  t.after(() => void server.close())
  const [client] = await tunnelTo(t, join(folder, 'far'))
  const channel = await client.open('x')
  channel.end(Buffer.alloc(500_000))
  assert.equal((await readAll(channel)).toString(), 'got 500000')
})

test('a joined stream that breaks breaks the other one, with the reason', async (t) => {
  const [client, server] = await tunnelPair(t)
  const [near, far] = pipe()
  server.onOpen = async (request) => {
    await joinDuplex(request.accept(), far).catch(() => undefined)
  }
  const channel = await client.open('x')
  channel.write('bytes')
  await once(near, 'data')
  far.destroy(new Error('the disk is gone'))
  await new Promise((resolve) => channel.once('close', resolve))
  assert.match(channel.errored?.message ?? '', /the disk is gone/)
})

test('a stream that is broken already when it is joined breaks the other one', async () => {
  const [[near, far], [left, right]] = [pipe(), pipe()]
  far.on('error', () => undefined).destroy(new Error('the disk is gone'))
  await new Promise((resolve) => far.once('close', resolve))
  await assert.rejects(joinDuplex(far, left), /the disk is gone/)
  assert.ok(left.destroyed)
  near.destroy()
  right.destroy()
})

test('a stream that has ended already when it is joined ends the other one, and goes on being written to', async () => {
  const [[near, far], [left, right]] = [pipe(), pipe()]
  near.end()
  await once(far.resume(), 'end')
  const joined = joinDuplex(far, left)
  await once(right.resume(), 'end')
  right.end('late')
  assert.equal((await readAll(near)).toString(), 'late')
  await joined
})

test('a connection whose listener goes before it has taken it is found broken, and ends nothing else', async (t) => {
  const path = join(await temporaryFolder(t), 'socket')
  const listener = native.listenUnix(path, 0o600, 1)
  const socket = await unixSocket(path)
  native.close(listener)
  await new Promise((resolve) => socket.once('close', resolve))
  const [near] = pipe()
  await assert.rejects(joinDuplex(near, socket), /ECONNRESET/)
})

test('a program gets a descriptor that is a channel', async (t) => {
  const [client, server] = await tunnelPair(t)
  server.onOpen = (request) => {
    const channel = request.accept()
    channel.pipe(channel)
  }
  const { fd, joined } = descriptorFor(await client.open('ram'))
  const program = new Socket({ fd, allowHalfOpen: true })
  await echoed(program)
  await joined
})

test('real NBD through a tunnel of one byte at a time is still NBD', async (t) => {
  if (!requires(t, 'program:nbdkit', 'program:nbdinfo')) return
  const folder = await temporaryFolder(t)
  await nbdkit(t, join(folder, 'far'), ['memory', '1M'])
  const [client, server] = await tunnelPair(t, { faults: { pieces: 1 } })
  server.onOpen = (request) => void joinUnix(request, join(folder, 'far'))
  const near = await relay(t, { path: join(folder, 'near') })
  near.setTunnel(client)
  const { stdout } = await run('nbdinfo', ['--size', `nbd+unix:///?socket=${near.path}`])
  assert.equal(stdout.trim(), '1048576')
})

test('nbdcopy over several connections and TLS brings the same bytes', async (t) => {
  if (!requires(t, 'program:nbdkit', 'program:nbdcopy', 'program:openssl')) return
  const folder = await temporaryFolder(t)
  const [image, copy] = [join(folder, 'image'), join(folder, 'copy')]
  await writeFile(image, randomBytes(24 * 1024 * 1024))
  await nbdkit(t, join(folder, 'far'), ['file', image])
  const client = await secureTunnelTo(t, join(folder, 'far'), await TestAuthority.make(join(folder, 'ca')))
  const near = await relay(t, { path: join(folder, 'near') })
  near.setTunnel(client)
  await run('nbdcopy', ['--connections=4', `nbd+unix:///?socket=${near.path}`, copy])
  const digest = async (path: string): Promise<string> =>
    createHash('sha256')
      .update(await readFile(path))
      .digest('hex')
  assert.equal(await digest(copy), await digest(image))
  assert.ok(client.stats.bytesIn >= 24 * 1024 * 1024)
})

/** The same over a TCP connection with TLS. */
async function secureTunnelTo(t: TestContext, path: string, authority: TestAuthority): Promise<Tunnel> {
  const tls = await loadCredentials('server', await authority.issue('server', '/CN=localhost'))
  const listener = await listenTunnel(
    { host: '127.0.0.1', port: 0, tls },
    {
      authorize: () => undefined,
      onTunnel: (tunnel) => {
        tunnel.onOpen = (request) => void joinUnix(request, path)
      },
    },
  )
  const client = await dial(`${listener.uri}?pkipath=${await authority.issue('client', '/CN=client')}`)
  t.after(async () => {
    client.destroy()
    await listener.close()
  })
  return client
}

test('a socket that its other side only half closed is not taken for dead', async (t) => {
  const folder = await temporaryFolder(t)
  await echoServer(t, join(folder, 'far'))
  const [client] = await tunnelTo(t, join(folder, 'far'))
  const near = await relay(t, { path: join(folder, 'near') })
  near.setTunnel(client)
  const socket = connect({ path: near.path, allowHalfOpen: true })
  socket.write('one')
  await once(socket, 'data')
  await echoed(socket)
})

test('QEMU goes on reading, without an error, after its tunnel broke in the middle and another one took over', async (t) => {
  if (!requires(t, 'program:qemu-nbd', 'program:nbdcopy', 'program:qemu-storage-daemon')) return
  const folder = await temporaryFolder(t)
  const [image, copy] = [join(folder, 'image'), join(folder, 'copy')]
  await writeFile(image, randomBytes(8 * 1024 * 1024))
  // not nbdkit: 1.32 aborts when a connection breaks with requests under way
  await qemuNbd(t, image, { path: join(folder, 'far') })
  const near = await relay(t, { path: join(folder, 'near') })
  const serve = (server: Tunnel): void => {
    server.onOpen = (request) => void joinUnix(request, join(folder, 'far'))
  }
  // the server's side goes dumb after 3 MB
  const [first, server] = await tunnelPair(t, { faults: {}, faultsBack: { cutAfter: 3_000_000 } })
  serve(server)
  near.setTunnel(first)
  const node = `driver=nbd,node-name=n,export=base,server.type=unix,server.path=${near.path},read-only=on,reconnect-delay=4000000000`
  const at = join(folder, 'qsd')
  await new Server(
    t,
    'qemu-storage-daemon',
    ['--blockdev', node, '--nbd-server', `addr.type=unix,addr.path=${at}`, '--export', 'nbd,id=e,node-name=n,name=x'],
    { path: at },
  ).start()
  const copied = run('nbdcopy', [`nbd+unix:///x?socket=${at}`, copy])
  assert.notEqual(await first.closed, undefined)
  while (near.held === 0) await nextTurn()
  const [second, other] = await tunnelPair(t)
  serve(other)
  near.setTunnel(second)
  await copied
  assert.ok((await readFile(copy)).equals(await readFile(image)))
})
