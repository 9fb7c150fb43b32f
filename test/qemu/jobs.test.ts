import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { VirError } from '../../src/error.js'
import { JobQueue } from '../../src/qemu/core/jobs.js'

test('jobs run one at a time, in the order of asking', async () => {
  const jobs = new JobQueue()
  const log: string[] = []
  const job = (name: string) =>
    jobs.run('modify', async () => {
      log.push(`${name} begins`)
      await delay(2)
      log.push(`${name} ends`)
    })
  await Promise.all([job('a'), job('b'), job('c')])
  assert.deepEqual(log, ['a begins', 'a ends', 'b begins', 'b ends', 'c begins', 'c ends'])
  assert.equal(jobs.active, undefined)
})

test('a job that throws frees the domain', async () => {
  const jobs = new JobQueue()
  await assert.rejects(
    jobs.run('modify', () => Promise.reject(new Error('no'))),
    /no/,
  )
  assert.equal(await jobs.run('stream', () => Promise.resolve(jobs.active)), 'stream')
})

test('who waits too long is told which job holds the domain, and takes no turn', async () => {
  const jobs = new JobQueue()
  let free = (): void => undefined
  const holder = jobs.run('save', () => new Promise<void>((resolve) => (free = resolve)))
  let ran = false
  const late = jobs.run(
    'modify',
    () => {
      ran = true
      return Promise.resolve()
    },
    10,
  )
  await assert.rejects(
    late,
    (error) => error instanceof VirError && error.code === 'VIR_ERR_OPERATION_TIMEOUT' && /'save'/.test(error.message),
  )
  free()
  await holder
  await jobs.run('modify', () => Promise.resolve())
  assert.equal(ran, false)
})

test('what nobody would ask for again waits as long as it takes', async () => {
  const jobs = new JobQueue()
  let free = (): void => undefined
  const holder = jobs.run('save', () => new Promise<void>((resolve) => (free = resolve)))
  const patient = jobs.run('settle', () => Promise.resolve(jobs.active), Infinity)
  assert.equal(await Promise.race([patient, delay(50, 'waits')]), 'waits')
  free()
  await holder
  assert.equal(await patient, 'settle')
})
