import assert from 'node:assert/strict'
import { createServer, type Socket } from 'node:net'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { decodeRemoteError, encodeMessage, RpcFraming, type RpcMessage } from '../../src/locking/rpc-message.js'
import { VirtlockdClient } from '../../src/locking/virtlockd-client.js'
import { XdrError, XdrWriter } from '../../src/util/xdr.js'
import { virError } from '../support/domain.js'
import { temporaryFolder } from '../support/images.js'

const message = (serial: number, payload = Buffer.from('payload!')): RpcMessage => {
  return { program: 0xea7beef, version: 1, procedure: 6, type: 1, serial, status: 0, payload }
}

test('messages come out whole, however the stream is cut', () => {
  const stream = Buffer.concat([encodeMessage(message(1)), encodeMessage(message(2, Buffer.alloc(0)))])
  for (const size of [1, 7, 28, stream.length]) {
    const framing = new RpcFraming()
    const got: RpcMessage[] = []
    for (let at = 0; at < stream.length; at += size) got.push(...framing.push(stream.subarray(at, at + size)))
    assert.deepEqual(got.map(({ serial, payload }) => [serial, Buffer.from(payload).toString()]), [[1, 'payload!'], [2, '']]) // prettier-ignore
  }
})

test('lengths that cannot be end the stream, and an error without a message is one all the same', () => {
  for (const length of [0, 27, 64 * 1024 * 1024])
    assert.throws(() => new RpcFraming().push(new XdrWriter().uint(length).finish()), /cannot be \d+ bytes long/)
  const plain = new XdrWriter().int(38).int(7).bool(false).finish()
  assert.deepEqual(decodeRemoteError(plain), { code: 38, domain: 7, message: 'no message' })
  assert.throws(() => decodeRemoteError(plain.subarray(0, 6)), XdrError)
})

async function peer(t: TestContext, answer: (socket: Socket) => void): Promise<VirtlockdClient> {
  const path = join(await temporaryFolder(t), 'sock')
  const server = createServer((socket) => {
    socket.on('error', () => undefined)
    socket.once('data', () => answer(socket))
  })
  await new Promise<void>((resolve) => {
    server.listen(path, resolve)
  })
  t.after(() => server.close())
  const client = await VirtlockdClient.connect(path)
  t.after(() => client[Symbol.dispose]())
  return client
}

test('a daemon that breaks the protocol or goes away is an error of the call, and of those after it', async (t) => {
  const broken = virError('VIR_ERR_RPC', /^virtlockd broke down: /)
  const answers: ((socket: Socket) => void)[] = [
    (socket) => socket.write(Buffer.alloc(64)),
    (socket) => socket.write(encodeMessage(message(99))),
    (socket) => socket.write(encodeMessage({ ...message(1), status: 1, payload: Buffer.alloc(3) })),
    (socket) => socket.destroy(),
  ]
  for (const answer of answers) {
    const client = await peer(t, answer)
    await assert.rejects(client.call('restrict', Buffer.alloc(4)), broken)
    await assert.rejects(client.call('restrict', Buffer.alloc(4)), broken)
  }
  const refusing = await peer(t, (socket) => {
    const payload = new XdrWriter().int(9999).int(7).bool(true).string('no').finish()
    socket.write(encodeMessage({ ...message(1), status: 1, payload }))
  })
  await assert.rejects(refusing.call('new', Buffer.alloc(4)), virError('VIR_ERR_RPC', /^virtlockd: no$/))
})
