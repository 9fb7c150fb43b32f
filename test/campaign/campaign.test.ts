/** A slice of the campaign (see docs/campaigns.md): some random kills, and those at steps that once went wrong. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { requires } from '../support/requires.js'
import { bootOnce, makeBoot } from './boots.js'
import { runOnce, runPlan } from './campaign.js'
import { makePlan, type Life, type Plan, type Victim } from './plan.js'
import { sweepPlan } from './sweep.js'

const needed = [
  'program:qemu-system-x86_64',
  'program:qemu-img',
  'program:qemu-storage-daemon',
  'program:qemu-nbd',
] as const

const labels = process.getuid?.() === 0

interface Place {
  title: string
  life: Life
  victim: Victim
  step: string
  time?: number
  more?: Partial<Plan>
}

const places: readonly Place[] = [
  {
    title: 'the NBD server of QEMU has its socket but was not started: the stream still ends',
    ...{ life: 'stream', victim: 'us', step: '< nbd-server-start' },
  },
  {
    title: 'the job is dismissed but its images are not let go of: the next process does it, labels and locks included',
    ...{ life: 'stream', victim: 'us', step: '> job-dismiss', more: { access: labels ? 'labels' : 'locks' } },
  },
  {
    title: 'all is pulled and QEMU is about to be told so: the stream is not lost',
    ...{ life: 'stream', victim: 'us', step: '< block-stream', more: { engine: 'pull' } },
  },
  {
    title: 'a domain has been started, but not the stream that its definition asks for: the next process begins it',
    ...{ life: 'boot', victim: 'us', step: '> query-block-exports' },
  },
  {
    title: 'a domain was shut off and its stream is to go on without it, but there is no daemon yet: it goes on',
    ...{ life: 'continue', victim: 'us', step: '< spawn', time: 2 },
  },
  {
    title: 'QEMU is killed as it says that the image has let go of its base: the definition says the same',
    ...{ life: 'stream', victim: 'qemu', step: '< BLOCK_JOB_COMPLETED' },
  },
]

for (const { title, life, victim, step, time = 1, more = {} } of places)
  test(`killed at a step: ${title}`, async (t) => {
    if (!requires(t, ...needed)) return
    const { problem, outcome } = await runOnce(sweepPlan(life, victim, more), false, { name: step, time })
    assert.equal(problem, undefined)
    assert.ok(outcome.killed, `the step '${step}' did not come`)
  })

const SEED = 3
for (const run of [0, 1, 3])
  test(`killed at random: run ${run} of seed ${SEED}`, async (t) => {
    if (!requires(t, ...needed)) return
    const { problem, plan } = await runPlan(makePlan(SEED, run, { linux: false, labels }), false)
    assert.equal(problem, undefined, JSON.stringify(plan))
  })

for (const engine of ['job', 'pull'] as const)
  test(`streams by engine '${engine}' begin while a guest whose disks have I/O threads boots`, async (t) => {
    if (!requires(t, ...needed)) return
    await bootOnce(t, makeBoot(SEED, 0, engine, 'local'))
    await bootOnce(t, makeBoot(SEED, 1, engine, 'nbd'))
  })
