/**
 * Kills at every single step of every life, not at random ones: `node dist/test/campaign/sweep.js [--life NAME]… [--engine job|pull]
 * [--base local|nbd] [--victim qemu|us|both|term|server]… [--only STEP] [--access …] [--named] [--keep]`. A step is named by what is done and by how often that
 * was done before; the first three times of each are tried. Disks are small, and nobody writes to them.
 */
import { parseArgs } from 'node:util'
import { runProgram } from '../../scripts/program.js'
import type { Cleanup } from '../support/images.js'
import { cleanUp, runOnce } from './campaign.js'
import { notes } from './place.js'
import type { Life, Plan, Victim } from './plan.js'
import type { NamedStep } from './worker.js'

const MiB = 1024 * 1024
const LIVES: readonly Life[] = [
  ...(['stream', 'boot', 'units', 'stop', 'resume', 'partial', 'offline', 'start-offline', 'continue'] as const),
]
const VICTIMS: readonly Victim[] = ['us', 'qemu', 'both']
const TIMES = 3
/** of these each one is another */
const EACH = /write status/

export function sweepPlan(life: Life, victim: Victim, more: Partial<Plan>): Plan {
  const size = 4 * MiB
  return {
    seed: 0,
    run: 0,
    life,
    engine: 'job',
    base: 'local',
    guest: 'none',
    victim,
    moment: { by: 'step', step: Infinity },
    size,
    bandwidth: size * 2,
    named: true,
    access: 'none',
    afterwards: 'start',
    ...more,
  }
}

/** From where on a life is not the same as 'stream' (or 'offline') was. */
const OWN: Partial<Record<Life, string>> = {
  boot: 'answered create',
  units: 'answered create',
  partial: 'answered create',
  stop: 'asked stop',
  resume: 'asked close',
  'start-offline': 'asked create',
  continue: 'asked destroy',
}

/** The steps of a life in which nobody is killed, from where on it is its own. */
export async function stepsOf(plan: Plan): Promise<NamedStep[]> {
  let lines: string[] = []
  const result = await runOnce(plan, false, { name: '', time: 0 }, (scene) => (lines = notes(scene.place)))
  if (result.problem !== undefined || !lines.includes('complete'))
    throw new Error(`life '${plan.life}' went wrong without a kill: ${result.problem ?? lines.join('\n')}`)
  return lines
    .slice(Math.max(0, lines.indexOf(OWN[plan.life] ?? '')))
    .map((line) => /^step \d+ (\d+) (.*)$/.exec(line))
    .flatMap((match) => (match === null ? [] : [{ time: Number(match[1]), name: match[2] ?? '' }]))
    .filter(({ time, name }) => time <= TIMES || EACH.test(name))
}

async function main(t: Cleanup): Promise<void> {
  t.after(cleanUp)
  const { values } = parseArgs({
    options: {
      life: { type: 'string', multiple: true },
      victim: { type: 'string', multiple: true },
      engine: { type: 'string', default: 'job' },
      base: { type: 'string', default: 'local' },
      access: { type: 'string', default: 'none' },
      only: { type: 'string' },
      keep: { type: 'boolean', default: false },
    },
  })
  const { engine, base, access } = values as { engine: Plan['engine']; base: Plan['base']; access: Plan['access'] }
  let wrong = 0
  let kills = 0
  const began = performance.now()
  for (const life of (values.life ?? LIVES) as Life[]) {
    if (life === 'partial' && base === 'nbd') continue
    const steps = await stepsOf(sweepPlan(life, 'us', { engine, base, access }))
    console.log(`${life}: ${steps.length} steps`)
    for (const victim of (values.victim ?? VICTIMS) as Victim[])
      for (const step of steps) {
        const name = `${step.name} #${step.time}`
        if (values.only !== undefined && name !== values.only) continue
        const { problem, outcome, folder } = await runOnce(
          sweepPlan(life, victim, { engine, base, access }),
          values.keep,
          step,
        )
        if (outcome.killed) kills++
        if (problem !== undefined) wrong++
        if (problem !== undefined)
          console.log(`${life}, ${engine}, ${base}: ${victim} at '${name}': ${problem} ${values.keep ? folder : ''}`)
      }
  }
  const minutes = (performance.now() - began) / 60_000
  console.log(`${kills} kills, ${wrong} wrong, ${minutes.toFixed(1)} minutes`)
  if (wrong > 0) throw new Error(`${wrong} runs went wrong`)
}

if (process.argv[1]?.endsWith('sweep.js') === true) await runProgram('sweep', main)
