import { spawn } from 'node:child_process'
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { PassThrough, Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { runCli } from '../../src/cli/program.js'

export interface CliResult {
  status: number
  stdout: string
  stderr: string
}

/** Runs a command line inside this process, on test:///default unless the words say otherwise. */
export async function cli(
  words: string[],
  options: { stdin?: string; env?: NodeJS.ProcessEnv } = {},
): Promise<CliResult> {
  const [stdout, stderr] = [new PassThrough(), new PassThrough()]
  const env = options.env ?? { VIRSTREAM_DEFAULT_URI: 'test:///default' }
  const running = runCli(words, { stdin: Readable.from([options.stdin ?? '']), stdout, stderr, env })
  const texts = Promise.all([text(stdout), text(stderr)])
  const status = await running
  stdout.end()
  stderr.end()
  const [out, err] = await texts
  return { status, stdout: out, stderr: err }
}

export const program = fileURLToPath(new URL('../../src/bin/virstream.js', import.meta.url))

/** Starts the command as a process of its own, on test:///default unless the environment says otherwise. */
export function start(
  words: string[],
  env: NodeJS.ProcessEnv = {},
): ChildProcess & { stdout: Readable; stderr: Readable } {
  return spawn(process.execPath, [program, ...words], {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { ...process.env, VIRSTREAM_DEFAULT_URI: 'test:///default', ...env },
  })
}

/** Waits until a process has said `what`; answers all that it said so far. */
export async function says(stream: Readable, what: RegExp): Promise<string> {
  let said = ''
  for await (const chunk of stream.iterator({ destroyOnReturn: false })) {
    said += String(chunk)
    if (what.test(said)) return said
  }
  throw new Error(`it never said ${String(what)}, but: ${said}`)
}

/** The rest of a process: how it ended, and what it said until then. */
export async function end(child: ReturnType<typeof start>): Promise<CliResult & { signal: NodeJS.Signals | null }> {
  const [stdout, stderr, [status, signal]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, 'exit') as Promise<[number | null, NodeJS.Signals | null]>,
  ])
  return { status: status ?? -1, stdout, stderr, signal }
}
