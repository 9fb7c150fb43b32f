/**
 * What the blocks of a test disk hold: the same as scripts/guest/pattern.h, so that the guest can check what the host wrote
 * and the host what the guest wrote. A block is 4 KiB, 1024 little-endian words.
 */
import { mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { run } from '../../src/util/run.js'

export const BLOCK_SIZE = 4096
const WORDS = BLOCK_SIZE / 4
const CHUNK_BLOCKS = 256
const BASE_MAGIC = 0x31425356
const WRITTEN_MAGIC = 0x31575356

function mix(word: number): number {
  let x = Math.imul(word ^ (word >>> 16), 0x85ebca6b)
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35)
  return (x ^ (x >>> 16)) >>> 0
}

function mix3(a: number, b: number, c: number): number {
  return mix(mix(mix(a) ^ b) ^ c)
}

function fill(words: Uint32Array, start: number): void {
  let x = start | 1
  for (let i = 4; i < WORDS; i++) {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    words[i] = x
  }
}

/** Whether block `block` of the base image of `seed` is zero. */
export function isZeroInBase(seed: number, block: number): boolean {
  return seed === 0 || (mix3(seed, 0x52, block >>> 4) & 3) === 0 || (mix3(seed, 0x5a, block) & 15) === 0
}

/** Makes `words` (1024 of them) block `block` of the base image of `seed`. */
export function baseBlock(words: Uint32Array, seed: number, block: number): void {
  if (isZeroInBase(seed, block)) {
    words.fill(0)
    return
  }
  words.set([BASE_MAGIC, block, seed, 0])
  fill(words, mix3(seed, 0x46, block))
}

/** Makes `words` what the guest writes into block `block` of its disk `disk` ('vda') in write number `sequence`. */
export function writtenBlock(words: Uint32Array, disk: string, block: number, sequence: number): void {
  const tag = Buffer.from(disk.padEnd(4, '\0').slice(0, 4), 'latin1').readUInt32LE()
  writtenBy(words, tag, block, sequence)
}

function writtenBy(words: Uint32Array, tag: number, block: number, sequence: number): void {
  words.set([WRITTEN_MAGIC, block, tag, sequence])
  fill(words, mix3(tag, block, sequence))
}

/** The guest's `digest`: of whole blocks, in order. */
export class Digest {
  #a = 0x811c9dc5
  #b = 0x9747b28c

  add(words: Uint32Array): void {
    let a = this.#a
    let b = this.#b
    for (const word of words) {
      a = Math.imul(a ^ word, 0x01000193)
      b = Math.imul(((b << 5) | (b >>> 27)) + word, 0x9e3779b1)
    }
    this.#a = a
    this.#b = b
  }

  toString(): string {
    return [this.#a, this.#b].map((lane) => (lane >>> 0).toString(16).padStart(8, '0')).join('')
  }
}

/** Writes a raw image of `size` bytes (whole blocks) that holds the base pattern of `seed`; zero blocks stay holes. */
export async function writePattern(path: string, seed: number, size: number): Promise<void> {
  if (size % BLOCK_SIZE !== 0) throw new RangeError(`size ${size} is not a multiple of ${BLOCK_SIZE}`)
  const file = await open(path, 'w')
  try {
    await file.truncate(size)
    const chunk = new Uint32Array(CHUNK_BLOCKS * WORDS)
    for (let first = 0; first < size / BLOCK_SIZE; first += CHUNK_BLOCKS)
      await writeChunk(file, chunk, seed, first, size)
  } finally {
    await file.close()
  }
}

type FileHandle = Awaited<ReturnType<typeof open>>

async function writeChunk(
  file: FileHandle,
  chunk: Uint32Array,
  seed: number,
  first: number,
  size: number,
): Promise<void> {
  const end = Math.min(first + CHUNK_BLOCKS, size / BLOCK_SIZE)
  for (let block = first; block < end; block++) {
    if (isZeroInBase(seed, block)) continue
    let last = block
    for (; last < end && !isZeroInBase(seed, last); last++) baseBlock(wordsOf(chunk, last - first), seed, last)
    const bytes = Buffer.from(chunk.buffer, (block - first) * BLOCK_SIZE, (last - block) * BLOCK_SIZE)
    await file.write(bytes, 0, bytes.length, block * BLOCK_SIZE)
    block = last
  }
}

function wordsOf(chunk: Uint32Array, index: number): Uint32Array {
  return chunk.subarray(index * WORDS, (index + 1) * WORDS)
}

/** What an image holds, in blocks. */
export interface PatternReport {
  /** comparable with the guest's `digest` */
  digest: string
  blocks: number
  /** as the base image of `seed` has them, zero ones included */
  base: number
  /** written by a guest, whole and in their place */
  written: number
  /** neither */
  bad: number
  /** number of the first bad block, -1: none */
  first: number
}

/** Reads a raw file block by block and says what it holds. `baseSize`: the pattern ends there, zeros follow. */
export async function checkRawPattern(path: string, seed: number, baseSize = Infinity): Promise<PatternReport> {
  const digest = new Digest()
  const report = { blocks: 0, base: 0, written: 0, bad: 0, first: -1 }
  const bytes = Buffer.alloc(CHUNK_BLOCKS * BLOCK_SIZE)
  const expected = new Uint32Array(WORDS)
  const file = await open(path, 'r')
  try {
    for (;;) {
      const { bytesRead } = await file.read(bytes, 0, bytes.length, report.blocks * BLOCK_SIZE)
      if (bytesRead % BLOCK_SIZE !== 0) throw new RangeError(`'${path}' does not end with a whole block`)
      if (bytesRead === 0) return { ...report, digest: digest.toString() }
      digest.add(new Uint32Array(bytes.buffer, bytes.byteOffset, bytesRead / 4))
      for (let offset = 0; offset < bytesRead; offset += BLOCK_SIZE) {
        const words = new Uint32Array(bytes.buffer, bytes.byteOffset + offset, WORDS)
        const kind = kindOf(words, expected, report.blocks * BLOCK_SIZE < baseSize ? seed : 0, report.blocks)
        if (kind === 'bad' && report.bad === 0) report.first = report.blocks
        report[kind]++
        report.blocks++
      }
    }
  } finally {
    await file.close()
  }
}

function kindOf(words: Uint32Array, expected: Uint32Array, seed: number, block: number): 'base' | 'written' | 'bad' {
  baseBlock(expected, seed, block)
  if (Buffer.compare(bytesOf(words), bytesOf(expected)) === 0) return 'base'
  if (words[0] !== WRITTEN_MAGIC) return 'bad'
  writtenBy(expected, words[2] ?? 0, block, words[3] ?? 0)
  return Buffer.compare(bytesOf(words), bytesOf(expected)) === 0 ? 'written' : 'bad'
}

function bytesOf(words: Uint32Array): Buffer {
  return Buffer.from(words.buffer, words.byteOffset, words.byteLength)
}

/**
 * What the guest would see on an image that nobody has open: `image` is a path or whatever else qemu-img takes
 * (`nbd+unix:///?socket=…`), `format` its format.
 */
export async function checkPattern(
  image: string,
  format: string,
  seed: number,
  baseSize = Infinity,
): Promise<PatternReport> {
  if (format === 'raw' && image.startsWith('/')) return await checkRawPattern(image, seed, baseSize)
  const dir = await mkdtemp(join(process.env['VIRSTREAM_TEST_DIR'] ?? tmpdir(), 'virstream-check-'))
  try {
    const raw = join(dir, 'raw')
    await run('qemu-img', ['convert', '-f', format, '-O', 'raw', image, raw], { timeout: 120_000 })
    return await checkRawPattern(raw, seed, baseSize)
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}
