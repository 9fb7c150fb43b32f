import assert from 'node:assert/strict'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { test } from 'node:test'
import { diskXml, startPlain, testRoot } from '../support/domain.js'
import { overlay, patternImage } from '../support/images.js'
import { requires } from '../support/requires.js'
import { cli, type CliResult } from './run.js'

const MiB = 1024 * 1024

test('stream-info shows the share of a stream, and of one that waits why and where in the queue', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'program:qemu-img')) return
  const root = await testRoot(t)
  const base = await patternImage(root.folder, 16 * MiB)
  const paths = await Promise.all(['vda', 'vdb'].map((name) => overlay(root.folder, base.path, { name })))
  const devices = paths.map((path, i) => diskXml(`vd${'ab'.charAt(i)}`, path)).join('\n')
  await startPlain(root, { devices })
  await root.conn.close()
  await mkdir(join(root.folder, 'root/etc'), { recursive: true })
  const streams = { totalBandwidth: 262_144, maxStreams: 1 }
  await writeFile(join(root.folder, 'root/etc/qemu.json'), JSON.stringify({ streams }))
  const run = (...words: string[]): Promise<CliResult> => cli(['-c', root.uri, ...words])

  assert.equal((await run('stream-disk', 'guest', 'vda', '--weight', '3')).status, 0)
  assert.equal((await run('stream-disk', 'guest', 'vdb', '--bandwidth', '1M')).status, 0)
  const { stdout } = await run('stream-info', 'guest')
  assert.match(stdout, /^ vda .* 256\.000 KiB\/s \(share\) +full +running$/m)
  assert.match(
    stdout,
    /^ vdb .* 1\.000 MiB\/s +full +waiting: it is number 1 in the queue: 'maxStreams' lets 1 stream/m,
  )
  const json = await run('stream-info', 'guest', '--json')
  const states = JSON.parse(json.stdout) as { status: string; share?: number }[]
  assert.deepEqual(
    states.map(({ status, share }) => [status, share]),
    [
      ['running', 262_144],
      ['waiting', undefined],
    ],
  )
  assert.equal((await run('stream-disk', 'guest', 'vda', '--stop')).status, 0)
  assert.match((await run('stream-info', 'guest')).stdout, /^ vdb .*running$/m)
  const wrong = await run('stream-disk', 'guest', 'vda', '--weight', '1001')
  assert.equal(wrong.status, 1)
  assert.match(wrong.stderr, /weight must be a whole number from 1 to 1000, not '1001'/)
})
