import assert from 'node:assert/strict'
import { PassThrough, Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { Context } from '../../src/cli/context.js'
import { makeView } from '../../src/cli/progress.js'
import type { ProgressView } from '../../src/cli/progress.js'

/** What a view writes where there is no terminal. */
async function written(json: boolean, use: (view: ProgressView) => void | Promise<void>): Promise<string[]> {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()]
  const context = new Context({ stdin: Readable.from([]), stdout, stderr, env: {} }, {})
  const said = text(stdout)
  const view = makeView(context, 'Pull', json)
  await use(view)
  view.end()
  stdout.end()
  return (await said).trimEnd().split('\n')
}

const MiB = 1024 * 1024

test('where there is no terminal, progress is a line, at most about one a second, and always the last', async () => {
  const lines = await written(false, (view) => {
    for (const offset of [1, 2, 3]) view.at({ offset: offset * MiB, size: 4 * MiB })
    view.at({ offset: 4 * MiB, size: 4 * MiB })
  })
  assert.deepEqual(lines, ['Pull: [ 25 %] 1.000 MiB of 4.000 MiB', 'Pull: [100 %] 4.000 MiB of 4.000 MiB'])
})

test('after a second the next position is a line', async () => {
  const lines = await written(false, async (view) => {
    view.at({ offset: 1, size: 3 })
    await delay(1000)
    view.at({ offset: 2, size: 3 })
  })
  assert.deepEqual(lines, ['Pull: [ 33 %] 1.000 B of 3.000 B', 'Pull: [ 66 %] 2.000 B of 3.000 B'])
})

test('a stream that waits says why, and that it goes on', async () => {
  const use = (view: ProgressView): void => {
    view.note('the base does not answer')
    view.note(undefined)
  }
  assert.deepEqual(await written(false, use), ['Pull: waits: the base does not answer', 'Pull: goes on'])
  assert.deepEqual(await written(true, use), ['{"waiting":"the base does not answer"}', '{"waiting":null}'])
})

test('a disk without size is complete', async () => {
  assert.deepEqual(await written(false, (view) => view.at({ offset: 0, size: 0 })), [
    'Pull: [100 %] 0.000 B of 0.000 B',
  ])
})
