import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import type { Duplex } from 'node:stream'
import { finished } from 'node:stream/promises'
import { test } from 'node:test'
import { BlockStreamReader, BlockWriter } from '../../src/tunnel/block-stream.js'
import { BLOCK_HEADER, blockHeader, MAX_BLOCK } from '../../src/tunnel/blocks.js'
import { TunnelError } from '../../src/tunnel/error.js'
import { CompressorSpeed, Speed } from '../../src/tunnel/speed.js'
import { Zstd } from '../../src/tunnel/zstd.js'
import { readAll } from './pair.js'

const zstd = await Zstd.load()

/** Some pages of zeros, of text, and of what cannot be made shorter. */
function memory(pages: number): Buffer {
  const kinds = [Buffer.alloc(4096), Buffer.alloc(4096, 'to be or not to be; '), undefined]
  return Buffer.concat(Array.from({ length: pages }, (_, i) => kinds[i % 3] ?? randomBytes(4096)))
}

const writer = (): BlockWriter => new BlockWriter({ compressor: zstd.compressor() })
const reader = (): BlockStreamReader => new BlockStreamReader(zstd.decompressor())

/** All that comes out when `pieces` go in. */
async function through(stream: Duplex, pieces: Iterable<Buffer>): Promise<Buffer> {
  const all = readAll(stream)
  all.catch(() => undefined)
  for (const piece of pieces) if (!stream.write(piece)) await Promise.race([once(stream, 'drain'), all])
  stream.end()
  return all
}

/** The same bytes, cut where a generator says. */
function* pieces(bytes: Buffer, next: () => number): Generator<Buffer> {
  for (let at = 0; at < bytes.length;) yield bytes.subarray(at, (at += next()))
}

async function refuses(...input: readonly Buffer[]): Promise<TunnelError> {
  const error: unknown = await through(reader(), input).then(
    () => undefined,
    (thrown: unknown) => thrown,
  )
  assert.ok(error instanceof TunnelError, String(error))
  assert.equal(error.code, 'EPROTO')
  return error
}

test('what goes in comes out, however it is cut, and is shorter on its way', async () => {
  const bytes = memory(600)
  let size = 0
  const next = (): number => (size = ((size * 7919 + 104_729) % 300_000) + 1)
  const blocks = await through(writer(), pieces(bytes, next))
  assert.ok(blocks.length < bytes.length / 2, `${blocks.length}`)
  assert.ok(bytes.equals(await through(reader(), pieces(blocks, next))))
  assert.ok(
    bytes.equals(
      await through(
        reader(),
        pieces(blocks, () => 1 + (next() % 40)),
      ),
    ),
  )
})

test('what cannot be made shorter goes as it is', async () => {
  const bytes = randomBytes(3 * MAX_BLOCK)
  const blocks = await through(writer(), [bytes])
  assert.equal(blocks.length, bytes.length + 3 * BLOCK_HEADER)
  assert.ok(bytes.equals(await through(reader(), [blocks])))
})

test('nothing is held back until more comes', async () => {
  const [there, back] = [writer(), reader()]
  there.pipe(back)
  for (const text of ['a', 'the next word', 'x'.repeat(10_000)]) {
    const parts: Buffer[] = []
    const whole = new Promise<void>((resolve) => {
      back.on('data', function take(part: Buffer) {
        parts.push(part)
        if (Buffer.concat(parts).length < text.length) return
        back.off('data', take)
        resolve()
      })
    })
    there.write(text)
    await whole
    assert.equal(Buffer.concat(parts).toString(), text)
  }
  there.destroy()
  back.destroy()
})

test('a block that is damaged, cut off or not allowed breaks the stream before any of it is handed on', async () => {
  const [plain, packed] = [Buffer.from('plain'), Buffer.alloc(20_000, 'a')]
  const frame = await zstd.compressor().compress(packed)
  assert.ok(frame !== undefined)
  const block = Buffer.concat([blockHeader('zstd', frame.length, packed.length), frame])
  assert.ok(packed.equals(await through(reader(), [block])))
  for (let bit = 0; bit < frame.length * 8; bit++) {
    const wrong = Buffer.from(frame)
    wrong.writeUInt8(wrong.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3)
    const out = await through(reader(), [blockHeader('zstd', frame.length, packed.length), wrong]).catch(
      (error: unknown) => error,
    )
    assert.ok(out instanceof TunnelError || packed.equals(out as Buffer), `bit ${bit}`)
  }
  assert.match((await refuses(block.subarray(0, -1))).message, /ends within one/)
  assert.match((await refuses(block.subarray(0, 5))).message, /ends within one/)
  assert.match(
    (await refuses(blockHeader('zstd', frame.length, 20_001), frame)).message,
    /20000 bytes in place of 20001/,
  )
  assert.match((await refuses(blockHeader('zstd', frame.length, 19_999), frame)).message, /damaged/)
  assert.match((await refuses(blockHeader('plain', MAX_BLOCK + 1, MAX_BLOCK + 1))).message, /not allowed/)
  assert.match((await refuses(blockHeader('plain', 0, 0))).message, /not allowed/)
  assert.match((await refuses(blockHeader('plain', 5, 6), plain)).message, /cannot be 5 bytes/)
  assert.match((await refuses(blockHeader('zstd', 6, 6), plain)).message, /cannot be 6 bytes/)
  assert.match((await refuses(Buffer.from([2, 0, 0, 1, 0, 0, 0, 2]))).message, /unknown form 2/)
})

test('a reader that is not read from stops to take, however much a few bytes stand for', async () => {
  const frame = await zstd.compressor().compress(Buffer.alloc(MAX_BLOCK))
  assert.ok(frame !== undefined)
  const block = Buffer.concat([blockHeader('zstd', frame.length, MAX_BLOCK), frame])
  const bomb = Buffer.concat(Array.from({ length: 20_000 }, () => block))
  const stream = reader()
  stream.write(bomb)
  await once(stream, 'readable')
  // many turns of the event loop later there is still no more than was asked for
  for (let turn = 0; turn < 200; turn++) await new Promise(setImmediate)
  assert.ok(stream.readableLength <= 2 * MAX_BLOCK, `${stream.readableLength}`)
  stream.destroy()
  await finished(stream).catch(() => undefined)
})

test('whatever comes, a reader breaks or hands on what was meant', async () => {
  const bytes = memory(30)
  const blocks = await through(writer(), [bytes])
  let objections = 0
  for (let seed = 1; seed <= 400; seed++) {
    const wrong = Buffer.from(blocks)
    let x = seed * 2_654_435_761
    const next = (below: number): number => (x = (x * 69_069 + 1) >>> 0) % below
    for (let i = next(3); i >= 0; i--) wrong.writeUInt8(next(256), next(seed % 2 === 0 ? 64 : wrong.length))
    const out = await through(reader(), [wrong]).catch((error: unknown) => error)
    if (out instanceof TunnelError) objections += 1
    // a plain block has no checksum of its own
    else assert.equal((out as Buffer).length, bytes.length, `seed ${seed}`)
  }
  assert.ok(objections > 100, `${objections}`)
})

test('a library that is not there is named', async () => {
  await assert.rejects(Zstd.load('libzstd.so.0'), (error: unknown) => {
    assert.ok(error instanceof TunnelError)
    assert.match(error.message, /^zstd needs 'libzstd\.so\.0', which cannot be loaded: /)
    return true
  })
})

/** The part of 400 blocks that is compressed for a link of a speed (bytes/s), where compressing takes `ms` for each. */
function share(link: number, ms: number): number {
  const speed = new CompressorSpeed()
  let compressed = 0
  for (let i = 0; i < 400; i++) {
    if (!speed.isWorth(link)) continue
    speed.add(MAX_BLOCK, ms)
    compressed += 1
  }
  return compressed / 400
}

test('blocks are compressed where that is faster than the link, and hardly ever elsewhere', () => {
  assert.equal(share(60e6, 0.3), 1)
  assert.equal(share(120e6, 0.3), 1)
  assert.equal(share(Infinity, 0.3), 0)
  assert.equal(share(1e9, 0.3), 0)
  // 26 MB/s: left alone, but not for ever
  const seldom = share(60e6, 5)
  assert.ok(seldom > 0 && seldom < 0.5, `${seldom}`)
})

test('the speed of a link is that of the time in which bytes waited for it, and of late', () => {
  const speed = new Speed()
  assert.equal(speed.value, Infinity)
  for (let i = 0; i < 100; i++) speed.add(60_000, 1)
  assert.equal(Math.round(speed.value / 1e6), 60)
  for (let i = 0; i < 1000; i++) speed.add(600_000, 1)
  assert.ok(speed.value > 590e6, `${speed.value}`)
})
