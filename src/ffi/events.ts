/** libvirt's callbacks of domain events, as events of ours. They come on the event loop, since libvirt's own runs on it. */
import koffi from 'koffi'
import * as c from '../constants.gen.js'
import type { DeviceEvent } from '../domain-events.js'
import type { DomainEvent, DomainRef } from '../driver.js'
import type { Connection } from './connection.js'
import { toJobStats } from './job-stats.js'
import { numberOf, readTypedParamsAt } from './typed-params.js'

/** An event before it is known whose it is. */
type Said = DomainEvent extends infer Event ? (Event extends DomainEvent ? Omit<Event, 'domain'> : never) : never

interface Listening {
  connection: Connection
  hear: (domain: DomainRef, event: Said) => void
}

const listening = new Map<number, Listening>()
const text = 'const char *'

/** A callback of libvirt: connection, domain, what `args` names, opaque. Never unregistered, one for all connections. */
function callback(args: readonly string[], toEvent: (...args: never[]) => Said): bigint {
  const type = koffi.proto('int', ['void *', 'void *', ...args, 'void *'])
  const receive = (_connection: bigint, domain: bigint, ...rest: unknown[]): number => {
    const listener = listening.get(Number((rest.pop() as bigint | null) ?? 0n))
    if (listener === undefined) return 0
    const convert = toEvent as (...args: unknown[]) => Said
    try {
      listener.hear(listener.connection.refOf(domain), convert(...rest))
    } catch (error) {
      listener.connection.host.logger.error({ err: error }, 'an event of libvirt cannot be read')
    }
    return 0
  }
  return koffi.register(receive, koffi.pointer(type))
}

const blockJob = (disk: string, type: number, status: number): Said => ({
  kind: 'block-job',
  disk,
  path: '',
  type,
  status,
})

const ofDevice = (kind: DeviceEvent['kind']): bigint => callback([text], (alias: string) => ({ kind, alias }))

const makeCallbacks = (): ReadonlyMap<number, bigint> =>
  new Map([
    [
      c.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
      callback(['int', 'int'], (event: number, detail: number) => ({ kind: 'lifecycle', event, detail })),
    ],
    // by path, and always just before the same by target
    [
      c.VIR_DOMAIN_EVENT_ID_BLOCK_JOB,
      callback([text, 'int', 'int'], (path: string | null, type: number, status: number) => ({
        ...blockJob('', type, status),
        path: path ?? '',
      })),
    ],
    [c.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, callback([text, 'int', 'int'], blockJob)],
    [
      c.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON,
      callback([text, text, 'int', text], (path: string, alias: string, action: number, reason: string) => ({
        kind: 'io-error',
        disk: '',
        path,
        alias,
        action,
        reason,
      })),
    ],
    [
      c.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
      callback(['void *', 'int'], (params: bigint, count: number) => {
        const read = readTypedParamsAt(params, count)
        const error = read.get('errmsg')
        return {
          kind: 'job-completed',
          operation: numberOf(read, 'operation') ?? 0,
          stats: toJobStats(read, c.VIR_DOMAIN_JOB_COMPLETED),
          ...(typeof error === 'string' && { error }),
        }
      }),
    ],
    [
      c.VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION,
      callback(['int'], (iteration: number) => ({ kind: 'migration-iteration', iteration })),
    ],
    [
      c.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
      callback(['int', 'int'], (state: number, reason: number) => ({ kind: 'agent', state, reason })),
    ],
    [c.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED, ofDevice('device-added')],
    [c.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, ofDevice('device-removed')],
    [c.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, ofDevice('device-removal-failed')],
    [c.VIR_DOMAIN_EVENT_ID_CONTROL_ERROR, callback([], () => ({ kind: 'control-error' }))],
  ])

let callbacks: ReadonlyMap<number, bigint> | undefined

/** The events that are asked for, by number. */
export const eventIds: readonly number[] = [
  c.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
  c.VIR_DOMAIN_EVENT_ID_BLOCK_JOB,
  c.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2,
  c.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON,
  c.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED,
  c.VIR_DOMAIN_EVENT_ID_MIGRATION_ITERATION,
  c.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
  c.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED,
  c.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED,
  c.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED,
  c.VIR_DOMAIN_EVENT_ID_CONTROL_ERROR,
]

/** Has all events of a connection brought to `hear`, until it is closed. What its driver does not have is left out. */
export async function hearEvents(connection: Connection, hear: Listening['hear']): Promise<void> {
  callbacks ??= makeCallbacks()
  listening.set(connection.id, { connection, hear })
  const registered: number[] = []
  const register = async (event: number): Promise<void> => {
    const callback = callbacks?.get(event) ?? null
    const opaque = BigInt(connection.id)
    try {
      registered.push(
        await connection.call('virConnectDomainEventRegisterAny', connection.at, null, event, callback, opaque, null),
      )
    } catch (error) {
      connection.host.logger.debug({ err: error, event }, 'this connection has no such event')
    }
  }
  await Promise.all(eventIds.map(register))
  connection.onClose(async () => {
    listening.delete(connection.id)
    await Promise.allSettled(
      registered.map((id) => connection.call('virConnectDomainEventDeregisterAny', connection.at, id)),
    )
  })
}
