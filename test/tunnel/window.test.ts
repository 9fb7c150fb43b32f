import assert from 'node:assert/strict'
import { test } from 'node:test'
import { defaultWindows, ReceiveWindow, RoundTrips } from '../../src/tunnel/window.js'

const MiB = 1024 * 1024

interface Link {
  /** bytes per ms */
  rate: number
  /** ms there and back, of the link itself */
  way: number
  /** the consumer takes so many bytes per ms at most */
  consumer?: number
  /** ms that answers take longer for another reason than our bytes */
  noise?: number
  /** ms after which the rate is another one */
  slowFrom?: number
  slowRate?: number
}

/** A link and a sender that always sends all it may, for so many ms; answers the window's size at each of them. */
function simulate(link: Link, ms: number): number[] {
  const { way, consumer = Infinity, noise = 0, slowFrom = Infinity } = link
  const trips = new RoundTrips()
  const window = new ReceiveWindow(defaultWindows, 0)
  trips.add(way)
  const sizes: number[] = []
  /** what may still be sent, and credit on its way back */
  let allowed = defaultWindows.floor
  let queued = 0
  let waiting = 0
  const arriving: number[] = []
  const returning: number[] = []
  for (let now = 1; now <= ms; now++) {
    const rate = now < slowFrom ? link.rate : (link.slowRate ?? link.rate)
    allowed += returning[now] ?? 0
    queued += allowed
    allowed = 0
    const out = Math.min(queued, rate)
    queued -= out
    arriving[now + Math.ceil(way / 2)] = out
    const bytes = arriving[now] ?? 0
    assert.ok(window.received(bytes))
    waiting += bytes
    if (now % 50 === 0) trips.add(way + queued / rate + noise)
    const taken = Math.min(waiting, consumer)
    waiting -= taken
    const credit = window.taken(taken, now, trips)
    const back = now + Math.ceil(way / 2)
    returning[back] = (returning[back] ?? 0) + credit
    sizes.push(window.size)
  }
  return sizes
}

const late = (sizes: number[]): number[] => sizes.slice(-1000)

const KiB = 1024

test('a short link of 1 Gbit/s keeps a window that adds some 4 ms at most', () => {
  for (const size of simulate({ rate: 125_000, way: 1 }, 5000)) assert.ok(size <= 512 * KiB, `${size}`)
})

test('a long link is filled: the window grows to what is under way on it, and not much further', () => {
  const underWay = 125_000 * 60
  for (const size of late(simulate({ rate: 125_000, way: 60 }, 8000))) {
    assert.ok(size >= underWay, `${size}`)
    assert.ok(size <= underWay * 2.5, `${size}`)
  }
})

test('answers that come late for another reason do not keep the window small', () => {
  for (const size of late(simulate({ rate: 50_000, way: 40, noise: 30 }, 6000)))
    assert.ok(size >= 50_000 * 40, `${size}`)
})

test('a consumer that is slow does not get a larger window', () => {
  for (const size of simulate({ rate: 125_000, way: 10, consumer: 1000 }, 3000)) assert.equal(size, 256 * KiB)
})

test('the window shrinks again when the link has become slower', () => {
  const sizes = simulate({ rate: 125_000, way: 60, slowFrom: 5000, slowRate: 5000 }, 40_000)
  assert.ok((sizes[4999] ?? 0) >= 125_000 * 60)
  assert.ok(Math.min(...late(sizes)) <= 2 * MiB, `${sizes.at(-1) ?? 0}`)
})

test('more than was granted is noticed', () => {
  const window = new ReceiveWindow(defaultWindows, 0)
  assert.ok(window.received(defaultWindows.floor))
  assert.ok(!window.received(1))
})
