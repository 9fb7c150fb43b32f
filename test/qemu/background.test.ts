/** Work that nobody awaits. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { bareQemu } from './bare.js'

test('what is under way is waited for when a root is let go of, and what comes later is not begun any more', async (t) => {
  const { qemu } = await bareQemu(t)
  const done: string[] = []
  qemu.inBackground('the first', async () => {
    await new Promise((resolve) => setImmediate(resolve))
    qemu.inBackground('what it causes', () => Promise.resolve(void done.push('second')))
    done.push('first')
  })
  await qemu.idle()
  assert.deepEqual(done.toSorted(), ['first', 'second'])
  qemu.inBackground('a timer that comes too late', () => Promise.resolve(void done.push('late')))
  await qemu.idle()
  assert.equal(done.length, 2)
})
