/** Watches a migration: until the guest has moved, then until its disks have. */
import { setTimeout as delay } from 'node:timers/promises'
import type { Connect } from '../api/connect.js'
import type { Domain } from '../api/domain.js'
import * as c from '../constants.gen.js'
import type { DomainState, MigrateParams, StreamDiskState } from '../driver.js'
import { VirError } from '../error.js'
import { CommandError } from './context.js'
import type { Context } from './context.js'
import { hasten, type Haste } from './migrate-switch.js'
import type { MigrationView } from './migrate-view.js'

/** ms between two questions how far it is */
const LOOK_INTERVAL = 500
/** why nobody looks at the memory any more */
const MOVED = 'moved'

interface Move {
  domain: Domain
  destination: Connect
  params: MigrateParams
  flags: number
  haste: Haste
}

/** Moves the guest. Ctrl-C aborts that, and the guest goes on where it is. */
export async function move(context: Context, how: Move, view: MigrationView | undefined): Promise<Domain> {
  const { domain, destination, params, flags, haste } = how
  const aborted = new AbortController()
  const over = new AbortController()
  const interrupt = (): void => {
    context.err.line('The migration is being aborted; Ctrl-C again does not wait for that.')
    aborted.abort()
  }
  process.once('SIGINT', interrupt)
  const watching = view === undefined ? undefined : watchMove(domain, view, over.signal)
  hasten(context, await context.connection(), domain, haste, over.signal)
  try {
    const arrived = await context.attempt(`Failed to migrate domain '${domain.name}'`, () =>
      domain.migrate(destination, { ...params, signal: aborted.signal }, flags),
    )
    over.abort(MOVED)
    return arrived
  } finally {
    process.off('SIGINT', interrupt)
    over.abort()
    await watching
  }
}

/** `over`: with the reason MOVED all of the memory is there. */
async function watchMove(domain: Domain, view: MigrationView, over: AbortSignal): Promise<void> {
  let size = 0
  while (!over.aborted) {
    // before it has begun, and after its end, there is no job
    const stats = await domain.getJobStats().catch(() => undefined)
    if (stats !== undefined && stats.memTotal > 0) {
      size = stats.memTotal
      view.at('Memory', { offset: size - stats.memRemaining, size })
    }
    for (const { disk, offset, size } of stats?.disks ?? []) view.at(`Disk ${disk}`, { offset, size })
    await delay(LOOK_INTERVAL, undefined, { signal: over }).catch(() => undefined)
  }
  if (over.reason === MOVED && size > 0) view.at('Memory', { offset: size, size })
}

/** Waits until the disks have followed and the source has let go. Ctrl-C ends the waiting only. */
export async function followDisks(
  context: Context,
  { source, arrived }: { source: Domain; arrived: Domain },
  view: MigrationView | undefined,
): Promise<'interrupted' | undefined> {
  const interrupted = new AbortController()
  const interrupt = (): void => interrupted.abort()
  process.once('SIGINT', interrupt)
  context.out.gone.addEventListener('abort', interrupt)
  // while the guest was moved
  if (context.out.gone.aborted) interrupt()
  try {
    while (!interrupted.signal.aborted) {
      const [states, isFree] = await context.attempt(
        `Failed to follow the disks of domain '${arrived.name}', which follow it as long as virstreamd has the roots of both hosts open`,
        async () => [await disksOf(arrived), await hasLetGo(source, arrived)] as const,
      )
      if (states === undefined) throw await gone(source, arrived)
      if (states.length === 0 && isFree) {
        view?.complete()
        if ((await knownOf(arrived))?.state !== c.VIR_DOMAIN_SHUTOFF) return undefined
        throw ended(arrived, 'all of its disks are there')
      }
      for (const state of states) show(view, state)
      await delay(LOOK_INTERVAL, undefined, { signal: interrupted.signal }).catch(() => undefined)
    }
    return 'interrupted'
  } finally {
    process.off('SIGINT', interrupt)
    context.out.gone.removeEventListener('abort', interrupt)
  }
}

function show(view: MigrationView | undefined, state: StreamDiskState): void {
  const { disk, offset, size, status, error } = state
  const what = `Disk ${disk}`
  view?.at(what, { offset, size })
  view?.note(what, status === 'running' ? undefined : (error ?? status))
}

/** Those that are still on their way; undefined: the domain is not there any more. */
async function disksOf(arrived: Domain): Promise<StreamDiskState[] | undefined> {
  try {
    return (await arrived.streamDiskInfo()).filter(({ mode }) => mode === 'migration')
  } catch (error) {
    const codes = ['VIR_ERR_NO_DOMAIN', 'VIR_ERR_OPERATION_INVALID']
    if (error instanceof VirError && codes.includes(error.code)) return undefined
    throw error
  }
}

/** Has the source nothing to serve any more? VIR_ERR_NO_DOMAIN: it has forgotten the domain. */
async function hasLetGo(source: Domain, arrived: Domain): Promise<boolean> {
  const here = await knownOf(source)
  if (here?.state === c.VIR_DOMAIN_RUNNING) throw await gone(source, arrived)
  return here === undefined || here.state === c.VIR_DOMAIN_SHUTOFF
}

/** Its state; undefined: there is no such domain. */
async function knownOf(domain: Domain): Promise<DomainState | undefined> {
  try {
    return await domain.getState()
  } catch (error) {
    if (error instanceof VirError && error.code === 'VIR_ERR_NO_DOMAIN') return undefined
    throw error
  }
}

/** Why there is nothing to follow any more. */
async function gone(source: Domain, arrived: Domain): Promise<CommandError> {
  const here = await knownOf(source)
  if (here?.state === c.VIR_DOMAIN_RUNNING)
    return new CommandError(`Domain '${source.name}' has come back, the migration was aborted`)
  // a transient one is not there any more; the source lets go of it when all has gone over
  const moved =
    here === undefined || (here.state === c.VIR_DOMAIN_SHUTOFF && here.reason === c.VIR_DOMAIN_SHUTOFF_MIGRATED)
  return ended(arrived, moved ? 'all of its disks are there' : 'ask for it here by domstate --reason')
}

const ended = ({ name }: Domain, rest: string): CommandError =>
  new CommandError(`Domain '${name}' does not run at the destination any more; ${rest}`)
