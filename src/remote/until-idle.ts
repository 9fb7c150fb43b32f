import { setTimeout as delay } from 'node:timers/promises'
import * as c from '../constants.gen.js'
import type { DomainRef, HypervisorOps } from '../driver.js'

/** ms between two looks */
const INTERVAL = 1000

const migrates: readonly number[] = [
  c.VIR_DOMAIN_PAUSED_MIGRATION,
  c.VIR_DOMAIN_PAUSED_POSTCOPY,
  c.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED,
]
const runs: readonly number[] = [c.VIR_DOMAIN_JOB_BOUNDED, c.VIR_DOMAIN_JOB_UNBOUNDED]

/** Which stream or migration would stand still without a process; undefined: none. */
export async function whyNeeded(operations: Partial<HypervisorOps>): Promise<string | undefined> {
  for (const domain of (await operations.connectListAllDomains?.(0)) ?? []) {
    const why = await whyDomainNeeds(operations, domain).catch(() => undefined)
    if (why !== undefined) return why
  }
  return undefined
}

async function whyDomainNeeds(operations: Partial<HypervisorOps>, domain: DomainRef): Promise<string | undefined> {
  const state = await operations.domainGetState?.(domain)
  if (state?.state === c.VIR_DOMAIN_PAUSED && migrates.includes(state.reason))
    return `domain '${domain.name}' is being migrated`
  const streams = await operations.domainStreamDiskInfo?.(domain, 0)
  const stream = streams?.find(({ status }) => status !== 'error')
  if (stream !== undefined) return `disk '${stream.disk}' of domain '${domain.name}' is being streamed`
  // a domain that does not run has no job, and says so by an error
  const job = await operations.domainGetJobStats?.(domain, 0)
  return job !== undefined && runs.includes(job.type) ? `domain '${domain.name}' has a job` : undefined
}

/** ms that nobody needs the daemon before it ends: since it was of use, and since it was started for somebody */
export interface Patience {
  after: number
  before: number
}

interface Watched {
  /** what it is of use for now */
  busy(): Promise<string | undefined>
  /** has there been a client? */
  readonly used: boolean
}

/** Resolves when nobody has needed the daemon for so long; sooner when the signal aborts. */
export async function untilIdle(daemon: Watched, { after, before }: Patience, signal: AbortSignal): Promise<void> {
  let needed = false
  let since = performance.now()
  while (!signal.aborted) {
    const busy = (await daemon.busy()) !== undefined
    if (busy || (daemon.used && !needed)) {
      needed = true
      since = performance.now()
    }
    if (performance.now() - since >= (needed ? after : before)) return
    await delay(INTERVAL, undefined, { signal }).catch(() => undefined)
  }
}
