import assert from 'node:assert/strict'
import { test } from 'node:test'
import { XdrError, XdrReader, XdrWriter } from '../../src/util/xdr.js'

test('what is written is read again, in the bytes of RFC 4506', () => {
  const writer = new XdrWriter()
    .uint(0xffff_fffe)
    .int(-2)
    .hyper(-3n)
    .uhyper(2n ** 64n - 1n)
    .bool(true)
  writer
    .string('hé')
    .opaque(Uint8Array.of(1, 2, 3))
    .bytes(Uint8Array.of(9))
    .optional(undefined, String)
  writer.optional(5, (value) => writer.uint(value)).array([1, 2], (value) => writer.uint(value))
  const bytes = writer.finish()
  const words = [
    'fffffffe', 'fffffffe', 'fffffffffffffffd', 'ffffffffffffffff', '00000001', '00000003', '68c3a900', '01020300', '00000001',
    '09000000', '00000000', '00000001', '00000005', '00000002', '00000001', '00000002',
  ] // prettier-ignore
  assert.equal(bytes.toString('hex'), words.join(''))

  const reader = new XdrReader(bytes)
  assert.deepEqual(
    [reader.uint(), reader.int(), reader.hyper(), reader.uhyper(), reader.bool(), reader.string()],
    [0xffff_fffe, -2, -3n, 2n ** 64n - 1n, true, 'hé'],
  )
  assert.deepEqual([...reader.opaque(3)], [1, 2, 3])
  assert.deepEqual([...reader.bytes()], [9])
  assert.equal(
    reader.optional(() => reader.uint()),
    undefined,
  )
  assert.equal(
    reader.optional(() => reader.uint()),
    5,
  )
  assert.deepEqual(
    reader.array(() => reader.uint()),
    [1, 2],
  )
  reader.end()
})

test('bytes that are not canonical or end too early are refused', () => {
  const reading = (hex: string): XdrReader => new XdrReader(Buffer.from(hex, 'hex'))
  const refused: [() => unknown, RegExp][] = [
    [() => reading('000000').uint(), /end too early/],
    [() => reading('00000002').bool(), /no boolean/],
    [() => reading('0000000161000001').string(), /padding is not zero/],
    [() => reading('00000001ff000000').string(), /not UTF-8/],
    [() => reading('0000000200610000').string(), /holds a NUL/],
    [() => reading('0000000561626364').string(), /end too early/],
    [() => reading('0000000461626364').string(3), /more than 3/],
    [() => reading('ffffffff00000000').array(() => 0), /more than there can be/],
    [() => reading('00000000').end(), /left over/],
  ]
  for (const [read, message] of refused)
    assert.throws(read, (error) => error instanceof XdrError && message.test(error.message))
})

test('values that do not fit their type are refused', () => {
  const writer = new XdrWriter()
  for (const write of [
    () => writer.uint(-1),
    () => writer.uint(1.5),
    () => writer.int(2 ** 31),
    () => writer.hyper(2n ** 63n),
    () => writer.uhyper(-1n),
    () => writer.string('a\0'),
    () => writer.string('abc', 2),
    () => writer.array([1, 2], () => undefined, 1),
  ])
    assert.throws(write, XdrError)
  assert.equal(writer.finish().length, 0)
})
