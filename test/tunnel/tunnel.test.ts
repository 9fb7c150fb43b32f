import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { test } from 'node:test'
import type { Channel } from '../../src/tunnel/channel.js'
import { TunnelError } from '../../src/tunnel/error.js'
import { Tunnel } from '../../src/tunnel/tunnel.js'
import { pipe } from '../nbd/pipe.js'
import { readAll, socketPair, tunnelOver, tunnelPair } from './pair.js'

test('either side opens channels, with parameters both ways', async (t) => {
  const [client, server] = await tunnelPair(t, {
    client: { token: 'abc', params: { host: 'a' } },
    server: { authorize: ({ token, params }) => ({ saw: token, from: params['host'] }) },
  })
  assert.deepEqual(client.params, { saw: 'abc', from: 'a' })
  assert.deepEqual(server.params, { host: 'a' })
  for (const [from, to] of [
    [client, server],
    [server, client],
  ] as const) {
    to.onOpen = (request) => {
      request.accept({ size: 7 }).end(`${request.service} ${JSON.stringify(request.params)}`)
    }
    const channel = await from.open('nbd:1', { disk: 'vda' })
    assert.deepEqual(channel.reply, { size: 7 })
    channel.end()
    assert.equal((await readAll(channel)).toString(), 'nbd:1 {"disk":"vda"}')
  }
})

test('many channels carry many bytes at the same time, each byte where it belongs', async (t) => {
  const [client, server] = await tunnelPair(t, { faults: { pieces: 10_007 } })
  server.onOpen = (request) => {
    const channel = request.accept()
    channel.pipe(channel)
  }
  const sent = Array.from({ length: 12 }, (_, i) => randomBytes(i * 150_001))
  const got = await Promise.all(
    sent.map(async (bytes) => {
      const channel = await client.open('echo')
      channel.end(bytes)
      return await readAll(channel)
    }),
  )
  const digest = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex')
  assert.deepEqual(got.map(digest), sent.map(digest))
  assert.equal(client.stats.bytesOut, server.stats.bytesIn)
  assert.deepEqual(client.stats.channels, [])
})

test('a refused channel rejects with the reason of the other side', async (t) => {
  const [client, server] = await tunnelPair(t)
  server.onOpen = (request) => request.refuse('no such disk')
  await assert.rejects(client.open('x'), { code: 'ECONNREFUSED', message: 'no such disk' })
  server.onOpen = () => Promise.reject(new Error('not now'))
  await assert.rejects(client.open('x'), { code: 'ECONNREFUSED', message: 'not now' })
  await assert.rejects(client.open('x'.repeat(256)), { code: 'EINVAL' })
  assert.equal(typeof (await client.ping()), 'number')
})

test('a client that is not let in learns why, and so does the server', async () => {
  const [near, far] = pipe()
  const results = await Promise.allSettled([
    Tunnel.client(near, { token: 'old' }),
    Tunnel.server(far, {
      authorize: () => {
        throw new Error('the token is not known')
      },
    }),
  ])
  for (const result of results) {
    assert.ok(result.status === 'rejected' && result.reason instanceof TunnelError)
    assert.equal(result.reason.code, 'EACCES')
    assert.equal(result.reason.message, 'the token is not known')
  }
})

test('closing waits for the channels that are open, and opens no more', async (t) => {
  const [client, server] = await tunnelPair(t)
  server.onOpen = (request) => void request.accept().end('bye')
  const channel = await client.open('last')
  const closing = server.close()
  await client.ping()
  await assert.rejects(client.open('more'), { code: 'ESHUTDOWN' })
  channel.end()
  assert.equal((await readAll(channel)).toString(), 'bye')
  await closing
  assert.equal(await client.closed, undefined)
  assert.equal(await server.closed, undefined)
})

test('a link that breaks ends channels, openings and pings with one error', async (t) => {
  const [near, far] = pipe()
  const [client, server] = await Promise.all([Tunnel.client(near), Tunnel.server(far, { authorize: () => undefined })])
  t.after(() => server.destroy())
  server.onOpen = (request) => {
    if (request.service === 'open') request.accept()
  }
  const channel = await client.open('open')
  const broken = new Promise((resolve) => channel.once('close', resolve))
  const opening = assert.rejects(client.open('never answered'), { code: 'ECONNRESET' })
  near.destroy()
  await opening
  await broken
  assert.ok(channel.errored instanceof TunnelError)
  await assert.rejects(client.ping(), { code: 'ECONNRESET' })
  assert.equal((await client.closed)?.code, 'ECONNRESET')
  assert.equal((await server.closed)?.code, 'ECONNRESET')
})

test('a consumer that does not read holds up its own channel, and nobody else', async (t) => {
  const [client, server] = await tunnelPair(t)
  const accepted: Channel[] = []
  server.onOpen = (request) => {
    const channel = request.accept()
    accepted.push(channel)
    if (request.service === 'echo') channel.pipe(channel)
  }
  const [stuck, echo] = [await client.open('stuck'), await client.open('echo')]
  const sent = randomBytes(4 << 20)
  stuck.write(sent)
  stuck.end()
  const bytes = randomBytes(4 << 20)
  echo.end(bytes)
  assert.ok((await readAll(echo)).equals(bytes))
  const held = client.stats.channels.find(({ service }) => service === 'stuck')
  assert.ok(held !== undefined && held.bytesOut <= held.window + (1 << 18), JSON.stringify(held))
  const [consumer] = accepted
  assert.ok(consumer !== undefined)
  consumer.end()
  assert.ok((await readAll(consumer)).equals(sent))
})

test('small requests are answered while bulk goes on in both directions', async (t) => {
  const [near, far] = await socketPair(t)
  const [client, server] = await tunnelOver(t, [near, far])
  server.onOpen = (request) => {
    const channel = request.accept()
    if (request.service === 'echo') channel.pipe(channel)
    else channel.resume()
  }
  client.onOpen = (request) => void request.accept().resume()
  const bulk = [await client.open('bulk'), await server.open('bulk')]
  let going = true
  const flood = (channel: Channel): void => {
    while (going && channel.write(block));
    if (going) channel.once('drain', () => flood(channel))
  }
  const block = Buffer.alloc(64 * 1024)
  bulk.forEach(flood)
  const echo = await client.open('echo')
  const answers: Buffer[] = []
  const requests: Buffer[] = []
  await new Promise<void>((resolve) => {
    const ask = (): void => {
      requests.push(randomBytes(64))
      echo.write(requests.at(-1))
    }
    echo.on('data', (bytes: Buffer) => {
      answers.push(bytes)
      const length = answers.reduce((sum, part) => sum + part.length, 0)
      if (length < requests.length * 64) return
      if (requests.length === 200) resolve()
      else ask()
    })
    ask()
  })
  assert.ok(Buffer.concat(answers).equals(Buffer.concat(requests)))
  going = false
})
