/** What events say of block jobs, and what an answer says that was asked for before they came. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type BlockJob, BlockJobs } from '../../src/qemu/blocks/blockjob.js'

interface Told {
  jobs: BlockJobs
  job: BlockJob
  /** as 'what of whom' */
  heard: string[]
  tell: (event: string, data: Record<string, unknown>) => boolean
}

function oneJob(): Told {
  const heard: string[] = []
  const hear =
    (what: string) =>
    (job: BlockJob): void => {
      heard.push(`${what} ${job.record.id}`)
    }
  const jobs = new BlockJobs({ ready: hear('ready'), pending: hear('pending'), concluded: hear('concluded') })
  const job = jobs.register({ id: 'commit-vda', disk: 'vda', bandwidth: 0, engine: 'job', phase: 'job' })
  const timestamp = { seconds: 0, microseconds: 0 }
  return { jobs, job, heard, tell: (event, data) => jobs.take({ event, data, timestamp }) }
}

test('an event that comes after QEMU was asked for its jobs, and before the answer is looked at, is not undone by it', () => {
  const { job, heard, tell } = oneJob()
  const answer = 'running'
  assert.ok(tell('JOB_STATUS_CHANGE', { id: 'commit-vda', status: 'ready' }))
  assert.ok(tell('BLOCK_JOB_READY', { device: 'commit-vda' }))
  assert.ok(tell('BLOCK_JOB_ERROR', { device: 'commit-vda', action: 'stop' }))
  job.found(answer)
  assert.deepEqual([job.status, job.ready, job.stuck], ['ready', true, true])
  assert.deepEqual(heard, ['ready commit-vda'])
})

test('without an event the answer is what is known', () => {
  for (const [status, ready, stuck] of [
    ['running', false, false],
    ['paused', false, true],
    ['ready', true, false],
    ['standby', true, false],
  ] as const) {
    const { job } = oneJob()
    job.found(status)
    assert.deepEqual([job.status, job.ready, job.stuck], [status, ready, stuck])
  }
})

test('an event about a job of somebody else is left to others', () => {
  const { job, heard, tell } = oneJob()
  assert.equal(tell('JOB_STATUS_CHANGE', { id: 'stream-vdb', status: 'concluded' }), false)
  assert.equal(job.status, 'created')
  assert.deepEqual(heard, [])
})
