import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import type { NbdClient } from '../../src/nbd/client.js'
import { NbdError } from '../../src/nbd/error.js'
import { DEFAULT_UNIT, nextUnit, unitsOf } from '../../src/nbd/allocation-depth.js'
import { Puller } from '../../src/qemu/puller.js'

const UNITS = 40

/** A disk whose blocks lie at the given depths; `cache` brings them to depth 1 after a while, as the test tells it. */
class Disk {
  readonly size = UNITS * DEFAULT_UNIT
  readonly depths: number[]
  readonly asked: number[] = []
  flying = 0
  most = 0
  /** what happens to one request; default: it is answered soon */
  answer: (unit: number) => Promise<void> = () => delay(1)

  constructor(depthOf: (unit: number) => number) {
    this.depths = Array.from({ length: UNITS }, (_, unit) => depthOf(unit))
  }

  // eslint-disable-next-line @typescript-eslint/require-await
  async *extents(_context: string, offset = 0): AsyncGenerator<{ offset: number; length: number; flags: number }> {
    for (let unit = Math.floor(offset / DEFAULT_UNIT); unit < UNITS; unit++)
      yield { offset: Math.max(offset, unit * DEFAULT_UNIT), length: DEFAULT_UNIT, flags: this.depths[unit] ?? 0 }
  }

  async cache(offset: number): Promise<void> {
    const unit = offset / DEFAULT_UNIT
    this.asked.push(unit)
    this.most = Math.max(this.most, ++this.flying)
    try {
      await this.answer(unit)
      this.depths[unit] = 1
    } finally {
      this.flying--
    }
  }

  get client(): NbdClient {
    return this as unknown as NbdClient
  }
}

test('everything below the own image is pulled, with the window full, and nothing else', async () => {
  const disk = new Disk((unit) => (unit % 4 === 0 ? 1 : unit % 4 === 1 ? 0 : 2))
  const puller = new Puller(disk.client, { window: 8, bandwidth: 0 })
  await puller.run()
  assert.equal(disk.asked.length, UNITS / 2)
  assert.equal(disk.most, 8)
  assert.ok(disk.depths.every((depth) => depth < 2))
  assert.equal(puller.position, disk.size)
})

test('images deeper than asked stay where they are', async () => {
  const disk = new Disk((unit) => (unit % 2 === 0 ? 2 : 3))
  await new Puller(disk.client, { window: 4, bandwidth: 0, maxDepth: 2 }).run()
  assert.ok(disk.depths.every((depth) => depth === 1 || depth === 3))
})

test('the position is that of the oldest request under way, and only grows', async () => {
  const disk = new Disk(() => 2)
  disk.answer = (unit) => delay(unit === 3 ? 40 : 1)
  const puller = new Puller(disk.client, { window: 4, bandwidth: 0 })
  const seen: number[] = []
  const done = puller.run()
  while (puller.position < disk.size) {
    seen.push(puller.position)
    await delay(2)
  }
  await done
  assert.deepEqual(
    seen,
    seen.toSorted((a, b) => a - b),
  )
  assert.ok(seen.includes(3 * DEFAULT_UNIT), 'it stood at the slow one')
})

test('a full disk is waited for', async () => {
  const disk = new Disk(() => 2)
  let refusals = 2
  disk.answer = async () => {
    await delay(1)
    if (refusals-- > 0) throw new NbdError('ENOSPC', 'no space')
  }
  const puller = new Puller(disk.client, { window: 2, bandwidth: 0 })
  const done = puller.run()
  await delay(50)
  assert.equal(puller.full, true)
  await done
  assert.equal(puller.full, false)
  assert.ok(disk.depths.every((depth) => depth === 1))
})

test('a base that cannot be read ends the pull with its error, after the others were answered', async () => {
  const disk = new Disk(() => 2)
  disk.answer = async (unit) => {
    await delay(1)
    if (unit === 5) throw new NbdError('EIO', 'no')
  }
  const puller = new Puller(disk.client, { window: 4, bandwidth: 0 })
  await assert.rejects(puller.run(), (error) => error instanceof NbdError && error.code === 'EIO')
  assert.equal(disk.flying, 0)
  assert.ok(disk.asked.length < UNITS)
})

test('an abort is obeyed although a request is never answered', async () => {
  const disk = new Disk(() => 2)
  disk.answer = () => new Promise(() => undefined)
  const puller = new Puller(disk.client, { window: 4, bandwidth: 0 })
  const done = puller.run()
  await delay(10)
  assert.equal(puller.isBusy, true)
  puller.abort()
  await done
  assert.equal(disk.asked.length, 4)
})

test('a pull that is aborted while it waits for its bandwidth has nothing left under way', async () => {
  const disk = new Disk(() => 2)
  const puller = new Puller(disk.client, { window: 4, bandwidth: 10 * DEFAULT_UNIT })
  disk.answer = () => delay(30)
  const done = puller.run()
  await delay(20)
  puller.abort()
  await done
  await delay(40)
  assert.equal(puller.isBusy, false)
})

test('a limit holds, and a higher one wakes a pull that waits for the lower', async () => {
  const disk = new Disk(() => 2)
  const puller = new Puller(disk.client, { window: 4, bandwidth: 1 })
  const done = puller.run()
  await delay(30)
  assert.ok(disk.asked.length <= 2, `${disk.asked.length} requests at one byte a second`)
  puller.setBandwidth(0)
  await done
  assert.equal(disk.asked.length, UNITS)
})

test('while it rests no requests are made', async () => {
  const disk = new Disk(() => 2)
  const puller = new Puller(disk.client, { window: 2, bandwidth: 0 })
  puller.rest(true)
  const done = puller.run()
  await delay(20)
  assert.equal(disk.asked.length, 0)
  puller.rest(false)
  await done
  assert.equal(disk.asked.length, UNITS)
})

test('what lies at different depths below each other is pulled as one', async () => {
  const disk = new Disk((unit) => (unit >= 20 ? 1 : 2 + (unit % 2)))
  const units: number[] = []
  for await (const { length } of unitsOf(disk.client, { unit: 8 * DEFAULT_UNIT })) units.push(length / DEFAULT_UNIT)
  assert.deepEqual(units, [8, 8, 4])
})

test('the next unit begins at or behind the offset', async () => {
  const disk = new Disk((unit) => (unit >= 10 ? 2 : 1))
  assert.deepEqual(await nextUnit(disk.client, 0, 4096), { offset: 10 * DEFAULT_UNIT, length: 4096 })
  assert.equal((await nextUnit(disk.client, 11 * DEFAULT_UNIT + 512, 4096))?.offset, 11 * DEFAULT_UNIT + 512)
  assert.equal(await nextUnit(new Disk(() => 1).client, 0, 4096), undefined)
})
