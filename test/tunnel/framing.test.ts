import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { TunnelError } from '../../src/tunnel/error.js'
import { frame, FrameReader, frameTypes, reasonPayload, type Frame } from '../../src/tunnel/framing.js'
import {
  acceptPayload,
  helloPayload,
  openPayload,
  parseAccept,
  parseHello,
  parseOpen,
} from '../../src/tunnel/payloads.js'

const opening = { window: 262_144, service: 'nbd:vda', params: { disk: 'vda', ü: [1, null] } }
const stream = Buffer.concat([
  frame(frameTypes.ping, 0, Buffer.from('12345678')),
  frame(frameTypes.open, 1, openPayload(opening)),
  frame(frameTypes.data, 7, Buffer.from('some bytes')),
  frame(frameTypes.fin, 0xfffffffe),
  frame(frameTypes.credit, 3, Buffer.from([0, 1, 0, 0])),
  frame(frameTypes.refuse, 0, reasonPayload('no')),
])

/** Frames of bytes that come in these pieces, pieces of DATA put together. */
function read(pieces: Iterable<Buffer>): Frame[] {
  const reader = new FrameReader()
  const frames: Frame[] = []
  for (const piece of pieces)
    reader.push(piece, (got) => {
      const last = frames.at(-1)
      if (got.type === frameTypes.data && last?.type === got.type) {
        frames[frames.length - 1] = { ...last, payload: Buffer.concat([last.payload, got.payload]) }
      } else frames.push({ ...got, payload: Buffer.from(got.payload) })
    })
  assert.equal(reader.inFrame, false)
  return frames
}

const plain = (frames: Frame[]): unknown[] =>
  frames.map(({ type, channel, payload }) => [type, channel, payload.toString('latin1')])

test('frames are the same wherever the stream was cut', () => {
  const whole = plain(read([stream]))
  assert.equal(whole.length, 6)
  for (let at = 1; at < stream.length; at++)
    assert.deepEqual(plain(read([stream.subarray(0, at), stream.subarray(at)])), whole, `cut at ${at}`)
  const bytes = Array.from(stream, (_, at) => stream.subarray(at, at + 1))
  assert.deepEqual(plain(read(bytes)), whole)
})

test('the header is type, length and channel, big-endian', () => {
  assert.equal(
    frame(frameTypes.credit, 0x01020304, Buffer.from([9, 8, 7, 6])).toString('hex'),
    '060000040102030409080706',
  )
})

test('DATA is handed on before all of it is there, other frames after', () => {
  const reader = new FrameReader()
  const got: number[] = []
  const data = frame(frameTypes.data, 1, Buffer.alloc(100))
  reader.push(data.subarray(0, 50), ({ payload }) => got.push(payload.length))
  assert.deepEqual(got, [42])
  assert.ok(reader.inFrame)
  reader.push(data.subarray(50), ({ payload }) => got.push(payload.length))
  assert.deepEqual(got, [42, 58])
})

test('headers that can not be are refused at once, before any payload', () => {
  const wrong: [what: string, hex: string][] = [
    ['a type that there is not', '00'],
    ['another one', '0c'],
    ['text', '47455420'],
    ['an empty DATA', '0500000000000001'],
    ['a DATA of more than 1 MiB', '0510000100000001'],
    ['DATA on the link', '0500000100000000'],
    ['a PING on a channel', '0900000800000001'],
    ['a PING of 9 bytes', '0900000900000000'],
    ['a HELLO of 16 MiB', '01ffffff00000000'],
    ['a FIN with a payload', '0700000100000001'],
    ['an OPEN on the link', '0200001000000000'],
    ['a reason of 1025 bytes', '0800040100000001'],
  ]
  for (const [what, hex] of wrong)
    assert.throws(
      () => new FrameReader().push(Buffer.from(hex, 'hex'), () => assert.fail(what)),
      (error) => error instanceof TunnelError && error.code === 'EPROTO',
      what,
    )
})

test('hello, opening and answer come back as they were', () => {
  const hello = { version: 1, oldest: 1, token: 'tök', params: { a: { b: 1 } } }
  assert.deepEqual(parseHello(helloPayload(hello)), hello)
  assert.deepEqual(parseOpen(openPayload(opening)), opening)
  assert.deepEqual(parseAccept(acceptPayload({ window: 1, params: {} })), { window: 1, params: {} })
})

test('payloads that end early, are no JSON objects or promise too much are refused', () => {
  const hello = helloPayload({ version: 1, oldest: 1, token: 'token', params: { key: 'value' } })
  for (let length = 0; length < hello.length; length++)
    assert.throws(() => parseHello(hello.subarray(0, length)), { code: 'EPROTO' }, `${length} bytes`)
  for (const json of ['[]', 'null', '7', '{', ''])
    assert.throws(() => parseAccept(Buffer.concat([Buffer.alloc(4), Buffer.from(json)])), { code: 'EPROTO' }, json)
  assert.throws(() => parseAccept(Buffer.from('ffffffff7b7d', 'hex')), { code: 'EPROTO' })
  assert.throws(() => parseOpen(Buffer.from('0000000000007b7d', 'hex')), { code: 'EPROTO' })
})

test('our own frames are never longer than they may be', () => {
  assert.equal(reasonPayload('ü'.repeat(600)).toString('utf8'), 'ü'.repeat(512))
  assert.equal(reasonPayload(`x${'ü'.repeat(600)}`).toString('utf8'), `x${'ü'.repeat(511)}`)
  const long = { key: 'x'.repeat(70_000) }
  assert.throws(() => helloPayload({ version: 1, oldest: 1, token: '', params: long }), { code: 'EINVAL' })
  assert.throws(() => helloPayload({ version: 1, oldest: 1, token: 'x'.repeat(513), params: {} }), { code: 'EINVAL' })
  assert.throws(() => openPayload({ window: 1, service: 'x', params: long }), { code: 'EINVAL' })
  assert.throws(() => frame(frameTypes.fin, 1, Buffer.alloc(1)), RangeError)
})

test('frames are byte for byte what docs/tunnel.md says', () => {
  const hello = helloPayload({ version: 1, oldest: 1, token: 'tok', params: { a: 1 } })
  assert.equal(hello.toString('latin1'), 'VSTUNNEL\0\x01\0\x01\0\x03tok{"a":1}')
  const open = openPayload({ window: 0x40000, service: 'qmp', params: {} })
  assert.equal(open.toString('latin1'), '\0\x04\0\0\0\x03qmp{}')
  assert.equal(acceptPayload({ window: 0x10000, params: {} }).toString('latin1'), '\0\x01\0\0{}')
  const page = readFileSync(new URL('../../../docs/tunnel.md', import.meta.url), 'utf8')
  const rows = [...page.matchAll(/^\| (\d+) +\| ([A-Z]+) +\| (link|channel|both) +\| .* \| (\d+)(?:–(\d+))? +\|$/gm)]
  const names = Object.keys(frameTypes).map((name) => name.toUpperCase())
  assert.deepEqual(
    rows.map(([, type, name]) => [name, Number(type)]),
    names.map((name, index) => [name, index + 1]),
  )
  const isTaken = (type: number, length: number, channel: number): boolean => {
    const header = Buffer.alloc(8)
    header.writeUInt32BE(type * 0x1000000 + length)
    header.writeUInt32BE(channel, 4)
    try {
      new FrameReader().push(header, () => undefined)
      return true
    } catch {
      return false
    }
  }
  for (const [, number, name, on, least, most = least] of rows) {
    const [type, from, to] = [Number(number), Number(least), Number(most)]
    const of = on === 'link' ? 0 : 1
    assert.ok(isTaken(type, from, of) && isTaken(type, to, of), name)
    assert.ok(
      !isTaken(type, to + 1, of) && (from === 0 || !isTaken(type, from - 1, of)),
      `${name ?? ''}: other lengths`,
    )
    assert.equal(isTaken(type, from, 1 - of), on === 'both', `${name ?? ''}: the other kind of channel`)
  }
})
