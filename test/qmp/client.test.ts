import assert from 'node:assert/strict'
import { test } from 'node:test'
import { QmpClient } from '../../src/qmp/client.js'
import { QmpClosedError, QmpError, QmpTimeoutError } from '../../src/qmp/error.js'
import { QmpPeer } from './peer.js'

const QUICK = { timeout: 5_000 }

test('a command resolves to what QEMU returns', async () => {
  const peer = new QmpPeer().expect('query-status', () => ({ return: { running: true } }))
  const client = await QmpClient.connect(peer.stream, QUICK)
  assert.deepEqual(await client.execute('query-status', undefined, QUICK), { running: true })
  peer.done()
})

test('replies find their commands in any order', async () => {
  const late: (() => void)[] = []
  const peer = new QmpPeer()
  peer.expect('first', (command) => {
    late.push(() => peer.say({ return: 1, id: command.id }))
    return undefined
  })
  peer.expect('second', () => ({ return: 2 }))
  const client = await QmpClient.connect(peer.stream, QUICK)
  const first = client.execute('first', undefined, QUICK)
  assert.equal(await client.execute('second', undefined, QUICK), 2)
  late[0]?.()
  assert.equal(await first, 1)
  peer.done()
})

test("QEMU's own error comes back with its class and words", async () => {
  const error = { class: 'DeviceNotFound', desc: "Device 'x' not found" }
  const peer = new QmpPeer().expect('eject', () => ({ error }))
  const client = await QmpClient.connect(peer.stream, QUICK)
  await assert.rejects(client.execute('eject', {}, QUICK), (thrown) => {
    assert.ok(thrown instanceof QmpError)
    assert.equal(thrown.class, 'DeviceNotFound')
    assert.equal(thrown.message, "Device 'x' not found")
    assert.equal(thrown.command, 'eject')
    return true
  })
})

test('a command without an answer ends at the deadline that its caller chose, and a late answer is reported', async () => {
  const anomalies: string[] = []
  let answer: () => void = () => assert.fail('never asked')
  const peer = new QmpPeer()
  peer.expect('stop', (command) => {
    answer = () => peer.say({ return: {}, id: command.id })
    return undefined
  })
  peer.expect('query-status', () => ({ return: {} }))
  const client = await QmpClient.connect(peer.stream, { ...QUICK, onAnomaly: (what) => anomalies.push(what) })
  await assert.rejects(client.execute('stop', undefined, { timeout: 20 }), QmpTimeoutError)
  answer()
  await client.execute('query-status', undefined, QUICK)
  assert.equal(anomalies.length, 1)
  assert.match(anomalies[0] ?? '', /late reply/)
})

test('every waiter learns that the connection is lost, and so does who comes later', async () => {
  const closed: (Error | undefined)[] = []
  const peer = new QmpPeer().expect('a', () => undefined).expect('b', () => undefined)
  const client = await QmpClient.connect(peer.stream, { ...QUICK, onClose: (reason) => closed.push(reason) })
  const waiting = [client.execute('a', undefined, QUICK), client.execute('b', undefined, QUICK)]
  peer.stream.push(null)
  for (const waiter of waiting) await assert.rejects(waiter, QmpClosedError)
  await assert.rejects(client.execute('c', undefined, QUICK), QmpClosedError)
  assert.equal(closed.length, 1)
  assert.ok(closed[0] instanceof QmpClosedError)
})

const said = (...messages: object[]): string => messages.map((message) => JSON.stringify(message) + '\r\n').join('')
const event = (name: string): object => ({ event: name, data: {}, timestamp: { seconds: 1, microseconds: 2 } })

test('who gets an answer acts on it before an event is heard that was said after it, also when both come at once', async () => {
  const heard: string[] = []
  const peer = new QmpPeer().expect('query-status', ({ id }) => {
    peer.stream.push(said(event('RESUME'), { return: { running: true }, id }, event('STOP'), event('SHUTDOWN')))
    return undefined
  })
  const client = await QmpClient.connect(peer.stream, { ...QUICK, onEvent: (one) => heard.push(one.event) })
  const work = async (): Promise<void> => {
    await client.execute('query-status', undefined, QUICK)
    heard.push('answer')
  }
  await work().then(() => heard.push('done'))
  peer.event('RESET')
  await client.execute('gone', undefined, { timeout: 20 }).catch(() => undefined)
  assert.deepEqual(heard, ['RESUME', 'answer', 'done', 'STOP', 'SHUTDOWN', 'RESET'])
})

test('what was said before the connection ended is heard before its end', async () => {
  const heard: string[] = []
  const peer = new QmpPeer().expect('quit', ({ id }) => {
    peer.stream.push(said({ return: {}, id }, event('SHUTDOWN')))
    peer.stream.push(null)
    return undefined
  })
  const options = { onEvent: (one: { event: string }) => heard.push(one.event), onClose: () => heard.push('end') }
  const client = await QmpClient.connect(peer.stream, { ...QUICK, ...options })
  await client.execute('quit', undefined, QUICK)
  while (!client.isClosed) await new Promise((resolve) => setImmediate(resolve))
  assert.deepEqual(heard, ['SHUTDOWN', 'end'])
})

test('closing on our side is not reported as a loss', async () => {
  const closed: (Error | undefined)[] = []
  const peer = new QmpPeer()
  const client = await QmpClient.connect(peer.stream, { ...QUICK, onClose: (reason) => closed.push(reason) })
  client.close()
  assert.deepEqual(closed, [undefined])
})

test('events come in order, also those before the greeting is answered', async () => {
  const events: string[] = []
  const peer = new QmpPeer()
  peer.event('EARLY')
  const client = await QmpClient.connect(peer.stream, { ...QUICK, onEvent: (event) => events.push(event.event) })
  peer.expect('x', () => {
    peer.event('STOP')
    peer.event('RESUME')
    return { return: {} }
  })
  await client.execute('x', undefined, QUICK)
  assert.deepEqual(events, ['EARLY', 'STOP', 'RESUME'])
})

test('a peer that never greets is given up at the deadline', async () => {
  const peer = new QmpPeer({ greet: false })
  await assert.rejects(QmpClient.connect(peer.stream, { timeout: 20 }), QmpTimeoutError)
  assert.ok(peer.stream.destroyed)
})

test('a line that is no message is reported and the next one is read', async () => {
  const anomalies: string[] = []
  const peer = new QmpPeer()
  peer.expect('x', (command) => {
    peer.stream.push('{"half": \r\n[1]\r\n')
    peer.say({ return: {}, id: 'somebody-else' })
    return { return: command.execute }
  })
  const client = await QmpClient.connect(peer.stream, { ...QUICK, onAnomaly: (what) => anomalies.push(what) })
  assert.equal(await client.execute('x', undefined, QUICK), 'x')
  assert.equal(anomalies.length, 3)
})

test('descriptors travel with the line that names them, and never past unsent bytes', async () => {
  const sent: { line: string; fds: readonly number[] }[] = []
  const peer = new QmpPeer()
  const client = await QmpClient.connect(peer.stream, {
    ...QUICK,
    sendWithFds: (line, fds) => {
      sent.push({ line: line.toString(), fds })
      const { id } = JSON.parse(line.toString()) as { id: string }
      peer.say({ return: {}, id })
    },
  })
  await client.execute('getfd', { fdname: 'x' }, { timeout: 1000, fds: [7] })
  assert.equal(sent.length, 1)
  assert.deepEqual(sent[0]?.fds, [7])
  assert.match(sent[0].line, /"getfd".*\r\n$/s)
})

test('a connection that cannot pass descriptors says so', async () => {
  const peer = new QmpPeer()
  const client = await QmpClient.connect(peer.stream, QUICK)
  await assert.rejects(client.execute('getfd', { fdname: 'x' }, { timeout: 1000, fds: [7] }), QmpClosedError)
})
