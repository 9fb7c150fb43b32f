import assert from 'node:assert/strict'
import type { Duplex } from 'node:stream'
import { test } from 'node:test'
import { NbdClient } from '../../src/nbd/client.js'
import { sized, u16, u32, u64 } from '../../src/nbd/codec.js'
import { MAX_LISTED, options, replies, transmissionFlags } from '../../src/nbd/constants.js'
import {
  encodeGreeting,
  encodeInfo,
  encodeListed,
  encodeMetaContext,
  encodeOptionReply,
} from '../../src/nbd/handshake.js'
import { readClientFlags, readOption } from '../../src/nbd/handshake.js'
import { type Chunk, encodeChunk, encodeSimpleReply, readRequest, type Request } from '../../src/nbd/transmission.js'
import { NbdWire } from '../../src/nbd/wire.js'
import { pipe } from './pipe.js'

const size = 65536
const flags = transmissionFlags.hasFlags | transmissionFlags.sendFlush

interface Script {
  structured?: boolean
  contexts?: string[]
  /** the bytes that answer a request */
  answer(request: Request): Uint8Array[]
}

/** A server that negotiates like any other and then answers as the script says. */
async function act(stream: Duplex, script: Script): Promise<void> {
  const wire = new NbdWire(stream)
  wire.send(encodeGreeting(3))
  await wire.expect(readClientFlags())
  for (let option = 0; option !== options.go;) {
    option = (await wire.expect(readOption())).option
    const known = option === options.go || (script.structured ?? true)
    if (option === options.go)
      wire.send(encodeOptionReply(option, replies.info, encodeInfo({ info: 'export', size, flags })))
    if (option === options.setMetaContext) {
      for (const [index, name] of (script.contexts ?? []).entries()) {
        wire.send(encodeOptionReply(option, replies.metaContext, encodeMetaContext(index, name)))
      }
    }
    wire.send(encodeOptionReply(option, known ? replies.ack : replies.errUnsup))
  }
  for (;;) {
    const request = await wire.next(readRequest(size))
    if (request === undefined) return
    wire.send(...script.answer(request))
  }
}

async function connect(script: Script): Promise<NbdClient> {
  const [near, far] = pipe()
  act(far, script).catch(() => undefined)
  return NbdClient.connect(near, { metaContexts: ['base:allocation'] })
}

const chunks = (request: Request, ...all: Chunk[]): Uint8Array[] =>
  all.flatMap((chunk, index) => encodeChunk(request.cookie, index === all.length - 1, chunk))

test('a server without structured replies is understood', async () => {
  const client = await connect({
    structured: false,
    answer: (request) =>
      request.offset === 4096n
        ? [encodeSimpleReply(request.cookie, 28)]
        : [encodeSimpleReply(request.cookie, 0), Buffer.alloc(request.type === 0 ? request.length : 0, 5)],
  })
  assert.deepEqual(client.metaContexts, [])
  assert.deepEqual(await client.read(0, 512), Buffer.alloc(512, 5))
  await client.flush()
  await assert.rejects(client.read(4096, 512), { code: 'ENOSPC', message: 'NBD read failed: ENOSPC' })
  assert.equal(client.connected, true)
  client.destroy()
})

test('a read may come in pieces, holes and any order', async () => {
  const client = await connect({
    answer: (request) =>
      chunks(
        request,
        { type: 'data', offset: 3 * 512, data: Buffer.alloc(512, 3) },
        { type: 'hole', offset: 512, length: 1024 },
        { type: 'data', offset: 0, data: Buffer.alloc(512, 1) },
        { type: 'none' },
      ),
  })
  const data = await client.read(0, 2048)
  assert.deepEqual(data, Buffer.concat([Buffer.alloc(512, 1), Buffer.alloc(1024), Buffer.alloc(512, 3)]))
  client.destroy()
})

test('an error in the middle of a read fails that read only, also one of a kind that came later', async () => {
  let calls = 0
  const client = await connect({
    answer: (request) => {
      if (++calls === 3) return chunks(request, { type: 'data', offset: 0, data: Buffer.alloc(512, 1) })
      const all = chunks(
        request,
        { type: 'data', offset: 0, data: Buffer.alloc(512, 1) },
        { type: 'error', errno: calls === 1 ? 5 : 4242, message: 'gone' },
        { type: 'none' },
      )
      // the type of the error chunk: one that nobody knows yet
      if (calls === 2)
        all[3] = Buffer.concat([all[3]?.subarray(0, 6) ?? u16(0), u16(0xffff), all[3]?.subarray(8) ?? u16(0)])
      return all
    },
  })
  await assert.rejects(client.read(0, 1024), { code: 'EIO', errno: 5, message: 'NBD read failed: gone' })
  await assert.rejects(client.read(0, 1024), { code: 'EINVAL', errno: 4242, message: 'NBD read failed: gone' })
  assert.equal((await client.read(0, 512))[0], 1)
  client.destroy()
})

test('extents that go beyond the request are cut to it', async () => {
  const client = await connect({
    contexts: ['base:allocation'],
    answer: (request) =>
      chunks(request, {
        type: 'status',
        contextId: 0,
        extents: [
          { length: 512, flags: 3 },
          { length: 1 << 20, flags: 0 },
          { length: 512, flags: 3 },
        ],
      }),
  })
  assert.deepEqual((await client.blockStatus(512, 1024)).get('base:allocation'), [
    { offset: 512, length: 512, flags: 3 },
    { offset: 1024, length: 512, flags: 0 },
  ])
  client.destroy()
})

/** Replies that break the protocol, to a read of 1024 bytes at 0 or to a block status. */
const broken: [what: string, answer: (request: Request) => Uint8Array[], request?: 'blockStatus' | 'flush'][] = [
  ['a reply with the wrong magic', () => [Buffer.alloc(16, 0xee)]],
  ['a reply to no request', (r) => [encodeSimpleReply(r.cookie + 1n, 5), Buffer.alloc(1024)]],
  ['a reply with data to no request', (r) => [encodeSimpleReply(r.cookie + 1n, 0)]],
  ['a second reply', (r) => [...chunks(r, { type: 'hole', offset: 0, length: 1024 }), ...chunks(r, { type: 'none' })]],
  ['too little data', (r) => chunks(r, { type: 'data', offset: 0, data: Buffer.alloc(1023) })],
  ['no data', (r) => chunks(r, { type: 'none' })],
  ['data that was not asked for', (r) => chunks(r, { type: 'data', offset: 1, data: Buffer.alloc(1024) })],
  ['data before the range', (r) => chunks(r, { type: 'hole', offset: 0, length: 1025 })],
  ['a huge hole', (r) => chunks(r, { type: 'hole', offset: 0, length: 0xffffffff })],
  [
    'the same data twice',
    (r) =>
      chunks(
        r,
        { type: 'data', offset: 0, data: Buffer.alloc(512) },
        { type: 'data', offset: 0, data: Buffer.alloc(512) },
      ),
  ],
  ['empty data', (r) => chunks(r, { type: 'data', offset: 0, data: Buffer.alloc(0) }, { type: 'none' })],
  ['a chunk of 4 GiB', (r) => [u32(0x668e33ef), u16(1), u16(1), u64(r.cookie), u32(0xffffffff)]],
  ['a chunk of an unknown type', (r) => [u32(0x668e33ef), u16(1), u16(77), u64(r.cookie), u32(0)]],
  ['an offset beyond 2^53', (r) => [u32(0x668e33ef), u16(1), u16(2), u64(r.cookie), u32(12), u64(1n << 60n), u32(1)]],
  ['an error without an error', (r) => chunks(r, { type: 'error', errno: 0, message: 'all is well' })],
  [
    'an error whose message is cut off',
    (r) => [u32(0x668e33ef), u16(1), u16(0x8001), u64(r.cookie), u32(6), u32(5), u16(9)],
  ],
  ['an empty chunk in the middle', (r) => encodeChunk(r.cookie, false, { type: 'none' })],
  ['a block status for a read', (r) => chunks(r, { type: 'status', contextId: 0, extents: [{ length: 1, flags: 0 }] })],
  ['data for a flush', (r) => chunks(r, { type: 'data', offset: 0, data: Buffer.alloc(1) }), 'flush'],
  ['a simple reply to a block status', (r) => [encodeSimpleReply(r.cookie, 0)], 'blockStatus'],
  ['no context', (r) => chunks(r, { type: 'none' }), 'blockStatus'],
  ['no extents', (r) => chunks(r, { type: 'status', contextId: 0, extents: [] }), 'blockStatus'],
  [
    'an empty extent',
    (r) => chunks(r, { type: 'status', contextId: 0, extents: [{ length: 0, flags: 0 }] }),
    'blockStatus',
  ],
  ['half an extent', (r) => [u32(0x668e33ef), u16(1), u16(5), u64(r.cookie), u32(8), u64(0)], 'blockStatus'],
  [
    'an unknown context',
    (r) => chunks(r, { type: 'status', contextId: 9, extents: [{ length: 1, flags: 0 }] }),
    'blockStatus',
  ],
  [
    'a context twice',
    (r) => {
      const status: Chunk = { type: 'status', contextId: 0, extents: [{ length: 512, flags: 0 }] }
      return chunks(r, status, status)
    },
    'blockStatus',
  ],
]

for (const [what, answer, request] of broken) {
  test(`${what} ends the connection with EPROTO for every waiter`, async () => {
    const client = await connect({ contexts: ['base:allocation'], answer: (r) => (r.offset === 0n ? answer(r) : []) })
    const waiting = assert.rejects(client.read(4096, 512), { name: 'NbdError', code: 'EPROTO' })
    const asked =
      request === 'blockStatus'
        ? client.blockStatus(0, 1024)
        : request === 'flush'
          ? client.flush()
          : client.read(0, 1024)
    // a whole answer may come before what breaks the protocol
    await asked.catch((error: unknown) => assert.equal((error as { code?: string }).code, 'EPROTO'))
    await waiting
    await client.ended
    assert.equal(client.connected, false)
    await assert.rejects(client.flush(), { code: 'EPROTO' })
  })
}

/** What a server may say in the negotiation that is an error. */
const refused: [what: string, bytes: Uint8Array[], code: string][] = [
  ['something else than NBD', [Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')], 'EPROTO'],
  ['the old style', [Buffer.from('NBDMAGIC'), u64(0x00420281861253n), Buffer.alloc(200)], 'EPROTO'],
  ['no fixed newstyle', [encodeGreeting(0)], 'EPROTO'],
  ['half a greeting', [Buffer.from('NBDMAGIC')], 'ECONNRESET'],
  ['nothing', [], 'ECONNRESET'],
  ['a reply with the wrong magic', [encodeGreeting(3), Buffer.alloc(20)], 'EPROTO'],
  ['a reply to another option', [encodeGreeting(3), encodeOptionReply(options.go, replies.ack)], 'EPROTO'],
  ['4 GiB of reply', [encodeGreeting(3), encodeOptionReply(8, 1).subarray(0, 16), u32(0xffffffff)], 'EPROTO'],
  ['that TLS is needed', [encodeGreeting(3), encodeOptionReply(8, replies.errTlsReqd, Buffer.from('no'))], 'EACCES'],
  ['that it forbids', [encodeGreeting(3), encodeOptionReply(8, replies.errPolicy)], 'EACCES'],
  ['an unknown error', [encodeGreeting(3), encodeOptionReply(8, 0x80001234)], 'EINVAL'],
  ['no size', [encodeGreeting(3), encodeOptionReply(8, 1), encodeOptionReply(options.go, replies.ack)], 'EPROTO'],
  ['half a size', goWith(u16(0), u32(0)), 'EPROTO'],
  ['a size beyond 2^53', goWith(u16(0), u64(1n << 63n), u16(1)), 'EPROTO'],
  ['a block size of 0', goWith(u16(3), u32(0), u32(0), u32(0)), 'EPROTO'],
  ['a block size of 3', goWith(u16(3), u32(3), u32(4096), u32(4096)), 'EPROTO'],
  [
    'a list instead of the size',
    [encodeGreeting(3), encodeOptionReply(8, 1), encodeOptionReply(7, 2, sized('a')), encodeOptionReply(7, 1)],
    'EPROTO',
  ],
]

function goWith(...info: Uint8Array[]): Uint8Array[] {
  return [
    encodeGreeting(3),
    encodeOptionReply(options.structuredReply, replies.ack),
    encodeOptionReply(options.go, replies.info, Buffer.concat(info)),
    encodeOptionReply(options.go, replies.ack),
  ]
}

for (const [what, bytes, code] of refused) {
  test(`a server that says ${what} is given up with ${code}`, async () => {
    const [near, far] = pipe()
    far.resume()
    for (const part of bytes) far.write(part)
    far.end()
    await assert.rejects(NbdClient.connect(near, { export: 'disk' }), { name: 'NbdError', code })
    assert.equal(near.destroyed, true)
  })
}

test('a server that lists without end is given up', async () => {
  const [near, far] = pipe()
  far.resume()
  far.write(encodeGreeting(3))
  const one = encodeOptionReply(options.list, replies.server, encodeListed('again', ''))
  for (let count = 0; count <= MAX_LISTED; count++) far.write(one)
  await assert.rejects(NbdClient.list(near), { code: 'EPROTO', message: /more than 10000/ })
})
