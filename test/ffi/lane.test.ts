/** What looks after the calls of a connection, with a clock of the test's own. */
import assert from 'node:assert/strict'
import { test, type TestContext } from 'node:test'
import { Lane } from '../../src/ffi/lane.js'

interface Watched {
  lane: Lane
  asked: () => number
  hungUp: () => number
}

function watched(t: TestContext): Watched {
  t.mock.timers.enable({ apis: ['setInterval'] })
  const [ask, hangUp] = [t.mock.fn(), t.mock.fn()]
  const lane = new Lane(() => undefined, ask, hangUp)
  return { lane, asked: () => ask.mock.callCount(), hungUp: () => hangUp.mock.callCount() }
}

test('a server that answers nothing is asked once, and hung up on after 40 s; any answer begins anew', async (t) => {
  const { lane, asked, hungUp } = watched(t)
  void lane.watch(new Promise(() => undefined))
  t.mock.timers.tick(35_000)
  assert.deepEqual([asked(), hungUp()], [1, 0])
  await lane.watch(Promise.resolve())
  t.mock.timers.tick(35_000)
  assert.deepEqual([asked(), hungUp()], [2, 0])
  t.mock.timers.tick(5_000)
  assert.equal(hungUp(), 1)
})

test('of a connection that is closed nothing is looked after, and no timer keeps it in memory', (t) => {
  const { lane, asked, hungUp } = watched(t)
  void lane.watch(new Promise(() => undefined))
  lane.end()
  t.mock.timers.tick(60_000)
  assert.deepEqual([asked(), hungUp()], [0, 0])
})
