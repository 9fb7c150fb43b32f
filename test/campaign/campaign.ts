/**
 * Kills QEMU, the storage daemon, our own process or the server of the base at random moments of a stream's life, and checks
 * all that must hold: `node dist/test/campaign/campaign.js [--seed N] [--from K] [--runs N] [--keep]`. The same seed and number make the
 * same run; times are as exact as the machine allows.
 */
import { randomInt } from 'node:crypto'
import { parseArgs } from 'node:util'
import { runProgram } from '../../scripts/program.js'
import { messageOf } from '../../src/error.js'
import type { Cleanup } from '../support/images.js'
import { killAll } from './place.js'
import { judge } from './judge.js'
import { describePlan, makePlan, type Choice, type Plan } from './plan.js'
import { live, prepare, type Outcome, type Scene } from './scene.js'
import { processesOf } from '../support/domain.js'
import type { NamedStep } from './worker.js'

/** Steps to take back when a run is over, newest first. */
class Steps implements Cleanup {
  readonly #steps: (() => unknown)[] = []
  after: Cleanup['after'] = (step) => {
    if (step !== undefined) this.#steps.push(step as () => unknown)
  }
  async undo(keep: boolean): Promise<void> {
    // the first one removes the folder
    while (this.#steps.length > (keep ? 1 : 0)) await this.#steps.pop()?.()
  }
}

const underWay = new Map<Steps, string>()

/** Of a run that was interrupted: nothing is left. */
export async function cleanUp(): Promise<void> {
  for (const [steps, folder] of underWay) {
    if (folder !== '') killAll(processesOf(folder))
    await steps.undo(false)
  }
}

export interface Result {
  plan: Plan
  outcome: Outcome
  seconds: number
  remarks: string[]
  /** undefined: all was well */
  problem?: string
  folder: string
}

/** What assert says of two values, on one line. */
const inShort = (text: string): string => text.replaceAll(/\s+/g, ' ').slice(0, 300)

/** One run, whatever comes of it. With `keep`, the folder of one that went wrong stays. */
export async function runOnce(
  plan: Plan,
  keep: boolean,
  at?: NamedStep,
  look?: (scene: Scene) => void,
): Promise<Result> {
  const steps = new Steps()
  underWay.set(steps, '')
  const began = performance.now()
  const remarks: string[] = []
  let folder = ''
  let outcome: Outcome = { killed: false, where: '', steps: 0, hung: false }
  let problem: string | undefined
  try {
    const scene = await prepare(steps, plan)
    folder = scene.place.folder
    underWay.set(steps, folder)
    outcome = await live(scene, at)
    look?.(scene)
    if (outcome.killed || outcome.hung || at === undefined) await judge(scene, outcome, remarks)
    scene.guest?.[Symbol.dispose]()
  } catch (error) {
    problem = inShort(messageOf(error))
  }
  if (folder !== '') killAll(processesOf(folder))
  underWay.delete(steps)
  await steps.undo(keep && problem !== undefined)
  const seconds = (performance.now() - began) / 1000
  return { plan, outcome, seconds, remarks, folder, ...(problem !== undefined && { problem }) }
}

const TRIES = 5

/** A run whose life was over before its moment came is done again, with an earlier one. */
export async function runPlan(plan: Plan, keep: boolean, tries = TRIES): Promise<Result> {
  const result = await runOnce(plan, keep)
  const { killed, steps } = result.outcome
  if (killed || result.problem !== undefined || tries === 1) return result
  const moment =
    plan.moment.by === 'step'
      ? { by: 'step' as const, step: 1 + (plan.moment.step % Math.max(1, steps)) }
      : { by: 'time' as const, ms: Math.floor(plan.moment.ms / 3) }
  return await runPlan({ ...plan, moment }, keep, tries - 1)
}

export function report({ plan, outcome, seconds, problem, folder, remarks }: Result, keep: boolean): string {
  const end = problem === undefined ? 'ok' : `WRONG: ${problem}${keep ? `\n    ${folder}` : ''}`
  const where = plan.moment.by === 'step' ? ` (${outcome.where})` : ''
  const notes = remarks.length > 0 ? ` [${remarks.join('; ')}]` : ''
  return `${describePlan(plan)}${where}, ${seconds.toFixed(1)} s: ${end}${notes}`
}

async function main(t: Cleanup): Promise<void> {
  t.after(cleanUp)
  const { values } = parseArgs({
    options: {
      seed: { type: 'string' },
      from: { type: 'string', default: '0' },
      runs: { type: 'string', default: '200' },
      keep: { type: 'boolean', default: false },
      'no-linux': { type: 'boolean', default: false },
    },
  })
  const seed = values.seed === undefined ? randomInt(1_000_000) : Number(values.seed)
  const choice: Choice = { linux: !values['no-linux'], labels: process.getuid?.() === 0 }
  console.log(`seed ${seed}`)
  const wrong: number[] = []
  const victims = new Map<string, number>()
  const began = performance.now()
  const from = Number(values.from)
  for (let run = from; run < from + Number(values.runs); run++) {
    const result = await runPlan(makePlan(seed, run, choice), values.keep)
    console.log(report(result, values.keep))
    if (result.problem !== undefined) wrong.push(run)
    const { victim, guest } = result.plan
    for (const key of [victim, `guest ${guest}`, result.outcome.killed ? 'kills' : 'nobody killed'])
      victims.set(key, (victims.get(key) ?? 0) + 1)
  }
  const minutes = (performance.now() - began) / 60_000
  console.log([...victims].map(([key, count]) => `${key}: ${count}`).join(', '))
  console.log(
    `${minutes.toFixed(1)} minutes, seed ${seed}, ${wrong.length} wrong${wrong.length > 0 ? `: ${wrong.join(' ')}` : ''}`,
  )
  if (wrong.length > 0) throw new Error(`${wrong.length} runs went wrong`)
}

if (process.argv[1]?.endsWith('campaign.js') === true) await runProgram('campaign', main)
