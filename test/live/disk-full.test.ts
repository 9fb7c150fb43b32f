/** The disk that the image lies on is full: stream and guest wait, and go on when there is room. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  VIR_DOMAIN_EVENT_IO_ERROR_PAUSE,
  VIR_DOMAIN_PAUSED,
  VIR_DOMAIN_PAUSED_IOERROR,
  VIR_DOMAIN_RUNNING,
} from '../../src/index.js'
import { diskXml, powerOff, recordEvents, startGuest, startPlain, testRoot, until } from '../support/domain.js'
import { backingOf, checkImage, overlay, patternImage } from '../support/images.js'
import { checkPattern } from '../support/pattern.js'
import { requires } from '../support/requires.js'
import { untilWaits } from '../support/streamed.js'
import { smallDisk } from '../support/small-disk.js'

const MiB = 1024 * 1024

for (const engine of ['job', 'pull'] as const) {
  test(`engine '${engine}': a stream waits for room on a full disk, says so, and goes on by itself`, async (t) => {
    if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
    const root = await testRoot(t)
    const base = await patternImage(root.folder, 32 * MiB)
    const disk = await smallDisk(t, '12M')
    const path = await overlay(disk.path, base.path)
    const dom = await startPlain(root, { name: `full-${engine}`, devices: diskXml('vda', path) })
    const stream = await dom.stream('vda', { engine })
    const waiting = await untilWaits(dom)
    assert.equal(waiting.error, 'No space left on device')
    assert.ok(waiting.offset > 0 && waiting.offset < waiting.size, JSON.stringify(waiting))
    await disk.grow()
    await stream.finished
    assert.equal(await backingOf(path), undefined)
    await dom.destroy()
    await checkImage(path)
    assert.equal((await checkPattern(path, 'qcow2', base.seed)).bad, 0)
  })
}

test('a guest that writes to a full disk is paused, and has lost nothing when it is resumed', async (t) => {
  if (!requires(t, 'root', 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 16 * MiB)
  const disk = await smallDisk(t, '4M')
  const path = await overlay(disk.path, base.path)
  const { dom, guest } = await startGuest(t, root, { name: 'filling', devices: diskXml('vda', path) })
  const events = recordEvents(root.conn)
  await guest.base('vda', base.seed, base.size)
  await guest.work('vda', 'writes')
  await until('the guest is paused', async () => (await dom.getState()).state === VIR_DOMAIN_PAUSED)
  assert.equal((await dom.getState()).reason, VIR_DOMAIN_PAUSED_IOERROR)
  const errors = events.flatMap((event) => (event.kind === 'io-error' ? [event] : []))
  assert.ok(errors.length > 0)
  for (const { disk: target, action, reason } of errors)
    assert.deepEqual(
      { target, action, reason },
      { target: 'vda', action: VIR_DOMAIN_EVENT_IO_ERROR_PAUSE, reason: 'enospc' },
    )

  await disk.grow()
  await dom.resume()
  assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)
  const worked = await guest.stop()
  assert.deepEqual([worked.bad, worked.errors], [0, 0])
  const { bad, err } = await guest.verify('vda')
  assert.deepEqual({ bad, err }, { bad: 0, err: 0 })
  await powerOff(dom, guest)
  await checkImage(path)
})
