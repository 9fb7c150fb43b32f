/** Which blocks of a disk lie in its own image and which below, asked of a QEMU that exports it. */
import type { NbdClient } from './client.js'

/** The metadata context that says how deep in the backing chain a block lies: 1 the disk's own image, 2 and more below. */
export const ALLOCATION_DEPTH = 'qemu:allocation-depth'

/** bytes of one request; the size of block-stream's own chunks, and the best in measurements */
export const DEFAULT_UNIT = 512 * 1024
/** NBD_CMD_CACHE takes no more */
export const MAX_UNIT = 32 * 1024 * 1024

export interface Range {
  /** bytes */
  offset: number
  /** bytes */
  length: number
}

export interface UnitOptions {
  /** where to begin */
  offset?: number
  /** images deeper than this do not count */
  maxDepth?: number | undefined
  /** bytes of a unit at most */
  unit: number
}

/** What only backing images (down to `maxDepth`) hold, unit by unit. */
export async function* unitsOf(
  client: NbdClient,
  { offset = 0, maxDepth = Infinity, unit }: UnitOptions,
): AsyncGenerator<Range> {
  let [from, to] = [offset, offset]
  for await (const extent of client.extents(ALLOCATION_DEPTH, offset)) {
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

/** The first unit of at most `unit` bytes from `offset` on that only backing images hold; undefined: there is none. */
export async function nextUnit(client: NbdClient, offset: number, unit: number): Promise<Range | undefined> {
  for await (const range of unitsOf(client, { offset, unit })) return range
  return undefined
}
