/** A daemon on TLS: who is let in, and that nobody else is in their way. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { rename } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { Connect } from '../../src/index.js'
import { testDriver } from '../../src/test-driver/driver.js'
import { refused } from '../driver/support.js'
import { requires } from '../support/requires.js'
import { TestAuthority } from '../tunnel/pki.js'
import { testDaemon, testFolder } from './support.js'

interface Secured {
  /** of the daemon's TLS port, without certificates */
  uri: string
  port: number
  authority: TestAuthority
  folder: string
}

async function secured(t: TestContext, allowedDns?: string[]): Promise<Secured> {
  const folder = await testFolder(t)
  const authority = await TestAuthority.make(join(folder, 'ca'))
  const pki = await authority.issue('server', '/CN=server')
  const { daemon } = await testDaemon(t, testDriver, { listen: ['tls://127.0.0.1:0'], unix: [], pki, allowedDns })
  const [uri = ''] = daemon.uris
  return { uri, port: Number(new URL(uri).port), authority, folder }
}

const withPki = (uri: string, pkipath: string): string => `${uri}?pkipath=${encodeURIComponent(pkipath)}`

test('a client with a certificate of the same authority is let in, and its calls are answered', async (t) => {
  if (!requires(t, 'program:openssl')) return
  const { uri, authority } = await secured(t, ['CN=ali*'])
  const own = await authority.issue('client', '/CN=alice')
  await using conn = await Connect.open(withPki(uri, own))
  assert.deepEqual(
    (await conn.listAllDomains()).map(({ name }) => name),
    ['test'],
  )
  const mallory = await authority.issue('client', '/CN=mallory')
  await refused(Connect.open(withPki(uri, mallory)), 'VIR_ERR_AUTH_FAILED', /'CN=mallory' may not connect/)
})

test('certificates of another authority are trusted by neither side', async (t) => {
  if (!requires(t, 'program:openssl')) return
  const { uri, authority, folder } = await secured(t)
  const stranger = await TestAuthority.make(join(folder, 'other'), 'Other CA')
  const foreign = await stranger.issue('client', '/CN=alice')
  await refused(Connect.open(withPki(uri, foreign)), 'VIR_ERR_AUTH_FAILED')
  // one that trusts our server, but that our server does not trust
  const ours = await authority.issue('client', '/CN=bob')
  await rename(join(ours, 'cacert.pem'), join(foreign, 'cacert.pem'))
  await assert.rejects(Connect.open(withPki(uri, foreign)), { name: 'VirError' })
  await refused(Connect.open(withPki(uri, join(folder, 'nothing'))), 'VIR_ERR_INVALID_ARG', /cacert\.pem/)
})

test('garbage on the port and connections that say nothing keep nobody out', async (t) => {
  if (!requires(t, 'program:openssl')) return
  const { uri, port, authority } = await secured(t)
  const own = await authority.issue('client', '/CN=alice')
  const rude: Socket[] = []
  t.after(() => rude.forEach((socket) => socket.destroy()))
  for (let count = 0; count < 50; count += 1) {
    const socket = connect(port, '127.0.0.1').on('error', () => undefined)
    await once(socket, 'connect')
    if (count % 2 === 0) socket.write(randomBytes(1000))
    rude.push(socket)
  }
  await using conn = await Connect.open(withPki(uri, own))
  assert.equal((await conn.listAllDomains()).length, 1)
})

test('an address that is none, and a port in the open without TLS, are refused', async (t) => {
  await refused(testDaemon(t, testDriver, { listen: ['http://x'] }), 'VIR_ERR_INVALID_ARG', /not an address/)
  await refused(testDaemon(t, testDriver, { listen: ['tcp://0.0.0.0'] }), 'VIR_ERR_INVALID_ARG', /needs TLS/)
  const pki = await testFolder(t)
  await refused(testDaemon(t, testDriver, { listen: ['tls://'], pki }), 'VIR_ERR_SYSTEM_ERROR', /cacert\.pem/)
})
