/** What holds for a disk that was streamed beside a guest, whatever happened meanwhile. */
import assert from 'node:assert/strict'
import type { Domain, StreamDiskState } from '../../src/index.js'
import { powerOff, until } from './domain.js'
import type { Guest, GuestStat } from './guest.js'
import { backingOf } from './images.js'
import { checkPattern } from './pattern.js'

/** The guest ends its work on the disk, and finds each block right. */
export async function assertRight(guest: Guest, disk = 'vda'): Promise<void> {
  await guest.stop(disk)
  const { bad, err } = await guest.verify(disk)
  assert.deepEqual({ bad, err }, { bad: 0, err: 0 })
}

/**
 * Until the stream of a disk waits; answers what was seen then, of one look: what QEMU had on its way may still come after
 * it, and the stream has moved again.
 */
export async function untilWaits(dom: Domain, disk = 'vda'): Promise<StreamDiskState> {
  let seen: StreamDiskState | undefined
  await until('the stream waits', async () => {
    seen = (await dom.streamDiskInfo()).find((state) => state.disk === disk)
    return seen?.status === 'waiting'
  })
  assert.ok(seen !== undefined)
  return seen
}

export interface Streamed {
  dom: Domain
  guest: Guest
  /** of the disk's image */
  path: string
  base: { seed: number; size?: number }
}

/**
 * The guest, which worked on its disk until now, has met no error and finds each block right; it is powered down, and its
 * image holds the same without a base. Answers what the guest did.
 */
export async function assertStreamed({ dom, guest, path, base }: Streamed): Promise<GuestStat> {
  const worked = await guest.stop()
  assert.deepEqual({ bad: worked.bad, errors: worked.errors }, { bad: 0, errors: 0 })
  await assertRight(guest)
  const digest = await guest.digest('vda')
  await powerOff(dom, guest)
  assert.equal(await backingOf(path), undefined)
  assert.equal((await checkPattern(path, 'qcow2', base.seed, base.size)).digest, digest)
  return worked
}
