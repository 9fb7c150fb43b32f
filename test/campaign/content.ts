/** What each block of the disk may hold after a kill, from what was written and flushed; and what it does hold. */
import { appendFileSync, existsSync, readFileSync } from 'node:fs'
import { mkdtemp, open, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { run } from '../../src/util/run.js'
import { baseBlock, BLOCK_SIZE, writtenBlock } from '../support/pattern.js'
import { DISK, type Place } from './place.js'

const file = (place: Place): string => join(place.folder, 'writes.log')

/** Notes of a writer whose blocks are full of one byte: `w FIRST COUNT BYTE` before, `W` after, `f` and `F` for flushes. */
export function noteWrite(place: Place, line: string): void {
  appendFileSync(file(place), `${line}\n`)
}

/** What a block may hold: base (0), a byte, or what a guest wrote in write number ≥ n. */
type Allowed = ReadonlySet<number> | { since: number }

/** By block; what is not in it must be as in the base. */
export type Expected = Map<number, Allowed>

/**
 * Replays the notes. What was answered is there, unless who had it in his caches was killed (`lossy`): then only what was
 * flushed must be there, and what came later may be.
 */
export function expectedOf(place: Place, lossy: boolean): Expected {
  const blocks = new Map<number, Set<number>>()
  const last = new Map<number, number>()
  const candidates = (block: number): Set<number> => {
    const known = blocks.get(block) ?? new Set([0])
    blocks.set(block, known)
    return known
  }
  let asked: readonly number[] = []
  const lines = existsSync(file(place)) ? readFileSync(file(place), 'utf8').split('\n') : []
  for (const line of lines) {
    const [first = 0, count = 0, byte = 0] = line.slice(2).split(' ').map(Number)
    if (line.startsWith('w')) {
      asked = [first, count, byte]
      for (let block = first; block < first + count; block++) candidates(block).add(byte)
    } else if (line === 'W') {
      const [from = 0, length = 0, value = 0] = asked
      for (let block = from; block < from + length; block++) {
        last.set(block, value)
        if (!lossy) blocks.set(block, new Set([value]))
      }
    } else if (line === 'F') for (const [block, value] of last) blocks.set(block, new Set([value]))
  }
  return blocks
}

export interface Wrong {
  block: number
  /** in words */
  holds: string
}

/** Compares an image that nobody has open, as a guest would see it; `guest`: its own blocks are right anywhere. */
export async function wrongBlocks(
  place: Place,
  seed: number,
  expected: Expected,
  guest: boolean,
): Promise<{ wrong: Wrong[]; written: number }> {
  const dir = await mkdtemp(join(place.folder, 'check-'))
  try {
    const raw = join(dir, 'raw')
    await run('qemu-img', ['convert', '-f', 'qcow2', '-O', 'raw', place.image, raw], { timeout: 120_000 })
    return await compare(raw, seed, expected, guest)
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
}

const CHUNK = 256 * BLOCK_SIZE

async function compare(
  raw: string,
  seed: number,
  expected: Expected,
  guest: boolean,
): Promise<{ wrong: Wrong[]; written: number }> {
  const handle = await open(raw)
  const wrong: Wrong[] = []
  let written = 0
  try {
    const bytes = Buffer.alloc(CHUNK)
    for (let first = 0; ; first += CHUNK / BLOCK_SIZE) {
      const { bytesRead } = await handle.read(bytes, 0, CHUNK, first * BLOCK_SIZE)
      if (bytesRead === 0) return { wrong, written }
      for (let at = 0; at < bytesRead; at += BLOCK_SIZE) {
        const block = first + at / BLOCK_SIZE
        const found = contentOf(bytes.subarray(at, at + BLOCK_SIZE), seed, block)
        if (found.kind !== 'base') written++
        if (!isAllowed(found, expected.get(block), guest)) wrong.push({ block, holds: found.words })
      }
    }
  } finally {
    await handle.close()
  }
}

interface Found {
  kind: 'base' | 'byte' | 'guest' | 'other'
  /** the byte, or the number of the write */
  value: number
  words: string
}

const scratch = new Uint32Array(BLOCK_SIZE / 4)
const scratchBytes = Buffer.from(scratch.buffer)

function contentOf(bytes: Buffer, seed: number, block: number): Found {
  baseBlock(scratch, seed, block)
  if (bytes.equals(scratchBytes)) return { kind: 'base', value: 0, words: 'what the base holds' }
  const [byte = 0] = bytes
  if (byte !== 0 && bytes.every((each) => each === byte)) return { kind: 'byte', value: byte, words: `bytes ${byte}` }
  const sequence = bytes.readUInt32LE(12)
  writtenBlock(scratch, DISK, block, sequence)
  if (bytes.equals(scratchBytes)) return { kind: 'guest', value: sequence, words: `write ${sequence} of the guest` }
  return {
    kind: 'other',
    value: 0,
    words: byte === 0 && bytes.every((each) => each === 0) ? 'zeros' : 'something else',
  }
}

function isAllowed(found: Found, allowed: Allowed | undefined, guest: boolean): boolean {
  if (found.kind === 'other') return false
  if (found.kind === 'guest')
    return guest && (allowed === undefined || !('since' in allowed) || found.value >= allowed.since)
  if (allowed === undefined) return found.kind === 'base'
  return !('since' in allowed) && allowed.has(found.value)
}
