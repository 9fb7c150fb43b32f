/** Which blocks of a disk lie in its own image and which below, asked of a QEMU that exports it. */
import type { NbdClient } from './client.js'

/** The metadata context that says how deep in the backing chain a block lies: 1 the disk's own image, 2 and more below. */
export const ALLOCATION_DEPTH = 'qemu:allocation-depth'

/** bytes of one request; the size of block-stream's own chunks, and the best in measurements */
export const DEFAULT_UNIT = 512 * 1024
/** NBD_CMD_CACHE takes no more */
export const MAX_UNIT = 32 * 1024 * 1024
/** bytes; the least that is asked about */
const SECTOR = 512
/** bytes; the most */
const FURTHEST = 2 ** 30
/** units that one question stands for */
const STRIDE = 8
/** questions that are asked before their answers are needed */
const AHEAD = 4

export interface Range {
  /** bytes */
  offset: number
  /** bytes */
  length: number
}

export interface UnitOptions {
  /** where to begin */
  offset?: number
  /** where to end; default: where the disk does */
  end?: number
  /** images deeper than this do not count */
  maxDepth?: number | undefined
  /** bytes of a unit at most */
  unit: number
}

/** What only backing images (down to `maxDepth`) hold, unit by unit. */
export async function* unitsOf(
  client: NbdClient,
  { offset = 0, end = client.size, maxDepth = Infinity, unit }: UnitOptions,
): AsyncGenerator<Range> {
  let [from, to] = [offset, offset]
  for await (const extent of client.extents(ALLOCATION_DEPTH, offset, end)) {
    if (extent.flags >= 2 && extent.flags <= maxDepth) {
      if (from === to) from = extent.offset
      to = extent.offset + extent.length
      for (; to - from >= unit; from += unit) yield { offset: from, length: unit }
    } else if (from < to) {
      yield { offset: from, length: to - from }
      from = to
    }
  }
  if (from < to) yield { offset: from, length: to - from }
}

/**
 * The same for a disk that needs all of one image below, which is raw and behind a link. There QEMU takes a round trip for
 * each extent of a range that it is asked about, although all of them lie in that image. So it is only asked where a stretch
 * of some units begins to be missing; what is there behind that place costs a request that copies nothing. Where that
 * cannot be answered the stretch is taken for missing.
 */
export async function* unitsAhead(
  client: NbdClient,
  { offset = 0, unit }: Pick<UnitOptions, 'offset' | 'unit'>,
): AsyncGenerator<Range> {
  const { size } = client
  const stretch = STRIDE * unit
  const asked: { at: number; from: Promise<number> }[] = []
  let [next, done] = [offset, offset]
  try {
    for (;;) {
      for (; asked.length < AHEAD && next < size; next += stretch)
        asked.push({ at: next, from: missingFrom(client, next).catch(orAt(next)) })
      const [first] = asked
      if (first === undefined) return
      const from = Math.max(done, await first.from)
      asked.shift()
      const end = Math.min(first.at + stretch, size)
      yield* slices(from, end, first.at, unit)
      done = Math.max(from, end)
      next = Math.max(next, first.at + Math.floor((done - first.at) / stretch) * stretch)
    }
  } finally {
    // QEMU must not be left with questions that nobody knows of
    await Promise.all(asked.map(({ from }) => from))
  }
}

/** From `from` to `end`, cut at each `unit` behind `origin`. */
function* slices(from: number, end: number, origin: number, unit: number): Generator<Range> {
  for (let at = from; at < end;) {
    const to = Math.min(end, origin + (Math.floor((at - origin) / unit) + 1) * unit)
    yield { offset: at, length: to - at }
    at = to
  }
}

const orAt = (offset: number) => (): number => offset

/** `offset` if only the images below hold what is there; else where that may begin, at most FURTHEST further. */
async function missingFrom(client: NbdClient, offset: number): Promise<number> {
  for (const length of [SECTOR, FURTHEST]) {
    const within = Math.min(length, client.size - offset)
    const [extent] = (await client.blockStatus(offset, within, { one: true })).get(ALLOCATION_DEPTH) ?? []
    if (extent === undefined || extent.flags >= 2) return offset
    if (length === FURTHEST) return offset + extent.length
  }
  return offset
}

/** The first unit of at most `unit` bytes from `offset` on that only backing images hold; undefined: there is none. */
export async function nextUnit(client: NbdClient, offset: number, unit: number): Promise<Range | undefined> {
  for (let at = offset; at < client.size;) {
    const from = await missingFrom(client, at)
    if (from > at) {
      at = from
      continue
    }
    const end = Math.min(at + unit, client.size)
    for await (const range of unitsOf(client, { offset: at, end, unit })) return range
    at = end
  }
  return undefined
}
