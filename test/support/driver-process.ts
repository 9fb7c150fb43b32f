/**
 * A process of its own that uses the driver, to be killed by a test: `node driver-process.js URI DOMAIN create BANDWIDTH ENGINE`
 * starts the domain and a stream of vda (BANDWIDTH bytes/s; 'none': no stream), `… open` only opens the root, `… save` saves the domain (managed save),
 * `… commit` commits the image below the own one of vda, slowly. It says
 * 'ready' when that is done, or 'error: …', and then stays; `… new-base BASE STEP` gives vda another base, and kills itself at
 * that step of it (see `countSteps`, e.g. '> blockdev-add 1': after the first of them).
 */
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { dirname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { createInterface } from 'node:readline'
import {
  Connect,
  VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES,
  VIR_DOMAIN_START_PAUSED,
  VIR_STREAM_DISK_START,
} from '../../src/index.js'
import type { StreamEngine } from '../../src/driver.js'
import { countSteps } from '../campaign/steps.js'
import type { Cleanup } from './images.js'

export interface DriverProcess {
  child: ChildProcess
  pid: number
  /** its first line */
  said: Promise<string>
  kill: () => Promise<void>
}

export type Task =
  | { name: string; do: 'create' | 'create-paused'; bandwidth?: number; engine?: StreamEngine }
  | { name: string; do: 'open' | 'save' | 'commit' }
  | { name: string; do: 'new-base'; base: string; at: string }
  | Stream
/** of a domain that does not run */
interface Stream {
  name: string
  do: 'stream'
  bandwidth: number
  engine: StreamEngine
}

/** Kills this process at a step of what it does below `folder`. */
function dieAt(folder: string, at: string): void {
  const times = new Map<string, number>()
  countSteps(folder, (name) => {
    const time = (times.get(name) ?? 0) + 1
    times.set(name, time)
    if (`${name} ${time}` === at) process.kill(process.pid, 'SIGKILL')
  })
}

/** Starts one; it is ended with the test at the latest. */
export function driverProcess(t: Cleanup, uri: string, task: Task): DriverProcess {
  const bandwidth = 'bandwidth' in task ? task.bandwidth : undefined
  const args = [fileURLToPath(import.meta.url), uri, task.name, task.do, String(bandwidth ?? 'none')]
  if ('engine' in task) args.push(task.engine)
  if ('base' in task) args.splice(-1, 1, task.base, task.at)
  const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
  const exited = once(child, 'exit')
  const said = once(createInterface(child.stdout), 'line').then(([line]) => String(line))
  const kill = async (): Promise<void> => {
    child.kill('SIGKILL')
    await exited
  }
  t.after(kill)
  return { child, pid: child.pid ?? 0, said, kill }
}

async function main(uri: string, name: string, what: string, bandwidth: string, engine = 'auto'): Promise<void> {
  const conn = await Connect.open(uri)
  if (what === 'open') return
  const dom = await conn.domainLookupByName(name)
  if (what === 'save') {
    await dom.managedSave()
    return
  }
  if (what === 'commit') {
    await dom.blockCommit('vda', undefined, 'vda[2]', 16 * 1024 * 1024, VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES)
    return
  }
  if (what === 'new-base') {
    const [base, at] = [bandwidth, engine]
    dieAt(dirname(new URL(uri).searchParams.get('root') ?? ''), at)
    await dom.streamDiskSetBase('vda', base)
    return
  }
  if (what !== 'stream') await dom.create(what === 'create-paused' ? VIR_DOMAIN_START_PAUSED : 0)
  if (bandwidth === 'none') return
  const options = { bandwidth: Number(bandwidth), engine: engine as StreamEngine | 'auto' }
  await dom.streamDisk('vda', 0, VIR_STREAM_DISK_START, options)
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [uri = '', name = '', what = '', bandwidth = '', engine] = process.argv.slice(2)
  setInterval(() => undefined, 60_000)
  try {
    await main(uri, name, what, bandwidth, engine)
    console.log('ready')
  } catch (error) {
    console.log(`error: ${String(error)}`)
  }
}
