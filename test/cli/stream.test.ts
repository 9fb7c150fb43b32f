import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import { test } from 'node:test'
import { run } from '../../src/util/run.js'
import { requires } from '../support/requires.js'
import { cli, end, program, says, start } from './run.js'

test('stream-disk starts a stream and ends; --wait shows how far it is, to the end', async () => {
  const started = await cli(['stream-disk', 'test', 'vda'])
  assert.deepEqual(started, { status: 0, stdout: "Stream of disk 'vda' started\n\n", stderr: '' })
  const { status, stdout, stderr } = await cli(['stream-disk', 'test', 'virtio-disk0', '--wait'])
  assert.equal(stderr, '')
  assert.equal(status, 0)
  const lines = stdout.trimEnd().split('\n')
  assert.equal(lines.at(-1), "Stream of disk 'vda' complete")
  assert.equal(lines.at(-2), "Stream of disk 'vda': [100 %] 64.000 MiB of 64.000 MiB")
})

test('with --json each position is a line', async () => {
  const { stdout } = await cli(['stream-disk', 'test', 'vda', '--wait', '--json'])
  const positions = stdout
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as { offset: number; size: number })
  assert.deepEqual(positions.at(-1), { offset: 67_108_864, size: 67_108_864 })
})

test('--one streams a unit and prints where the next one is', async () => {
  const first = await cli(['stream-disk', 'test', 'vda', '--one'])
  assert.deepEqual(first, { status: 0, stdout: '524288\n', stderr: '' })
  const words = ['stream-disk', 'test', 'vda', '--one', '--offset', '1048576', '--unit', '1048576']
  assert.equal((await cli(words)).stdout, '2097152\n')
  assert.deepEqual(JSON.parse((await cli([...words, '--json'])).stdout), { offset: 2_097_152 })
  const behind = await cli(['stream-disk', 'test', 'vda', '--one', '--offset', '99999999999'])
  assert.match(
    behind.stderr,
    /^error: Failed to stream a unit of disk 'vda' of domain 'test'\nerror: .*VIR_ERR_INVALID_ARG/,
  )
})

test('what cannot be streamed is refused with the code of the driver', async () => {
  const medium = await cli(['stream-disk', 'test', 'sda'])
  assert.equal(medium.status, 1)
  assert.equal(
    medium.stderr,
    "error: Failed to stream disk 'sda' of domain 'test'\nerror: disk 'sda' has no medium (VIR_ERR_OPERATION_INVALID)\n",
  )
  const stop = await cli(['stream-disk', 'test', 'vda', '--stop'])
  assert.match(
    stop.stderr,
    /^error: Failed to stop the stream of disk 'vda' of domain 'test'\nerror: .*VIR_ERR_OPERATION_INVALID/,
  )
  const attach = await cli(['stream-disk', 'test', 'vda', '--attach', '--wait'])
  assert.match(attach.stderr, /disk 'vda' is not being streamed \(VIR_ERR_OPERATION_INVALID\)/)
})

test('a command line that makes no sense says what is wrong with it', async () => {
  const wrong: readonly (readonly [words: string[], sentence: string])[] = [
    [['--wait', '--timeout', '0'], "--timeout must be a whole number of at least 1, not '0'"],
    [['--stop', '--bandwidth', '5'], 'option --bandwidth goes with a stream that begins, not with --stop'],
    [['--one', '--base', '/guest/template'], 'option --base goes with a stream that begins, not with --one'],
    [['--attach'], 'option --attach requires --wait'],
    [['--offset', '0'], 'option --offset requires --one'],
  ]
  for (const [words, sentence] of wrong)
    assert.deepEqual(await cli(['stream-disk', 'test', 'vda', ...words]), {
      status: 1,
      stdout: '',
      stderr: `error: ${sentence}\n`,
    })
})

test('--wait --timeout stops the stream and fails', async () => {
  const { status, stderr } = await cli(['stream-disk', 'test', 'vda', '--wait', '--timeout', '1', '--bandwidth', '1M'])
  assert.equal(status, 1)
  assert.equal(stderr, "error: Stream of disk 'vda' aborted after 1 s; what was copied stays\n")
})

test('blockpull waits quietly, shows progress with --verbose, and takes a base', async () => {
  assert.deepEqual(await cli(['blockpull', 'test', 'vda']), { status: 0, stdout: 'Block Pull started\n\n', stderr: '' })
  const quiet = await cli(['blockpull', 'test', 'vda', '--wait'])
  assert.equal(quiet.stdout, 'Pull complete\n')
  const verbose = await cli(['blockpull', 'test', 'vda', '--wait', '--verbose', '--base', '/guest/template'])
  assert.match(verbose.stdout, /\nBlock Pull: \[100 %\] 64\.000 MiB of 64\.000 MiB\nPull complete\n$/)
  const wrong = await cli(['blockpull', 'test', 'vda', '--base', '/nope'])
  assert.match(wrong.stderr, /'\/nope'.*VIR_ERR_INVALID_ARG/)
})

test('where nothing streams, blockjob and stream-info say so', async () => {
  assert.equal((await cli(['blockjob', 'test', 'vda'])).stdout, 'No current block job for vda\n\n')
  assert.equal((await cli(['blockjob', 'test', 'vda', '--json'])).stdout, 'null\n')
  assert.equal((await cli(['stream-info', 'test'])).stdout, "No disk of domain 'test' is being streamed\n\n")
  assert.equal((await cli(['stream-info', 'test', '--json'])).stdout, '[]\n')
  const limit = await cli(['blockjob', 'test', 'vda', '5'])
  assert.match(limit.stderr, /does not have an active block job \(VIR_ERR_INVALID_ARG\)/)
})

test('Ctrl-C lets go of a stream and says how to come back', async () => {
  const child = start(['stream-disk', 'test', 'vda', '--wait', '--bandwidth', '2'])
  await says(child.stdout, /of 64\.000 MiB\n/)
  child.kill('SIGINT')
  const { status, stderr } = await end(child)
  assert.equal(status, 130)
  assert.match(stderr, /^Detached: the stream of disk 'vda' goes on\.\n/)
  assert.match(stderr, / virstream stream-disk test vda --attach --wait\n/)
})

test('where a URI was given, it is in what Ctrl-C says', async () => {
  const child = start(['-c', 'test:///default', 'stream-disk', 'test', 'vda', '--wait', '--bandwidth', '2'])
  await says(child.stdout, /of 64\.000 MiB\n/)
  child.kill('SIGINT')
  assert.match((await end(child)).stderr, / virstream -c 'test:\/\/\/default' stream-info test\n/)
})

test('when nobody reads any more the command ends by itself, without an error', async () => {
  const child = start(['stream-disk', 'test', 'vda', '--wait', '--bandwidth', '8'])
  await says(child.stdout, /of 64\.000 MiB\n/)
  child.stdout.destroy()
  const [stderr] = await Promise.all([text(child.stderr), once(child, 'exit')])
  assert.equal(child.signalCode, null)
  assert.doesNotMatch(stderr, /error|EPIPE/)
})

test('output that cannot be written is an error', async (t) => {
  if (!requires(t, 'file:/dev/full')) return
  const command = `"${process.execPath}" "${program}" -c test:///default list > /dev/full`
  await assert.rejects(run('sh', ['-c', command]), /Failed to write the output: .*ENOSPC/)
})

test('on a terminal progress is a bar', async (t) => {
  if (!requires(t, 'program:script')) return
  const folder = await mkdtemp(join(tmpdir(), 'virstream-cli-'))
  t.after(() => rm(folder, { recursive: true }))
  const command = `"${process.execPath}" "${program}" -c test:///default stream-disk test vda --wait`
  for (const [columns, length] of [
    [200, 30],
    [90, 14],
  ]) {
    const line = `stty cols ${columns}; ${command}`
    const { stdout } = await run('script', ['-qec', line, join(folder, 'typescript')])
    assert.match(stdout, /Stream of disk 'vda': \[=+ +\] +\d+ %/)
    assert.match(stdout, new RegExp(`\\[={${length}}\\] 100 % {2}64\\.000 MiB of 64\\.000 MiB {2}.*B/s`))
    assert.match(stdout, /Stream of disk 'vda' complete/)
  }
})

test('every command ends by itself once its work is done', async () => {
  const child = start(['stream-disk', 'test', 'vda'])
  const guard = setTimeout(() => child.kill('SIGKILL'), 60_000)
  const { status, signal } = await end(child)
  clearTimeout(guard)
  assert.deepEqual([status, signal], [0, null])
})
