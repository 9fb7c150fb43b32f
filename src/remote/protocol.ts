/**
 * What client and daemon say to each other on a tunnel. On a channel with service 'virstream' go requests: the client's
 * are operations of a driver by name, with their arguments as a list; the daemon's are events. A console is a channel of
 * its own, with service 'virstream-console' and the id that `domainOpenConsole` was answered with.
 */
import type { HypervisorOps } from '../driver.js'

export const CONTROL = 'virstream'
export const CONSOLE = 'virstream-console'
/** Channels with services that begin so belong to the driver that migrates. */
export const MIGRATION = 'migration'

/** One number for all of this; a daemon that speaks another one refuses. */
export const PROTOCOL_VERSION = 1

/** The daemon's request with a list of events. */
export const EVENTS = 'events'

/** ms for which a console that was opened waits for its channel */
export const CONSOLE_PATIENCE = 10_000

/** Operations that go over the wire: all that can be said in JSON. A console is answered by an id. */
export type WireOperation = Exclude<keyof HypervisorOps, 'connectClose' | 'migrationChannel' | 'connectTunnel'>

/** With the opening of a control channel. */
export interface Opening {
  version: number
  readOnly: boolean
}

/** The answer to it. */
export interface Opened {
  version: number
  /** version of the daemon's package */
  program: string
  /** what the daemon's driver can do */
  operations: string[]
}

/** An own object of JSON, as it comes from the other side. */
export function isObject(value: unknown): value is Readonly<Record<string, unknown>> {
  return typeof value === 'object' && value !== null && !Array.isArray(value)
}

/** Whether an object of the other side's is what a control channel is answered with. */
export function isOpened(reply: unknown): reply is Opened {
  if (!isObject(reply)) return false
  const { operations, version } = reply
  return (
    typeof version === 'number' && Array.isArray(operations) && operations.every((name) => typeof name === 'string')
  )
}
