/** The source's end of a migration's connection. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { MigrationLink, SERVICE, UNKNOWN_HERE, UnknownThereError, type LinkOptions } from '../../src/migration/link.js'
import { listenTunnel } from '../../src/tunnel/listen.js'
import type { ChannelRequest } from '../../src/tunnel/requests.js'
import type { Tunnel } from '../../src/tunnel/tunnel.js'
import { temporaryFolder } from '../support/images.js'
import { until } from '../support/domain.js'
import { tunnelPair } from '../tunnel/pair.js'

function linkTo(options: Pick<LinkOptions, 'uri'> & Partial<LinkOptions>): MigrationLink {
  return new MigrationLink({
    ...{ id: 'id', key: 'key' },
    onOpen: (request) => request.refuse('no'),
    onRequest: () => ({}),
    onRestored: () => undefined,
    warn: (text) => assert.fail(text),
    ...options,
  })
}

test('a link that is ended while it is being made leaves no connection', async (t) => {
  const path = join(await temporaryFolder(t), 'sock')
  const tunnels: Tunnel[] = []
  const onTunnel = (tunnel: Tunnel): void => {
    tunnel.onOpen = (request) => void request.accept().resume()
    tunnels.push(tunnel)
  }
  const listener = await listenTunnel({ unix: path }, { authorize: () => undefined, onTunnel })
  t.after(() => listener.close())
  const link = linkTo({ uri: listener.uri })
  const made = link.connect()
  link.destroy()
  await assert.rejects(made, /was closed/)
  assert.equal(link.isUp, false)
  for (const tunnel of tunnels) await tunnel.closed
})

test('a link that is ended while its destination says nothing waits for it no longer', async (t) => {
  const server = createServer().listen(join(await temporaryFolder(t), 'sock'))
  t.after(() => void server.close())
  const taken = once(server, 'connection') as Promise<[Socket]>
  // the time that a destination has for its hello does not go by
  t.mock.timers.enable({ apis: ['setTimeout'] })
  const link = linkTo({ uri: `virstream+unix://${server.address() as string}` })
  const ended = assert.rejects(link.connect(), /was closed/)
  const [socket] = await taken
  link.destroy()
  await once(socket.resume(), 'close', { signal: AbortSignal.timeout(10_000) })
  await ended
})

test('a link that is ended while it is being made leaves no channel on a tunnel that is not its own', async (t) => {
  const [near, far] = await tunnelPair(t)
  const asked = new Promise<ChannelRequest>((resolve) => (far.onOpen = resolve))
  const link = linkTo({ uri: '', tunnel: near })
  const made = link.connect()
  const request = await asked
  link.destroy()
  const channel = request.accept().resume()
  channel.once('end', () => channel.end())
  await assert.rejects(made, /was closed/)
  await near.close()
})

test('a link that somebody else makes anew while it is looked for is restored all the same', async (t) => {
  const path = join(await temporaryFolder(t), 'sock')
  const tunnels: Tunnel[] = []
  const onTunnel = (tunnel: Tunnel): void => {
    tunnel.onOpen = (request) => void request.accept().resume()
    tunnels.push(tunnel)
  }
  const listen = () => listenTunnel({ unix: path }, { authorize: () => undefined, onTunnel })
  const first = await listen()
  const heard: string[] = []
  const link = linkTo({
    uri: first.uri,
    onRestored: () => void heard.push('restored'),
    warn: () => void heard.push('not there'),
  })
  t.after(() => link.destroy())
  await link.connect()
  link.last()
  await first.close()
  tunnels[0]?.destroy()
  // the next look is some time away
  await until('it has been looked for in vain', () => heard.length > 0)
  const second = await listen()
  t.after(() => second.close())
  await link.connect()
  await until('it is known to be restored', () => heard.includes('restored'))
  assert.deepEqual(heard, ['not there', 'restored'])
})

test('migrations that share a tunnel each get their own channels, also when another one has gone', async (t) => {
  const [near, far] = await tunnelPair(t)
  far.onOpen = (request) => void request.accept().resume()
  const taken: string[] = []
  const link = (id: string): MigrationLink =>
    linkTo({
      ...{ id, uri: '', tunnel: near },
      onOpen: (request) => {
        taken.push(id)
        request.accept().destroy()
      },
    })
  const [first, second] = [link('first'), link('second')]
  await first.connect()
  await second.connect()
  for (const id of ['second', 'first']) await far.open(SERVICE.disks, { id })
  first.close()
  await far.open(SERVICE.disks, { id: 'second' })
  await assert.rejects(far.open(SERVICE.disks, { id: 'first' }), /no such migration here/)
  assert.deepEqual(taken, ['second', 'first', 'second'])
})

test('only who says so does not know a migration: one that refuses since it ends may have the guest', async (t) => {
  const [near, far] = await tunnelPair(t)
  const reasons = ['the tunnel is closing', 'there are 256 channels already', UNKNOWN_HERE]
  far.onOpen = (request) => request.refuse(reasons.shift() ?? '')
  const link = linkTo({ uri: '', tunnel: near })
  const unknown: boolean[] = []
  while (reasons.length > 0)
    await assert.rejects(link.connect(), (error) => unknown.push(error instanceof UnknownThereError) > 0)
  assert.deepEqual(unknown, [false, false, true])
})
