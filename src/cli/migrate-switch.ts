/** What is done to a migration that takes too long: its guest is suspended, or its memory follows it. */
import type { Connect } from '../api/connect.js'
import type { Domain } from '../api/domain.js'
import { messageOf } from '../error.js'
import type { Context } from './context.js'

export interface Haste {
  /** ms; undefined: however long it takes */
  timeout: number | undefined
  onTimeout: 'suspend' | 'postcopy'
  /** as soon as all memory has gone over once */
  postcopyAfterPass: boolean
}

/** The pass that begins when all of the memory has gone over once. */
const SECOND_PASS = 2

/** Watches over a migration of `domain`; `over` ends that. What cannot be done is said, the migration goes on. */
export function hasten(context: Context, connect: Connect, domain: Domain, haste: Haste, over: AbortSignal): void {
  const { timeout, onTimeout, postcopyAfterPass } = haste
  const attempt = (what: string, work: () => Promise<void>): void => {
    work().catch((error: unknown) => {
      if (!over.aborted) context.err.line(`error: ${what}: ${messageOf(error)}`)
    })
  }
  const postcopy = (): void => attempt('cannot switch to post-copy', () => domain.migrateStartPostCopy())
  const suspend = (): void => attempt('cannot suspend the guest', () => domain.suspend())
  if (timeout !== undefined) {
    const timer = setTimeout(onTimeout === 'postcopy' ? postcopy : suspend, timeout)
    over.addEventListener('abort', () => clearTimeout(timer))
  }
  if (!postcopyAfterPass) return
  const events = connect.domainEvents({ kinds: ['migration-iteration'], domain })
  over.addEventListener('abort', () => events.close())
  attempt('cannot hear of the passes of memory', async () => {
    for await (const event of events)
      if (event.kind === 'migration-iteration' && event.iteration >= SECOND_PASS) {
        postcopy()
        return
      }
  })
}
