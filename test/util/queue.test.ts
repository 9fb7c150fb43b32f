import assert from 'node:assert/strict'
import { test } from 'node:test'
import { BoundedQueue } from '../../src/util/queue.js'

interface Item {
  rank: number
  key?: string
  value: number
}

function queueOf(bound: number): BoundedQueue<Item> {
  return new BoundedQueue<Item>({
    bound,
    keyOf: ({ key }) => key,
    rankOf: ({ rank }) => rank,
    gap: (dropped) => ({ rank: -1, value: -dropped }),
  })
}

async function drain(queue: BoundedQueue<Item>): Promise<number[]> {
  queue.close()
  const values: number[] = []
  for await (const { value } of queue) values.push(value)
  return values
}

const plain = (value: number, rank = 1): Item => ({ rank, value })

test('what was pushed before and after the reader came is read in order', async () => {
  const queue = queueOf(10)
  queue.push(plain(1))
  queue.push(plain(2))
  const third = (async () => [await queue.next(), await queue.next(), await queue.next()])()
  queue.push(plain(3))
  assert.deepEqual(
    (await third).map(({ value }) => value?.value),
    [1, 2, 3],
  )
})

test('a closed queue gives what waits in it and then ends, also for readers that wait already', async () => {
  const queue = queueOf(10)
  const waiting = queue.next()
  queue.close()
  assert.deepEqual(await waiting, { done: true, value: undefined })
  const other = queueOf(10)
  other.push(plain(1))
  assert.deepEqual(await drain(other), [1])
  other.push(plain(2))
  assert.deepEqual(await other.next(), { done: true, value: undefined })
})

test('below the bound nothing is merged or dropped', async () => {
  const queue = queueOf(3)
  for (const value of [1, 2, 3]) queue.push({ rank: 0, key: 'same', value })
  assert.deepEqual(await drain(queue), [1, 2, 3])
})

test('past the bound only the newest item of a key stays, at its own place, and no gap is told', async () => {
  const queue = queueOf(3)
  queue.push({ rank: 0, key: 'a', value: 1 })
  queue.push(plain(2))
  queue.push({ rank: 0, key: 'a', value: 3 })
  queue.push({ rank: 0, key: 'a', value: 4 })
  queue.push(plain(5))
  assert.deepEqual(await drain(queue), [2, 4, 5])
})

test('past the bound the oldest item of the lowest rank goes, and a gap stands where it was', async () => {
  const queue = queueOf(3)
  queue.push(plain(1, 2))
  queue.push(plain(2, 0))
  queue.push(plain(3, 1))
  queue.push(plain(4, 2))
  queue.push(plain(5, 2))
  queue.push(plain(6, 2))
  assert.deepEqual(await drain(queue), [-3, 4, 5, 6])
})

test('an item that ranks below all that wait is itself the one that goes', async () => {
  const queue = queueOf(2)
  queue.push(plain(1, 2))
  queue.push(plain(2, 2))
  queue.push(plain(3, 0))
  queue.push(plain(4, 0))
  assert.deepEqual(await drain(queue), [1, 2, -2])
})

test('a gap that was read is over: the next one counts anew', async () => {
  const queue = queueOf(1)
  for (const value of [1, 2, 3]) queue.push(plain(value))
  assert.equal((await queue.next()).value?.value, -2)
  assert.equal((await queue.next()).value?.value, 3)
  for (const value of [4, 5]) queue.push(plain(value))
  assert.deepEqual(await drain(queue), [-1, 5])
})

test('a queue never holds more than its bound and one gap, however much is pushed', () => {
  const queue = queueOf(100)
  for (let value = 0; value < 10_000; value += 1) {
    queue.push({ rank: value % 3, value, ...(value % 2 === 0 && { key: `k${value % 50}` }) })
    assert.ok(queue.length <= 101)
  }
})

test('a reader that gives up is said to whoever made the queue, and nothing is kept for it', async () => {
  let gone = 0
  const queue = new BoundedQueue<Item>(
    { bound: 5, keyOf: () => undefined, rankOf: () => 0, gap: () => plain(0) },
    () => (gone += 1),
  )
  queue.push(plain(1))
  queue.push(plain(2))
  for await (const { value } of queue) {
    assert.equal(value, 1)
    break
  }
  assert.equal(gone, 1)
  queue.push(plain(3))
  assert.equal(queue.length, 0)
})
