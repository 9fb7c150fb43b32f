import assert from 'node:assert/strict'
import { test } from 'node:test'
import { run, RunError } from '../../src/util/run.js'

async function failure(promise: Promise<unknown>): Promise<RunError> {
  try {
    await promise
  } catch (error) {
    assert.ok(error instanceof RunError, String(error))
    return error
  }
  assert.fail('it succeeded')
}

test('a command gets its input and its environment, and its output comes back', async () => {
  const result = await run('sh', ['-c', 'cat; echo "$NAME $LC_ALL" >&2'], {
    input: 'in',
    env: { ...process.env, NAME: 'x' },
  })
  assert.deepEqual(result, { stdout: 'in', stderr: 'x C\n' })
})

test('a failing command fails with its own words', async () => {
  const error = await failure(run('sh', ['-c', 'echo out; echo "no such luck" >&2; exit 3']))
  assert.equal(error.message, "'sh' failed with status 3: no such luck")
  assert.deepEqual([error.reason, error.status, error.stdout], ['exit', 3, 'out\n'])
})

test('a command that is not there, takes too long, is aborted or is killed says which', async () => {
  const missing = await failure(run('/nonexistent/program', []))
  assert.deepEqual([missing.reason, missing.code], ['start', 'ENOENT'])
  const began = performance.now()
  assert.equal((await failure(run('sleep', ['30'], { timeout: 100 }))).reason, 'timeout')
  assert.equal((await failure(run('sleep', ['30'], { signal: AbortSignal.timeout(100) }))).reason, 'abort')
  assert.ok(performance.now() - began < 10_000)
  const killed = await failure(run('sh', ['-c', 'kill -TERM $$']))
  assert.deepEqual([killed.reason, killed.message], ['signal', "'sh' was ended by SIGTERM"])
})

test('a command that reads nothing of a large input is no failure', async () => {
  assert.equal((await run('true', [], { input: 'x'.repeat(10_000_000) })).stdout, '')
})
