import assert from 'node:assert/strict'
import { test } from 'node:test'
import { frame, frameTypes } from '../../src/tunnel/framing.js'
import { acceptPayload, creditPayload, helloPayload, openPayload, type Hello } from '../../src/tunnel/payloads.js'
import { channelOf, end, framesOf, objection, opened, settle, typeName } from './sessions.js'

const floor = 256 * 1024

function nothing(): void {
  // nobody waits
}

function hello(part: Partial<Hello> = {}): Buffer {
  return frame(frameTypes.hello, 0, helloPayload({ version: 1, oldest: 1, token: '', params: {}, ...part }))
}

test('versions: newer peers that still speak ours are welcome, others are told which there are', () => {
  assert.equal(objection(end('server', { now: 0 }), hello({ version: 9 })), undefined)
  assert.match(
    objection(end('server', { now: 0 }), hello({ version: 9, oldest: 2 })) ?? '',
    /^EPROTO versions 2 to 9 .* 1 to 1/,
  )
  assert.match(objection(end('client', { now: 0 }), hello({ version: 0, oldest: 0 })) ?? '', /^EPROTO versions 0 to 0/)
})

test('nothing but a hello is taken before the hello, and nothing more until the server has answered', () => {
  const ping = frame(frameTypes.ping, 0, Buffer.alloc(8))
  assert.equal(objection(end('server', { now: 0 }), ping), 'EPROTO there was no hello')
  assert.equal(objection(end('server', { now: 0 }), hello(), ping), 'EPROTO there was no hello')
  const [client, server] = opened()
  assert.equal(objection(server, hello()), 'EPROTO a second hello')
  assert.equal(
    objection(client, frame(frameTypes.refuse, 0, Buffer.from('why'))),
    'ECONNRESET the other side gave up: why',
  )
})

test('a channel carries no more than its window until the consumer has taken something', () => {
  const [client, server] = opened({ now: 0 }, {}, false)
  const id = channelOf(client, server)
  let written = 0
  client.session.channels.send(id, [Buffer.alloc(floor + 1)], () => (written += 1))
  settle(client, server)
  assert.equal(server.got.get(id), floor)
  assert.equal(written, 0)
  server.session.channels.taken(id, floor / 8)
  settle(client, server)
  assert.equal(server.got.get(id), floor, 'credit for an eighth of the window is not worth a frame')
  server.session.channels.taken(id, floor / 8)
  settle(client, server)
  assert.equal(server.got.get(id), floor + 1)
  assert.equal(written, 1)
})

test('ends are half closes, and a channel is over when both sides have ended', () => {
  const [client, server] = opened()
  const id = channelOf(client, server)
  client.session.channels.finish(id, nothing)
  settle(client, server)
  server.session.channels.send(id, [Buffer.alloc(10)], nothing)
  settle(client, server)
  assert.equal(client.got.get(id), 10)
  assert.equal(client.session.channels.size, 1)
  server.session.channels.finish(id, nothing)
  settle(client, server)
  assert.deepEqual([client.session.channels.size, server.session.channels.size], [0, 0])
  assert.deepEqual([client.log.at(-1), server.log.at(-1)], [`end ${id}`, `end ${id}`])
})

test('a reset drops what waits, and frames that were under way do no harm', () => {
  const [client, server] = opened()
  const id = channelOf(client, server)
  client.session.channels.send(id, [Buffer.alloc(floor * 2)], () => assert.fail('it was never sent'))
  const data = client.session.pull(100_000)
  server.session.channels.reset(id, 'enough')
  server.session.receive(Buffer.concat(data))
  settle(client, server)
  assert.equal(client.log.at(-1), `reset ${id} enough`)
  assert.equal(server.got.get(id), undefined)
  assert.throws(() => client.session.channels.send(id, [Buffer.alloc(1)], nothing), { code: 'ECONNRESET' })
})

test('short frames go first, then channels that begin to send, then those that go on', () => {
  const [client, server] = opened()
  const [bulk, other] = [channelOf(client, server, 'bulk'), channelOf(client, server, 'small')]
  client.session.channels.send(bulk, [Buffer.alloc(200_000)], nothing)
  framesOf(client.session.pull(80_000)) // the bulk is in full swing
  client.session.channels.send(other, [Buffer.alloc(64)], nothing)
  client.session.ping()
  const order = framesOf(client.session.pull(100_000)).map(({ type, channel }) => `${typeName(type)} ${channel}`)
  assert.deepEqual(order.slice(0, 3), ['ping 0', `data ${other}`, `data ${bulk}`])
})

test('channels that send much take turns', () => {
  const [client, server] = opened()
  const ids = [1, 2, 3].map(() => channelOf(client, server))
  for (const id of ids) client.session.channels.send(id, [Buffer.alloc(floor)], nothing)
  const sent = new Map(ids.map((id) => [id, 0]))
  for (const { channel, payload } of framesOf(client.session.pull(floor * 1.5)))
    sent.set(channel, (sent.get(channel) ?? 0) + payload.length)
  for (const bytes of sent.values()) assert.ok(Math.abs(bytes - floor / 2) <= 64 * 1024, `${bytes} of ${floor / 2}`)
})

test('a silent link is dead after the timeout, and one that says anything is not', () => {
  const [client, server] = opened({ now: 0 }, { pingInterval: 100, timeout: 300 })
  for (let i = 0; i < 10; i++) {
    client.session.tick()
    settle(client, server)
  }
  client.session.tick()
  client.session.tick()
  assert.throws(
    () => {
      client.session.tick()
      client.session.tick()
    },
    { code: 'ETIMEDOUT', message: 'nothing was heard from the other side for 300 ms' },
  )
})

test('after a goodbye channels go on, but no new ones come', () => {
  const [client, server] = opened()
  const id = channelOf(client, server)
  const late = client.session.open('late', {})
  server.session.goaway('maintenance')
  settle(client, server)
  assert.deepEqual(client.log.slice(-2), ['goaway maintenance', `refused ${late} the tunnel is closing`])
  assert.throws(() => client.session.open('more', {}), { code: 'ESHUTDOWN' })
  assert.throws(() => server.session.open('more', {}), { code: 'ESHUTDOWN' })
  client.session.channels.send(id, [Buffer.alloc(5)], nothing)
  settle(client, server)
  assert.equal(server.got.get(id), 5)
})

test('there are only so many channels at a time', () => {
  const [client, server] = opened({ now: 0 }, { maxChannels: 2 })
  const first = channelOf(client, server)
  channelOf(client, server)
  assert.throws(() => client.session.open('third', {}), { code: 'ECONNREFUSED' })
  const greedy = frame(frameTypes.open, 5, openPayload({ window: 1, service: 'third', params: {} }))
  assert.equal(objection(server, greedy), undefined)
  assert.deepEqual(
    framesOf(server.session.pull(1)).map(({ type }) => typeName(type)),
    ['refuse'],
  )
  client.session.channels.reset(first, 'room')
  settle(client, server)
  assert.equal(server.session.channels.size, 1)
})

test('what breaks the rules ends the session', () => {
  const open = (id: number): Buffer => frame(frameTypes.open, id, openPayload({ window: 1, service: 'y', params: {} }))
  const data = (id: number, size = 1): Buffer => frame(frameTypes.data, id, Buffer.alloc(size))
  const accept = frame(frameTypes.accept, 1, acceptPayload({ window: 1, params: {} }))
  const cases: [what: string, frames: Buffer[], says: RegExp][] = [
    ['a number of the server', [open(2)], /not to be opened/],
    ['a number twice', [open(1)], /not to be opened/],
    ['data on a channel that never was', [data(3)], /never opened/],
    ['data before the answer', [open(3), data(3)], /before it was accepted/],
    ['more than the window', [data(1, floor), data(1)], /more than it may/],
    ['data after the end', [frame(frameTypes.fin, 1), data(1)], /after its end/],
    ['a second answer', [accept], /answered already/],
    ['a PONG for nothing', [frame(frameTypes.pong, 0, Buffer.alloc(8))], /PONG/],
  ]
  for (const [what, frames, says] of cases) {
    const [client, server] = opened({ now: 0 }, {}, false)
    assert.equal(channelOf(client, server), 1)
    assert.match(objection(server, ...frames) ?? 'nothing', says, what)
  }
})

test('a peer that makes us answer and does not read is cut off', () => {
  const [, server] = opened()
  const pings = Buffer.concat(Array.from({ length: 1000 }, () => frame(frameTypes.ping, 0, Buffer.alloc(8))))
  const objections = Array.from({ length: 200 }, () => objection(server, pings)).filter((what) => what !== undefined)
  assert.match(objections[0] ?? '', /does not read/)
})

test('credit beyond all reason is refused, credit for what is closed is not', () => {
  const [client, server] = opened()
  const id = channelOf(client, server)
  const credit = frame(frameTypes.credit, id, creditPayload(0x7fffffff - floor))
  assert.equal(objection(client, credit), undefined)
  assert.match(objection(client, credit) ?? 'nothing', /too much credit/)
  const [other, peer] = opened()
  other.session.channels.reset(channelOf(other, peer), 'gone')
  assert.equal(objection(other, credit, credit), undefined)
})

test('a channel can be accepted with a window of its own', () => {
  const [client, server] = opened({ now: 0 }, {}, false)
  const id = client.session.open('x', {})
  settle(client, server)
  server.session.channels.accept(id, {}, { floor: 64 * 1024 })
  settle(client, server)
  client.session.channels.send(id, [Buffer.alloc(1 << 20)], () => undefined)
  settle(client, server)
  assert.equal(server.got.get(id), 64 * 1024)
  assert.equal(server.session.channels.figures(id)?.window, 64 * 1024)
  server.session.channels.taken(id, 64 * 1024)
  settle(client, server)
  assert.equal(server.got.get(id), 128 * 1024)
})
