/** QEMUs that are stopped for a while, and drivers that wait for their answers less long than else. */
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { QmpClient } from '../../src/qmp/client.js'
import { QmpTimeoutError } from '../../src/qmp/error.js'
import type { AtStep } from './apart.js'

/** ms that a QEMU which is stopped has for a command */
const PATIENCE = 300

/** those that are stopped, and who wants to know that a command was given up meanwhile */
const stopped = new Map<number, () => void>()

const execute = Reflect.get(QmpClient.prototype, 'execute')
QmpClient.prototype.execute = function (this: QmpClient, command, args, options) {
  if (stopped.size === 0) return execute.call(this, command, args, options)
  const timeout = Math.min(options.timeout, PATIENCE)
  return execute.call(this, command, args, { ...options, timeout }).catch((error: unknown) => {
    if (error instanceof QmpTimeoutError) for (const gaveUp of stopped.values()) gaveUp()
    throw error
  })
}

export interface StandStill {
  /** resolves when a command to it was given up */
  gaveUp: Promise<void>
  goOn: () => void
}

/** The QEMU of `host` stops at a step. */
export function stopAt(host: { folder: string; at: AtStep }, step: string, besides?: () => void): StandStill {
  let resolve!: () => void
  const gaveUp = new Promise<void>((then) => (resolve = then))
  const pids: number[] = []
  host.at(step, () => {
    pids.push(...qemusOf(host.folder))
    for (const pid of pids) {
      process.kill(pid, 'SIGSTOP')
      stopped.set(pid, resolve)
    }
    besides?.()
  })
  const goOn = (): void => {
    for (const pid of pids.splice(0)) {
      stopped.delete(pid)
      process.kill(pid, 'SIGCONT')
    }
  }
  return { gaveUp, goOn }
}

function qemusOf(folder: string): number[] {
  const runDir = join(folder, 'root/run/qemu')
  return readdirSync(runDir).map((id) => Number(readFileSync(join(runDir, id, 'pid'), 'utf8')))
}
