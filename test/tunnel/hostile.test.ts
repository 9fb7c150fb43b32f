import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { connect } from 'node:net'
import { join } from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { dial } from '../../src/tunnel/dial.js'
import { TunnelError } from '../../src/tunnel/error.js'
import { frame, frameTypes } from '../../src/tunnel/framing.js'
import { listenTunnel } from '../../src/tunnel/listen.js'
import { creditPayload, helloPayload, openPayload } from '../../src/tunnel/payloads.js'
import { Tunnel } from '../../src/tunnel/tunnel.js'
import { pipe } from '../nbd/pipe.js'
import { temporaryFolder } from '../support/images.js'
import { readAll, tunnelPair } from './pair.js'
import { end, objection } from './sessions.js'

/** Numbers below `below`, the same in every run. */
function numbers(seed: number): (below: number) => number {
  let x = seed
  return (below) => {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    return (x >>> 0) % below
  }
}

/** What a client might say: hello, channels, bytes, ends. */
function transcript(): Buffer[] {
  const open = (id: number): Buffer =>
    frame(frameTypes.open, id, openPayload({ window: 1000, service: `s${id}`, params: { id } }))
  return [
    frame(frameTypes.hello, 0, helloPayload({ version: 1, oldest: 1, token: 'token', params: { a: 1 } })),
    open(1),
    open(3),
    frame(frameTypes.data, 1, Buffer.alloc(100)),
    frame(frameTypes.ping, 0, Buffer.alloc(8)),
    frame(frameTypes.credit, 3, creditPayload(50)),
    frame(frameTypes.fin, 3),
    frame(frameTypes.reset, 1, Buffer.from('why')),
    frame(frameTypes.goaway, 0),
  ]
}

test('whatever a client says, the server objects with a TunnelError or goes on', () => {
  let objections = 0
  for (let seed = 1; seed <= 3000; seed++) {
    const next = numbers(seed)
    const frames = transcript()
    // frames in another order, then bytes that are not what they were
    if (seed % 3 === 0) frames.splice(1 + next(frames.length - 1), 0, ...frames.splice(1 + next(frames.length - 1), 1))
    const bytes = Buffer.concat(frames)
    for (let i = next(4); i > 0; i--) bytes[next(bytes.length)] = next(256)
    const server = end('server', { now: 0 })
    for (let at = 0; at < bytes.length;) {
      const piece = bytes.subarray(at, (at += 1 + next(60)))
      if (objection(server, piece) !== undefined) {
        objections += 1
        break
      }
      for (const line of server.log.splice(0)) {
        const id = Number(/^open (\d+)/.exec(line)?.[1])
        if (line.startsWith('hello')) server.session.welcome({})
        else if (server.session.channels.figures(id) !== undefined) server.session.channels.accept(id, {})
      }
      server.session.pull(1000)
    }
  }
  assert.ok(objections > 1000 && objections < 3000, `${objections}`)
})

test('a link that is cut at any byte leaves nobody waiting', async () => {
  for (let cutAfter = 0; cutAfter < 400; cutAfter += 3) {
    const [near, far] = pipe({ cutAfter }, {})
    const server = Tunnel.server(far, { authorize: () => undefined, onOpen: (request) => void request.accept() })
    const outcome = await Promise.allSettled([use(near), server])
    const [client] = outcome
    if (client.status === 'rejected') assert.ok(client.reason instanceof TunnelError, String(client.reason))
    if (outcome[1].status === 'fulfilled') {
      outcome[1].value.destroy()
      await outcome[1].value.closed
    }
  }
})

async function use(stream: Parameters<typeof Tunnel.client>[0]): Promise<void> {
  const tunnel = await Tunnel.client(stream, { token: 'a token', params: { from: 'here' } })
  try {
    const channel = await tunnel.open('echo')
    channel.write('some bytes')
    channel.destroy()
    await tunnel.ping()
  } finally {
    tunnel.destroy()
  }
}

test('a peer that lets in and then says nothing any more is dead after the timeout', async () => {
  const [near, far] = pipe()
  far.write(frame(frameTypes.hello, 0, helloPayload({ version: 1, oldest: 1, token: '', params: {} })))
  const tunnel = await Tunnel.client(near, { pingInterval: 10, timeout: 50 })
  const opening = assert.rejects(tunnel.open('x'), { code: 'ETIMEDOUT', message: /nothing was heard/ })
  assert.equal((await tunnel.closed)?.code, 'ETIMEDOUT')
  await opening
})

test('a peer that answers lives, however little it has to say', async (t) => {
  const limits = { pingInterval: 20, timeout: 500 }
  const [client, server] = await tunnelPair(t, { client: limits, server: limits })
  await delay(1_200)
  assert.deepEqual([client.isClosed, server.isClosed], [false, false])
})

test('a server that waits for a hello does not wait for ever', async () => {
  const silent = Tunnel.server(pipe()[1], { authorize: () => undefined, helloTimeout: 30 })
  await assert.rejects(silent, { code: 'ETIMEDOUT' })
})

test('two tunnels at one listener do not feel what a hostile third does', async (t) => {
  const path = join(await temporaryFolder(t), 'socket')
  const refused: string[] = []
  const listener = await listenTunnel(
    { unix: path },
    {
      authorize: () => undefined,
      onRefused: ({ code }) => void refused.push(code),
      onTunnel: (tunnel) => {
        tunnel.onOpen = (request) => {
          const channel = request.accept()
          channel.pipe(channel)
        }
      },
    },
  )
  t.after(() => listener.close())
  const tunnels = await Promise.all([dial(listener.uri), dial(listener.uri)])
  const channels = await Promise.all(tunnels.map((tunnel) => tunnel.open('echo')))
  const next = numbers(7)
  for (let i = 0; i < 20; i++) {
    const socket = connect(path)
    socket.on('error', () => undefined)
    const bytes = Buffer.concat(transcript())
    bytes[next(bytes.length)] = next(256)
    socket.end(Buffer.concat([bytes.subarray(0, next(bytes.length)), randomBytes(next(2000))]))
    await once(socket.resume(), 'close')
  }
  for (const channel of channels) {
    const bytes = randomBytes(100_000)
    channel.end(bytes)
    assert.ok((await readAll(channel)).equals(bytes))
  }
  assert.ok(refused.length > 0)
  await Promise.all(tunnels.map((tunnel) => tunnel.close()))
})
