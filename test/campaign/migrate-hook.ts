/** Loaded into a virstreamd by `--import`: it kills itself at the step that a file names, see `migrate-hosts.ts`. */
import { existsSync, readFileSync } from 'node:fs'
import { countSteps } from './steps.js'

/**
 * Which of its steps from now on, or which of the times that a migration is written down, or the first one with that phase:
 * before or after that.
 */
export type Order = { step: number } | { record: number; side: '<' | '>' } | { phase: string; side: '<' | '>' }

const file = process.env['VIRSTREAM_CAMPAIGN_ORDER'] ?? ''
const folder = process.env['VIRSTREAM_CAMPAIGN_FOLDER'] ?? ''

let order: Order | undefined
let steps = 0
let records = 0

function isIt(name: string, wanted: Order): boolean {
  if ('step' in wanted) return ++steps === wanted.step
  if ('phase' in wanted) return name === `${wanted.side} write record.json ${wanted.phase}`
  return name.startsWith(`${wanted.side} write record.json`) && ++records === wanted.record
}

if (folder !== '')
  countSteps(folder, (name) => {
    if (order === undefined && existsSync(file)) order = JSON.parse(readFileSync(file, 'utf8')) as Order
    if (order !== undefined && isIt(name, order)) {
      process.stderr.write(`killed at '${name}'\n`)
      process.kill(process.pid, 'SIGKILL')
    }
  })
