/** What the parts of the driver suite share. */
import assert from 'node:assert/strict'
import type { TestContext } from 'node:test'
import * as c from '../../src/index.js'
import type { Connect, ConnectEvent, Domain, EventOfKind, VirErrorCode } from '../../src/index.js'

export interface Opened {
  conn: Connect
  /** XML of a domain that has not been there yet; its disks are those that `disks` asks for */
  newDomainXml: (disks?: 'thin' | 'none') => Promise<string>
  /** what a driver tells besides: pairs of events of which the first is left out right before the second */
  alsoTold?: readonly (readonly [string, string])[]
}

export type Open = (t: TestContext) => Promise<Opened | undefined>

export const running = (reason: number): { state: number; reason: number } => ({ state: c.VIR_DOMAIN_RUNNING, reason })
export const paused = { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_USER }
export const shutOff = (reason: number): { state: number; reason: number } => ({ state: c.VIR_DOMAIN_SHUTOFF, reason })

export async function refused(call: Promise<unknown>, code: VirErrorCode, message?: RegExp): Promise<void> {
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof c.VirError, String(error))
    if (message !== undefined) assert.match(error.message, message)
    assert.equal(error.code, code, error.message)
    return true
  })
}

/** The lifecycle events that come until `last` does, which may be on its way still; as 'event/detail'. */
export async function eventsUntil(
  events: AsyncIterable<ConnectEvent> & { close(): void },
  last: readonly [number, number],
  wanted: (event: EventOfKind<'lifecycle'>) => boolean = () => true,
): Promise<string[]> {
  const heard: string[] = []
  // a connection of libvirt keeps no process alive
  const late = setTimeout(() => events.close(), 60_000)
  try {
    for await (const event of events) {
      if (event.kind !== 'lifecycle' || !wanted(event)) continue
      heard.push(`${event.event}/${event.detail}`)
      if (heard.at(-1) === last.join('/')) return heard
    }
  } finally {
    clearTimeout(late)
  }
  throw new Error(`${last.join('/')} does not come after ${heard.join(' ')}`)
}

/** The lifecycle events of one domain's runs from now on. */
export function listen(
  { conn, alsoTold = [] }: Opened,
  domain: Domain,
): (last: readonly [number, number]) => Promise<string[]> {
  const events = conn.domainEvents({ domain, kinds: ['lifecycle'] })
  return async (last) => {
    // its definition may have been told after the call that made it
    const heard = await eventsUntil(events, last, ({ event }) => event !== c.VIR_DOMAIN_EVENT_DEFINED)
    return heard.filter((one, at) => !alsoTold.some(([left, next]) => one === left && heard[at + 1] === next))
  }
}

export const sequence = (...events: (readonly [number, number])[]): string[] => events.map((pair) => pair.join('/'))

export async function define({ conn, newDomainXml }: Opened, disks: 'thin' | 'none' = 'none'): Promise<Domain> {
  return conn.domainDefineXML(await newDomainXml(disks))
}

/** Waits for the next event that `wanted` takes. */
export async function until<E extends ConnectEvent>(
  events: AsyncIterable<E>,
  wanted: (event: E) => boolean,
): Promise<E> {
  for await (const event of events) if (wanted(event)) return event
  throw new Error('the events ended')
}

export type Each = (sentence: string, body: (opened: Opened, t: TestContext) => Promise<void>) => void

/** The next event of a block job. */
export async function nextJobEnd(events: AsyncIterable<ConnectEvent>): Promise<EventOfKind<'block-job'>> {
  for await (const event of events) if (event.kind === 'block-job') return event
  throw new Error('the events ended')
}
