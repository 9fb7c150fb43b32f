import { closeSync, existsSync, fstatSync, openSync, readFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { failFrom, messageOf, VirError, wordsOf } from '../../error.js'
import { native, type ProcessExit, type ProcessWatch, type SpawnOptions } from '../../native.js'
import type { ProcessLabel } from '../../security/security-driver.js'
import { Monitor, type MonitorEvents } from './monitor.js'

const fail = failFrom('VIR_FROM_QEMU')

const SIGTERM = 15
const SIGKILL = 9
/** ms until a starting QEMU must have answered on its monitor */
const START_TIMEOUT = 60_000
/** ms that SIGTERM gets (it flushes images) before SIGKILL */
const TERM_GRACE = 10_000
/** how much of QEMU's own words goes into an error */
const LOG_TAIL = 1024

/** Where QEMU itself makes what it needs: its own folder where it may be another user, which the run directory then is not. */
export function qemuDir(runDir: string): string {
  const own = join(runDir, 'qemu')
  return existsSync(own) ? own : runDir
}
export const monitorSocket = (runDir: string): string => join(runDir, 'mon.sock')
/** of a second monitor, which QEMU has where memory may follow its guest */
export const recoverySocket = (runDir: string): string => join(qemuDir(runDir), 'recovery.sock')
/** QEMU removes it when it ends in good order, and only then */
export const pidFile = (runDir: string): string => join(qemuDir(runDir), 'pid')

/** Did QEMU end in good order? Its exit code tells where it was our child; it removes its pid file in any case. */
export function exitedCleanly(exit: ProcessExit, runDir: string): boolean {
  if (exit.signal !== null) return false
  return exit.code === null ? !existsSync(pidFile(runDir)) : exit.code === 0
}

export interface Launch {
  domain: string
  binary: string
  /** argv after the binary, given the number of the descriptor on which the monitor listens */
  args: (monitorFd: number) => string[]
  /** how the pid file is called on its command line; default '-pidfile' */
  pidOption?: string
  env: Record<string, string>
  runDir: string
  logFile: string
  /** further descriptors to inherit, under the numbers that they have here */
  inherit?: readonly number[]
  /** makes a listening socket that QEMU inherits; default: without a label */
  listen?: (path: string, backlog: number) => number
  /** what QEMU runs as; default: what we do */
  label?: ProcessLabel
  /** who lets it have its images once it is there; absent: nobody need */
  gate?: Gate | undefined
  events: MonitorEvents
  onExit: (exit: ProcessExit) => void
}
/** Between the birth of a process and its becoming QEMU. */
export interface Gate {
  /** as in `Launch` */
  readonly inherit: readonly number[]
  /** path of a unix socket that the process itself connects to */
  readonly connect: string | undefined
  /** The process is there, stopped, perhaps with its connection, of which this is a copy. When this rejects, it is ended. */
  admit(pid: number, connection: number | undefined): Promise<void>
  /** It has become QEMU, or is gone. */
  close(): void
}
export interface Launched {
  pid: number
  process: ProcessWatch
  monitor: Monitor
}

/** Spawns QEMU in a session of its own and connects to its monitor. When it fails, no process is left. */
export async function launch(options: Launch): Promise<Launched> {
  const listen = options.listen ?? ((path: string, backlog: number) => native.listenUnix(path, 0o600, backlog))
  const log = openSync(options.logFile, 'a', 0o600)
  const logStart = fstatSync(log).size
  const listener = listen(monitorSocket(options.runDir), 1)
  let pid: number
  try {
    pid = await spawnQemu(options, log, listener)
  } catch (error) {
    if (error instanceof VirError) throw error
    throw fail('VIR_ERR_INTERNAL_ERROR', `cannot start '${options.binary}': ${wordsOf(error)}`, error)
  } finally {
    native.close(listener) // QEMU has its own copy: when it dies, who waits for the greeting learns at once
    closeSync(log)
    options.gate?.close()
  }
  let markExited!: () => void
  const exited = new Promise<void>((resolve) => (markExited = resolve))
  const process = native.watchProcess(pid, (exit) => {
    markExited()
    options.onExit(exit)
  })
  try {
    const monitor = await Monitor.connect(monitorSocket(options.runDir), options.domain, options.events, START_TIMEOUT)
    return { pid, process, monitor }
  } catch (error) {
    process.kill(SIGKILL)
    // what it was let have may not be taken back while it still uses it
    await within(exited, TERM_GRACE)
    throw explainStartFailure(error, logTail(options.logFile, logStart))
  }
}

async function spawnQemu(options: Launch, log: number, listener: number): Promise<number> {
  const stdin = openSync('/dev/null', 'r')
  const args = [options.binary, ...options.args(listener), options.pidOption ?? '-pidfile', pidFile(options.runDir)]
  try {
    writeSync(
      log,
      `${new Date().toISOString()}: starting up virstream, domain '${options.domain}'\n${args.join(' ')}\n`,
    )
    const inherit = [listener, ...(options.inherit ?? []), ...(options.gate?.inherit ?? [])]
    const plan: SpawnOptions = {
      file: options.binary,
      args,
      env: options.env,
      cwd: '/',
      fds: [
        { source: stdin, target: 0 },
        { source: log, target: 1 },
        { source: log, target: 2 },
        ...inherit.map((fd) => ({ source: fd, target: fd })),
      ],
      umask: 0o077,
      newSession: true,
      ...options.label,
    }
    return options.gate === undefined ? native.spawn(plan) : await spawnGated(plan, options.gate)
  } finally {
    closeSync(stdin)
  }
}

async function spawnGated(plan: SpawnOptions, gate: Gate): Promise<number> {
  const { pid, connection } = native.spawnHeld(plan, gate.connect)
  try {
    await gate.admit(pid, connection)
  } catch (error) {
    native.dropHeld(pid)
    throw error
  }
  native.resumeHeld(pid)
  return pid
}

/** What QEMU wrote since it was started, without our own two lines. */
function logTail(path: string, start: number): string {
  const text = readFileSync(path).subarray(start).toString('utf8')
  return text.split('\n').slice(2).join('\n').trim().slice(-LOG_TAIL)
}

function explainStartFailure(error: unknown, words: string): Error {
  const what = words === '' ? messageOf(error) : words
  return fail('VIR_ERR_INTERNAL_ERROR', `process exited while connecting to monitor: ${what}`, error)
}

/**
 * Ends a QEMU: SIGTERM first (it flushes its images then), SIGKILL when that takes too long (a base that does not answer
 * holds it up). With `graceful`, no SIGKILL: VIR_ERR_OPERATION_FAILED when it still runs then.
 */
export async function terminate(process: ProcessWatch, ended: Promise<void>, graceful: boolean): Promise<void> {
  process.kill(SIGTERM)
  if (await within(ended, TERM_GRACE)) return
  if (graceful)
    throw fail('VIR_ERR_SYSTEM_ERROR', `Failed to terminate process ${process.pid} with SIGTERM: it still runs`)
  process.kill(SIGKILL)
  if (await within(ended, TERM_GRACE)) return
  throw fail('VIR_ERR_SYSTEM_ERROR', `Failed to terminate process ${process.pid} with SIGKILL: it still runs`)
}

export function killHard(process: ProcessWatch): void {
  process.kill(SIGKILL)
}

async function within(promise: Promise<void>, ms: number): Promise<boolean> {
  const stop = new AbortController()
  try {
    const late = delay(ms, false, { signal: stop.signal }).catch(() => false)
    return await Promise.race([promise.then(() => true), late])
  } finally {
    stop.abort()
  }
}
