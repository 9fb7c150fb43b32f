import type { DiskStream } from '../api/disk-stream.js'
import { VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC } from '../constants.gen.js'
import { CommandError } from './context.js'
import type { Context } from './context.js'
import { makeView, quietView } from './progress.js'
import type { ProgressView } from './progress.js'

/** exit status of a command that was interrupted while it waited (128 + SIGINT) */
export const DETACHED = 130

/** ms between two questions whether the stream waits for something */
const LOOK_INTERVAL = 1000

export interface Following {
  /** 'Block Pull' */
  label: string
  /** show how far it is */
  progress: boolean
  json: boolean
  /** ms after which it is stopped */
  timeout: number | undefined
  /** after that, don't wait for its end */
  async: boolean
  /** sentences for the end */
  done: string
  failed: string
  /** how to come back after Ctrl-C */
  comeBack: readonly string[]
}

/** Waits for the end of a stream. Ctrl-C lets go of it, and it goes on. */
export async function follow(context: Context, given: DiskStream, how: Following): Promise<number | undefined> {
  await using stream = given
  const view = how.progress ? makeView(context, how.label, how.json) : quietView
  const ended = new AbortController()
  const watching = watch(stream, view, ended.signal)
  try {
    const end = await context.attempt(how.failed, () =>
      Promise.race([stream.finished, interrupted(context, ended.signal), late(how.timeout, ended.signal)]),
    )
    ended.abort()
    if (end === undefined) await watching
    view.end()
    if (end === 'interrupted') return detached(context, stream, how)
    if (end === 'late') return await abort(stream, how)
  } finally {
    ended.abort()
    view.end()
  }
  if (!how.json) context.say(how.done)
  return undefined
}

function detached(context: Context, stream: DiskStream, how: Following): number {
  context.err.line(`Detached: the stream of disk '${stream.disk}' goes on.`)
  for (const line of how.comeBack) context.err.line(line)
  return DETACHED
}

async function abort(stream: DiskStream, how: Following): Promise<never> {
  if (how.async) {
    await stream.domain.blockJobAbort(stream.disk, VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC)
  } else await stream.stop()
  const seconds = (how.timeout ?? 0) / 1000
  throw new CommandError(`${how.label} aborted after ${seconds} s; what was copied stays`)
}

/** Shows positions, and why there are none. */
async function watch(stream: DiskStream, view: ProgressView, ended: AbortSignal): Promise<void> {
  let shown: string | undefined
  let looking = false
  const look = setInterval(() => {
    if (looking) return
    looking = true
    stream.info().then(
      (state) => {
        looking = false
        const why = state?.status === 'running' ? undefined : (state?.error ?? state?.status)
        if (ended.aborted || why === shown) return
        shown = why
        view.note(why)
      },
      () => (looking = false),
    )
  }, LOOK_INTERVAL)
  ended.addEventListener('abort', () => clearInterval(look))
  try {
    for await (const position of stream) view.at(position)
  } catch {
    // `finished` says the same to whoever waits for the end
  } finally {
    clearInterval(look)
  }
}

/** Ctrl-C, or nobody reads any more what is printed. */
export function interrupted(context: Context, ended: AbortSignal): Promise<'interrupted'> {
  return new Promise((resolve) => {
    const stop = (): void => {
      process.off('SIGINT', stop)
      context.out.gone.removeEventListener('abort', stop)
      if (!ended.aborted) resolve('interrupted')
    }
    process.on('SIGINT', stop)
    context.out.gone.addEventListener('abort', stop)
    ended.addEventListener('abort', stop)
  })
}

export function late(timeout: number | undefined, ended: AbortSignal): Promise<'late'> {
  return new Promise((resolve) => {
    if (timeout === undefined) return
    const timer = setTimeout(() => resolve('late'), timeout)
    ended.addEventListener('abort', () => clearTimeout(timer))
  })
}
