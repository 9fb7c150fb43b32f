import assert from 'node:assert/strict'
import { test } from 'node:test'
import { sized, u16, u32, u64 } from '../../src/nbd/codec.js'
import { commandFlags, commands, handshakeFlags, IHAVEOPT, infos, options, replies } from '../../src/nbd/constants.js'
import {
  decodeInfo,
  decodeMetaContext,
  encodeClientFlags,
  encodeExportRequest,
  encodeMetaContextRequest,
  encodeOption,
  type OptionReply,
  readGreeting,
  readOptionReply,
} from '../../src/nbd/handshake.js'
import type { NbdServed } from '../../src/nbd/served.js'
import { serveNbd } from '../../src/nbd/server.js'
import { encodeRequest, readReply, type Reply } from '../../src/nbd/transmission.js'
import { NbdWire } from '../../src/nbd/wire.js'
import { MemoryDisk } from './memory.js'
import { pipe } from './pipe.js'

const MiB = 2 ** 20

/** A client in our hands: `wire` after the greeting, and how the server ends. */
async function greeted(
  disk: NbdServed = new MemoryDisk(65536),
  flags: number = 3,
): Promise<{ wire: NbdWire; served: Promise<void> }> {
  const [near, far] = pipe()
  const served = serveNbd(far, new Map([['disk', disk]]))
  served.catch(() => undefined)
  const wire = new NbdWire(near)
  const greeting = await wire.expect(readGreeting())
  assert.equal(greeting.flags, handshakeFlags.fixedNewstyle | handshakeFlags.noZeroes)
  wire.send(encodeClientFlags(flags))
  return { wire, served }
}

/** The replies to one option, the last one being an ACK or an error. */
async function ask(wire: NbdWire, option: number, data: Uint8Array = Buffer.alloc(0)): Promise<OptionReply[]> {
  wire.send(encodeOption(option, data))
  const all: OptionReply[] = []
  do all.push(await wire.expect(readOptionReply()))
  while (![replies.ack, undefined].includes(all.at(-1)?.type as 1) && (all.at(-1)?.type ?? 0) < replies.errUnsup)
  return all
}

const typesOf = (all: readonly OptionReply[]): number[] => all.map((reply) => reply.type)

test('options that are unknown or malformed are refused, and the negotiation goes on', async () => {
  const { wire, served } = await greeted()
  const { errUnsup, errInvalid, errUnknown, ack, info } = replies
  assert.deepEqual(typesOf(await ask(wire, options.startTls)), [errUnsup])
  assert.deepEqual(typesOf(await ask(wire, 999, Buffer.alloc(60000))), [errUnsup])
  assert.deepEqual(typesOf(await ask(wire, options.list, Buffer.from('x'))), [errInvalid])
  assert.deepEqual(typesOf(await ask(wire, options.structuredReply, Buffer.from('x'))), [errInvalid])
  assert.deepEqual(typesOf(await ask(wire, options.go)), [errInvalid])
  assert.deepEqual(typesOf(await ask(wire, options.go, Buffer.concat([u32(0xffffffff), Buffer.from('disk')]))), [
    errInvalid,
  ])
  assert.deepEqual(typesOf(await ask(wire, options.info, Buffer.concat([sized('disk'), u16(9)]))), [errInvalid])
  assert.deepEqual(typesOf(await ask(wire, options.info, encodeExportRequest('nope', []))), [errUnknown])
  const many = Buffer.concat([sized('disk'), u32(0xffffffff)])
  assert.deepEqual(typesOf(await ask(wire, options.listMetaContext, many)), [errInvalid])
  const base = encodeMetaContextRequest('disk', ['base:allocation'])
  assert.deepEqual(typesOf(await ask(wire, options.setMetaContext, base)), [errInvalid], 'before structured replies')
  const all = await ask(wire, options.info, encodeExportRequest('disk', [infos.name, infos.description, 4242]))
  assert.deepEqual(typesOf(all), [info, info, info, ack])
  assert.deepEqual(
    all.slice(1, 3).map((reply) => decodeInfo(reply.data)),
    [
      { info: 'name', text: 'disk' },
      { info: 'description', text: 'a disk in memory' },
    ],
  )
  assert.deepEqual(typesOf(await ask(wire, options.abort)), [ack])
  await served
})

test('metadata contexts can be listed by their name space', async () => {
  const { wire } = await greeted()
  const listed = async (...queries: string[]): Promise<string[]> =>
    (await ask(wire, options.listMetaContext, encodeMetaContextRequest('disk', queries)))
      .filter((reply) => reply.type === replies.metaContext)
      .map((reply) => decodeMetaContext(reply.data).name)
  assert.deepEqual(await listed(), ['base:allocation', 'test:written'])
  assert.deepEqual(await listed('base:'), ['base:allocation'])
  assert.deepEqual(await listed('base'), [])
  wire.destroy()
})

for (const [what, bytes] of [
  ['an option with the wrong magic', [Buffer.alloc(16)]],
  ['an option with 4 GiB of data', [u64(IHAVEOPT), u32(3), u32(0xffffffff)]],
] as const) {
  test(`${what} ends the connection`, async () => {
    const { wire, served } = await greeted()
    wire.send(...bytes)
    await assert.rejects(served, { code: 'EPROTO' })
  })
}

test('the oldest way to choose an export works, with and without the zeroes after it', async () => {
  for (const [flags, zeroes] of [
    [handshakeFlags.fixedNewstyle, 124],
    [handshakeFlags.fixedNewstyle | handshakeFlags.noZeroes, 0],
  ] as const) {
    const { wire, served } = await greeted(undefined, flags)
    wire.send(encodeOption(options.exportName, Buffer.from('disk')))
    const answer = await wire.expect(bytes(10 + zeroes))
    assert.equal(answer.readBigUInt64BE(), 65536n)
    wire.send(encodeRequest(commands.read, 0, 5n, 0, 16))
    const reply = await wire.expect(readReply(() => ({ simplePayload: 16, chunk: 0 })))
    assert.deepEqual(reply, { kind: 'simple', cookie: 5n, errno: 0, data: Buffer.alloc(16) })
    wire.send(encodeRequest(commands.disconnect, 0, 0n, 0, 0))
    await served
  }
  const { wire, served } = await greeted()
  wire.send(encodeOption(options.exportName, Buffer.from('nope')))
  await assert.rejects(served, { code: 'ENOENT' })
})

function* bytes(count: number): Generator<number, Buffer, Buffer> {
  return yield count
}

async function transmitting(disk: NbdServed): Promise<{
  served: Promise<void>
  wire: NbdWire
  request: (type: number, flags: number, offset: number, length: number, payload?: Buffer) => Promise<Reply>
}> {
  const { wire, served } = await greeted(disk)
  await ask(wire, options.structuredReply)
  await ask(wire, options.go, encodeExportRequest('disk', []))
  const request = async (
    type: number,
    flags: number,
    offset: number,
    length: number,
    payload?: Buffer,
  ): Promise<Reply> => {
    wire.send(encodeRequest(type, flags, 1n, offset, length), payload ?? Buffer.alloc(0))
    return wire.expect(readReply(() => ({ simplePayload: 0, chunk: 65536 })))
  }
  return { served, wire, request }
}

test('requests that the export can not take get the right error, and the connection goes on', async () => {
  const disk = new MemoryDisk(65536)
  const { request, wire, served } = await transmitting(disk)
  const errnoOf = async (...args: Parameters<typeof request>): Promise<number | undefined> => {
    const reply = await request(...args)
    return reply.kind === 'chunk' && reply.chunk.type === 'error' ? reply.chunk.errno : undefined
  }
  const { read, write, trim, cache, writeZeroes, blockStatus } = commands
  assert.equal(await errnoOf(read, 0, 65536, 1), 22)
  assert.equal(await errnoOf(read, 0, 0, 0), 22)
  assert.equal(await errnoOf(read, 0, Number.MAX_SAFE_INTEGER, 1), 22)
  assert.equal(await errnoOf(read, 0, 0, 0xffffffff), 22)
  assert.equal(await errnoOf(write, 0, 65535, 2, Buffer.alloc(2)), 28)
  assert.equal(await errnoOf(writeZeroes, 0, 0, 65537), 28)
  assert.equal(await errnoOf(writeZeroes, commandFlags.fastZero, 0, 512), 95)
  assert.equal(await errnoOf(trim, 0, 65536, 1), 22)
  assert.equal(await errnoOf(cache, 0, 0, 65537), 22)
  assert.equal(await errnoOf(blockStatus, 0, 0, 512), 22)
  assert.equal(await errnoOf(4242, 0, 0, 512), 22)
  assert.deepEqual(disk.calls, [], 'none of them reached the disk')
  assert.equal((await request(read, 0, 0, 512)).kind, 'chunk')
  wire.send(encodeRequest(commands.disconnect, 0, 0n, 0, 0))
  await served
})

test('what a read-only export does not offer is EPERM when it would change it, EINVAL otherwise', async () => {
  const { request, wire } = await transmitting({ size: 4096, read: () => Promise.resolve(Buffer.alloc(512)) })
  const errnoOf = async (type: number, flags = 0): Promise<unknown> => {
    const reply = await request(type, flags, 0, 512, type === commands.write ? Buffer.alloc(512) : undefined)
    return reply.kind === 'chunk' && reply.chunk.type === 'error' ? reply.chunk.errno : reply
  }
  assert.equal(await errnoOf(commands.write), 1)
  assert.equal(await errnoOf(commands.trim), 1)
  assert.equal(await errnoOf(commands.writeZeroes), 1)
  assert.equal(await errnoOf(commands.flush), 22)
  assert.equal(await errnoOf(commands.cache), 22)
  assert.equal(await errnoOf(commands.write, commandFlags.fua), 22)
  wire.destroy()
})

for (const [what, bytes] of [
  ['a request with the wrong magic', [Buffer.alloc(28)]],
  ['a write of more than 32 MiB', [encodeRequest(commands.write, 0, 1n, 0, 32 * MiB + 1)]],
] as const) {
  test(`${what} ends the connection`, async () => {
    const { wire, served } = await transmitting(new MemoryDisk(65536))
    wire.send(...bytes)
    await assert.rejects(served, { code: 'EPROTO' })
    await assert.rejects(wire.expect(readReply(() => ({ simplePayload: 0, chunk: 0 }))), { code: 'ECONNRESET' })
  })
}

test('a client that hangs up between two messages has left, one in the middle of a message is lost', async () => {
  const polite = await transmitting(new MemoryDisk(65536))
  polite.wire.end()
  await polite.served
  const cut = await transmitting(new MemoryDisk(65536))
  cut.wire.send(encodeRequest(commands.write, 0, 1n, 0, 512), Buffer.alloc(100))
  cut.wire.end()
  await assert.rejects(cut.served, { code: 'ECONNRESET' })
})
