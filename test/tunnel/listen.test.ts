import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, statSync } from 'node:fs'
import { connect, createServer, type AddressInfo } from 'node:net'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { dial } from '../../src/tunnel/dial.js'
import { TunnelError } from '../../src/tunnel/error.js'
import { listenTunnel, type ListenAddress, type ListenOptions, type TunnelListener } from '../../src/tunnel/listen.js'
import { loadCredentials } from '../../src/tunnel/pki.js'
import { Tokens } from '../../src/tunnel/tokens.js'
import { temporaryFolder } from '../support/images.js'
import { requires } from '../support/requires.js'
import { readAll } from './pair.js'
import { TestAuthority } from './pki.js'

/** A listener that lets everybody in and echoes channels. */
async function echoing(
  t: TestContext,
  address: ListenAddress,
  options: Partial<ListenOptions> = {},
): Promise<TunnelListener> {
  const listener = await listenTunnel(address, {
    authorize: () => undefined,
    onTunnel: (tunnel) => {
      tunnel.onOpen = (request) => {
        const channel = request.accept()
        channel.pipe(channel)
      }
    },
    ...options,
  })
  t.after(async () => {
    for (const tunnel of listener.tunnels) tunnel.destroy()
    await listener.close()
  })
  return listener
}

async function echoes(t: TestContext, uri: string, options?: Parameters<typeof dial>[1]): Promise<void> {
  const tunnel = await dial(uri, options)
  t.after(() => tunnel.destroy())
  const channel = await tunnel.open('echo')
  const bytes = randomBytes(1_000_000)
  channel.end(bytes)
  assert.ok((await readAll(channel)).equals(bytes))
  await tunnel.close()
}

test('a tunnel over a unix socket that is its owner’s only', async (t) => {
  const path = join(await temporaryFolder(t), 'tunnel.sock')
  const listener = await echoing(t, { unix: path })
  assert.equal(statSync(path).mode & 0o777, 0o600)
  assert.equal(listener.uri, `virstream+unix://${path}`)
  await echoes(t, listener.uri)
  await listener.close()
  assert.ok(!existsSync(path))
  await assert.rejects(dial(listener.uri), { code: 'ECONNREFUSED' })
})

test('a token lets in once, and only while it is fresh', async (t) => {
  const tokens = new Tokens<string>()
  const listener = await echoing(
    t,
    { host: '127.0.0.1', port: 0 },
    {
      authorize: ({ token }) => {
        const context = tokens.redeem(token)
        if (context === undefined) throw new Error('the token is not valid')
        return { migration: context }
      },
    },
  )
  const token = tokens.issue('m1')
  const tunnel = await dial(listener.uri, { token })
  t.after(() => tunnel.destroy())
  assert.deepEqual(tunnel.params, { migration: 'm1' })
  const refused = { code: 'EACCES', message: 'the token is not valid' }
  await assert.rejects(dial(listener.uri, { token }), refused)
  await assert.rejects(dial(listener.uri, { token: tokens.issue('m2', -1) }), refused)
  await assert.rejects(dial(listener.uri), refused)
  assert.equal(typeof (await tunnel.ping()), 'number')
})

test('TLS needs certificates of the same authority, the name of the host and a name that may connect', async (t) => {
  if (!requires(t, 'program:openssl')) return
  const folder = await temporaryFolder(t)
  const authority = await TestAuthority.make(join(folder, 'ca'))
  const stranger = await TestAuthority.make(join(folder, 'other'))
  const tls = await loadCredentials('server', await authority.issue('server', '/CN=localhost'))
  const listener = await echoing(t, { host: '127.0.0.1', port: 0, tls }, { allowedDns: ['O=Example*,CN=good?'] })
  const uri = async (by: TestAuthority, subject: string): Promise<string> =>
    `${listener.uri}?pkipath=${await by.issue('client', subject)}`
  await echoes(t, await uri(authority, '/O=Example, Inc./CN=good1'))
  await assert.rejects(dial(await uri(authority, '/O=Example/CN=bad')), {
    code: 'EACCES',
    message: "'O=Example,CN=bad' may not connect",
  })
  await assert.rejects(dial(await uri(stranger, '/O=Example/CN=good2')), { code: 'EACCES' })
  const elsewhere = await loadCredentials('server', await authority.issue('server', '/CN=elsewhere', 'DNS:elsewhere'))
  const other = await echoing(t, { host: '127.0.0.1', port: 0, tls: elsewhere })
  const client = await loadCredentials('client', await authority.issue('client', '/CN=client'))
  await assert.rejects(dial(other.uri, { credentials: client }), { code: 'EACCES' })
})

test('a client without a certificate, or without TLS, does not get in', async (t) => {
  if (!requires(t, 'program:openssl')) return
  const folder = await temporaryFolder(t)
  const authority = await TestAuthority.make(folder)
  const stranger = await TestAuthority.make(join(folder, 'other'))
  const tls = await loadCredentials('server', await authority.issue('server', '/CN=localhost'))
  const refusals: TunnelError[] = []
  const listener = await echoing(
    t,
    { host: '127.0.0.1', port: 0, tls },
    { onRefused: (error) => void refusals.push(error) },
  )
  const { cert, key } = await loadCredentials('client', await stranger.issue('client', '/CN=client'))
  const credentials = { ca: tls.ca, cert, key }
  await assert.rejects(dial(listener.uri, { credentials }), TunnelError)
  const plain = listener.uri.replace('+tls', '+tcp')
  await assert.rejects(dial(plain), TunnelError)
  assert.deepEqual(
    refusals.map(({ code }) => code),
    ['EACCES', 'EACCES'],
  )
})

test('without TLS nothing leaves the machine', async () => {
  const options = { authorize: () => undefined, onTunnel: () => undefined }
  await assert.rejects(listenTunnel({ host: '0.0.0.0', port: 0 }, options), { code: 'EINVAL' })
  await assert.rejects(dial('virstream+tcp://192.0.2.1/'), { code: 'EINVAL' })
})

test('connections that never say hello make room for those that do', async (t) => {
  const listener = await echoing(t, { host: '127.0.0.1', port: 0 }, { maxPending: 4, helloTimeout: 60_000 })
  const { port = 0 } = listener
  const idle = await Promise.all(
    Array.from({ length: 12 }, async () => {
      const socket = connect({ port, host: '127.0.0.1' })
      t.after(() => socket.destroy())
      await once(socket, 'connect')
      socket.write(Buffer.from([1]))
      return socket
    }),
  )
  await echoes(t, listener.uri)
  for (const socket of idle.slice(0, 8)) if (!socket.closed) await once(socket.resume(), 'close')
})

test('who gives up dialling while certificates are read waits for nobody', async (t) => {
  if (!requires(t, 'program:openssl')) return
  const authority = await TestAuthority.make(join(await temporaryFolder(t), 'pki'))
  const pkipath = await authority.issue('client', '/CN=client')
  // it takes connections, and says nothing
  const server = createServer((socket) => socket.on('error', () => undefined)).listen(0, '127.0.0.1')
  t.after(() => void server.close())
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const controller = new AbortController()
  const dialled = dial(`virstream+tls://127.0.0.1:${port}/?pkipath=${pkipath}`, {
    connectTimeout: 2 ** 31 - 1,
    signal: controller.signal,
  })
  controller.abort(new Error('not wanted any more'))
  await assert.rejects(dialled, { message: 'not wanted any more' })
})

test('a hello that takes too long, and one that is garbage, are told why', async (t) => {
  const address = { host: '127.0.0.1', port: 0 }
  const cases = [
    { bytes: '', helloTimeout: 50, code: 'ETIMEDOUT', says: /there was no hello within 50 ms/ },
    { bytes: 'GET / HTTP/1.1\r\n\r\n', helloTimeout: 60_000, code: 'EPROTO', says: /there is no frame of type 71/ },
  ]
  for (const { bytes, helloTimeout, code, says } of cases) {
    const refusals: string[] = []
    const listener = await echoing(t, address, { helloTimeout, onRefused: (error) => void refusals.push(error.code) })
    const socket = connect({ port: listener.port ?? 0, host: address.host })
    socket.write(bytes)
    assert.match((await readAll(socket)).toString('latin1'), says)
    assert.deepEqual(refusals, [code])
  }
})
