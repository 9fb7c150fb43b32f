import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import type { NbdClient, NbdExtent } from '../../src/nbd/client.js'
import { NbdError } from '../../src/nbd/error.js'
import { ALLOCATION_DEPTH, DEFAULT_UNIT, nextUnit, unitsAhead, unitsOf } from '../../src/nbd/allocation-depth.js'
import { Puller } from '../../src/qemu/blocks/puller.js'

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
  /** the same for a question about blocks */
  tell: (unit: number) => Promise<void> = () => Promise.resolve()
  /** questions that are not answered yet */
  open = 0
  mostOpen = 0
  /** bytes of blocks below the own image that were asked about, each of which costs a way there and back */
  looked = 0

  constructor(depthOf: (unit: number) => number) {
    this.depths = Array.from({ length: UNITS }, (_, unit) => depthOf(unit))
  }

  // eslint-disable-next-line @typescript-eslint/require-await
  async *extents(_context: string, offset = 0, end = this.size): AsyncGenerator<NbdExtent> {
    for (let unit = Math.floor(offset / DEFAULT_UNIT); unit * DEFAULT_UNIT < end; unit++) {
      const at = Math.max(offset, unit * DEFAULT_UNIT)
      const length = Math.min(end, (unit + 1) * DEFAULT_UNIT) - at
      yield { offset: at, length, flags: this.depths[unit] ?? 0 }
    }
  }

  /** Of a single extent: it goes on as long as its depth stays the same. */
  async blockStatus(offset: number, length: number, { one }: { one?: boolean }): Promise<Map<string, NbdExtent[]>> {
    assert.equal(one, true)
    this.mostOpen = Math.max(this.mostOpen, ++this.open)
    try {
      await this.tell(Math.floor(offset / DEFAULT_UNIT))
      let found: NbdExtent | undefined
      for await (const extent of this.extents(ALLOCATION_DEPTH, offset, offset + length)) {
        if (extent.flags >= 2) this.looked += extent.length
        if (found !== undefined && found.flags !== extent.flags) break
        found = { ...extent, offset, length: extent.offset + extent.length - offset }
      }
      return new Map([[ALLOCATION_DEPTH, found === undefined ? [] : [found]]])
    } finally {
      this.open--
    }
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
  const seen: number[] = []
  disk.answer = async (unit) => {
    await delay(1)
    for (let tries = 0; unit === 3 && !seen.includes(3 * DEFAULT_UNIT) && tries < 5_000; tries++) await delay(1)
  }
  const puller = new Puller(disk.client, { window: 4, bandwidth: 0 })
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
  while (!puller.full) await delay(1)
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

test('over a link stretches of units are asked about, several at a time, and one that is there is passed over', async () => {
  // stretches of eight: there, there, missing, missing but for its beginning, missing
  const disk = new Disk((unit) => (unit < 16 || (unit >= 24 && unit < 27) || unit === 20 ? 1 : 2))
  disk.tell = () => delay(5)
  await new Puller(disk.client, { window: 8, bandwidth: 0, overLink: true }).run()
  const expected = Array.from({ length: UNITS }, (_, unit) => unit).filter(
    (unit) => unit >= 16 && !(unit >= 24 && unit < 27),
  )
  assert.deepEqual(disk.asked, expected)
  assert.ok(disk.mostOpen > 2, `${disk.mostOpen} questions at a time`)
  assert.ok(disk.looked <= 5 * 512 + 4 * DEFAULT_UNIT, `${disk.looked} bytes were looked at`)
  const [again] = [new Disk((unit) => (unit === 39 ? 2 : 1))]
  await new Puller(again.client, { window: 8, bandwidth: 0, overLink: true }).run()
  assert.deepEqual(again.asked, [39])
})

test('over a link a stretch that begins in the own image is pulled from where that ends, in units', async () => {
  const disk = new Disk((unit) => (unit % 8 === 0 ? 1 : 2))
  const units: [number, number][] = []
  for await (const { offset, length } of unitsAhead(disk.client, { unit: 2 * DEFAULT_UNIT }))
    units.push([offset / DEFAULT_UNIT, length / DEFAULT_UNIT])
  const whole = (from: number, to: number): [number, number][] =>
    Array.from({ length: (to - from) / 2 }, (_, nth) => [from + 2 * nth, 2])
  assert.deepEqual(units, [[1, 1], ...whole(2, 16), [17, 1], ...whole(18, 32), [33, 1], ...whole(34, 40)])
})

test('over a link a unit that nothing is known of is pulled', async () => {
  const disk = new Disk((unit) => (unit < 2 ? 1 : 2))
  disk.tell = (unit) => (unit < 4 ? Promise.reject(new NbdError('EIO', 'no')) : Promise.resolve())
  await new Puller(disk.client, { window: 4, bandwidth: 0, overLink: true }).run()
  assert.equal(disk.asked.length, UNITS)
})

test('a pull that is stopped is busy until its questions are answered too', async () => {
  const disk = new Disk(() => 2)
  let tell = (): void => undefined
  const told = new Promise<void>((resolve) => (tell = resolve))
  disk.tell = (unit) => (unit < 4 ? Promise.resolve() : told)
  const puller = new Puller(disk.client, { window: 2, bandwidth: 0, overLink: true })
  const done = puller.run()
  while (disk.asked.length < 8 || puller.inFlight > 0) await delay(1)
  puller.abort()
  assert.equal(puller.isBusy, true)
  tell()
  await done
  assert.equal(puller.isBusy, false)
  assert.equal(disk.open, 0)
  assert.equal(disk.asked.length, 8)
})

test('the next unit is found without a look at what lies behind it', async () => {
  const disk = new Disk((unit) => (unit >= 10 ? 2 : 1))
  assert.deepEqual(await nextUnit(disk.client, 0, 4096), { offset: 10 * DEFAULT_UNIT, length: 4096 })
  assert.ok(disk.looked <= 2 * DEFAULT_UNIT, `${disk.looked} bytes were looked at`)
})
