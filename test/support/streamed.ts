/** What holds for a disk that was streamed beside a guest, whatever happened meanwhile. */
import assert from 'node:assert/strict'
import type { Domain } from '../../src/index.js'
import { powerOff } from './domain.js'
import type { Guest } from './guest.js'
import { backingOf } from './images.js'
import { checkPattern } from './pattern.js'

export interface Streamed {
  dom: Domain
  guest: Guest
  /** of the disk's image */
  path: string
  base: { seed: number }
}

/**
 * The guest, which worked on its disk until now, has met no error and finds each block right; it is powered down, and its
 * image holds the same without a base.
 */
export async function assertStreamed({ dom, guest, path, base }: Streamed): Promise<void> {
  const { bad, errors } = await guest.stop()
  assert.deepEqual({ bad, errors }, { bad: 0, errors: 0 })
  assert.equal((await guest.verify('vda')).bad, 0)
  const digest = await guest.digest('vda')
  await powerOff(dom, guest)
  assert.equal(await backingOf(path), undefined)
  assert.equal((await checkPattern(path, 'qcow2', base.seed)).digest, digest)
}
