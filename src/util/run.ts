import { execFile } from 'node:child_process'
import type { ExecFileException } from 'node:child_process'
import { basename } from 'node:path'

export interface RunOptions {
  /** milliseconds; the command is killed when it takes longer. Default: 60 000 */
  timeout?: number
  signal?: AbortSignal
  /** what it gets to read; default: nothing */
  input?: string
  /** the whole environment; default: ours. LC_ALL=C is added, so that messages can be recognised */
  env?: NodeJS.ProcessEnv
  cwd?: string
}

export interface RunResult {
  stdout: string
  stderr: string
}

/** A command that could not be started, failed, took too long or was aborted. The message has the command's own words. */
export class RunError extends Error {
  override readonly name = 'RunError'
  /** `'ENOENT'` and the like: it could not be started */
  readonly code: string | undefined
  /** null when it did not exit by itself */
  readonly status: number | null
  readonly reason: 'start' | 'exit' | 'signal' | 'timeout' | 'abort'
  readonly stdout: string
  readonly stderr: string

  constructor(message: string, facts: Pick<RunError, 'code' | 'status' | 'reason' | 'stdout' | 'stderr'>) {
    super(message)
    this.code = facts.code
    this.status = facts.status
    this.reason = facts.reason
    this.stdout = facts.stdout
    this.stderr = facts.stderr
  }
}

const MAX_OUTPUT = 64 * 1024 * 1024

/**
 * Runs a program without a shell, to its end. Rejects with a `RunError` unless it exits with status 0.
 * For commands that answer and end; what lives on is spawned elsewhere.
 */
export function run(file: string, args: readonly string[], options: RunOptions = {}): Promise<RunResult> {
  const { timeout = 60_000, signal, input, env = process.env, cwd } = options
  const began = performance.now()
  return new Promise((resolve, reject) => {
    const child = execFile(
      file,
      args,
      { timeout, killSignal: 'SIGKILL', maxBuffer: MAX_OUTPUT, env: { ...env, LC_ALL: 'C' }, signal, cwd },
      (error, stdout, stderr) => {
        if (error === null) resolve({ stdout, stderr })
        else reject(describe(file, error, stdout, stderr, performance.now() - began >= timeout))
      },
    )
    // a command that ends without reading all of its input is no failure of ours
    child.stdin?.on('error', () => undefined)
    child.stdin?.end(input)
  })
}

function describe(file: string, error: ExecFileException, stdout: string, stderr: string, late: boolean): RunError {
  const program = basename(file)
  const words = stderr.trim() === '' ? '' : `: ${stderr.trim()}`
  const facts = { code: undefined, status: null, stdout, stderr }
  if (error.name === 'AbortError') return new RunError(`'${program}' was aborted`, { ...facts, reason: 'abort' })
  if (typeof error.code === 'string') {
    return new RunError(`cannot run '${file}': ${error.message}`, { ...facts, code: error.code, reason: 'start' })
  }
  if (typeof error.code === 'number') {
    const message = `'${program}' failed with status ${error.code}${words}`
    return new RunError(message, { ...facts, status: error.code, reason: 'exit' })
  }
  if (late) return new RunError(`'${program}' took too long${words}`, { ...facts, reason: 'timeout' })
  return new RunError(`'${program}' was ended by ${error.signal ?? 'a signal'}${words}`, { ...facts, reason: 'signal' })
}
