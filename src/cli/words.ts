/** What virsh calls states, reasons, events and jobs. */
import type { ConnectEvent } from '../api/event-hub.js'
import * as c from '../constants.gen.js'

const states: Readonly<Record<number, string>> = {
  [c.VIR_DOMAIN_NOSTATE]: 'no state',
  [c.VIR_DOMAIN_RUNNING]: 'running',
  [c.VIR_DOMAIN_BLOCKED]: 'idle',
  [c.VIR_DOMAIN_PAUSED]: 'paused',
  [c.VIR_DOMAIN_SHUTDOWN]: 'in shutdown',
  [c.VIR_DOMAIN_SHUTOFF]: 'shut off',
  [c.VIR_DOMAIN_CRASHED]: 'crashed',
  [c.VIR_DOMAIN_PMSUSPENDED]: 'pmsuspended',
}

export function stateWord(state: number): string {
  return states[state] ?? 'no state'
}

/** The names of the constants with a prefix, as words: 'VIR_DOMAIN_PAUSED_STARTING_UP' → 'starting up'. */
function wordsOf(prefix: string): ReadonlyMap<number, string> {
  const words = new Map<number, string>()
  for (const [name, value] of Object.entries(c)) {
    if (!name.startsWith(prefix)) continue
    // the reasons of a state come before flags of the same beginning
    if (!words.has(value)) words.set(value, name.slice(prefix.length).toLowerCase().replaceAll('_', ' '))
  }
  return words
}

const reasonPrefixes: Readonly<Record<number, string>> = {
  [c.VIR_DOMAIN_NOSTATE]: 'VIR_DOMAIN_NOSTATE_',
  [c.VIR_DOMAIN_RUNNING]: 'VIR_DOMAIN_RUNNING_',
  [c.VIR_DOMAIN_BLOCKED]: 'VIR_DOMAIN_BLOCKED_',
  [c.VIR_DOMAIN_PAUSED]: 'VIR_DOMAIN_PAUSED_',
  [c.VIR_DOMAIN_SHUTDOWN]: 'VIR_DOMAIN_SHUTDOWN_',
  [c.VIR_DOMAIN_SHUTOFF]: 'VIR_DOMAIN_SHUTOFF_',
  [c.VIR_DOMAIN_CRASHED]: 'VIR_DOMAIN_CRASHED_',
  [c.VIR_DOMAIN_PMSUSPENDED]: 'VIR_DOMAIN_PMSUSPENDED_',
}

/** Reasons that virsh spells in its own way. */
const reasonSpellings: Readonly<Record<string, string>> = {
  ioerror: 'I/O error',
  migration: 'migrating',
  save: 'saving',
  dump: 'dumping',
  snapshot: 'creating snapshot',
  wakeup: 'event wakeup',
  postcopy: 'post-copy',
  'postcopy failed': 'post-copy failed',
}

export function reasonWord(state: number, reason: number): string {
  const prefix = reasonPrefixes[state]
  const word = (prefix === undefined ? undefined : wordsOf(prefix).get(reason)) ?? 'unknown'
  return reasonSpellings[word] ?? word
}

const capital = (text: string): string => text.charAt(0).toUpperCase() + text.slice(1)

/** `VIR_DOMAIN_EVENT_DEFINED`, … without the details that begin alike */
const lifecycleEvents = [
  'Defined',
  'Undefined',
  'Started',
  'Suspended',
  'Resumed',
  'Stopped',
  'Shutdown',
  'PMSuspended',
  'Crashed',
]

function lifecycleWords(event: number, detail: number): string {
  const name = lifecycleEvents[event]
  if (name === undefined) return 'unknown'
  const word = wordsOf(`VIR_DOMAIN_EVENT_${name.toUpperCase()}_`).get(detail) ?? 'unknown'
  return `${name} ${capital(word)}`
}

const jobTypes: Readonly<Record<number, string>> = {
  [c.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL]: 'Block Pull',
  [c.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY]: 'Block Copy',
  [c.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT]: 'Block Commit',
  [c.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT]: 'Active Block Commit',
  [c.VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP]: 'Backup',
}

export function jobTypeWord(type: number): string {
  return jobTypes[type] ?? 'Unknown job'
}

const jobEnds: Readonly<Record<number, string>> = {
  [c.VIR_DOMAIN_BLOCK_JOB_COMPLETED]: 'completed',
  [c.VIR_DOMAIN_BLOCK_JOB_FAILED]: 'failed',
  [c.VIR_DOMAIN_BLOCK_JOB_CANCELED]: 'canceled',
  [c.VIR_DOMAIN_BLOCK_JOB_READY]: 'ready',
}

const ioErrorActions = ['none', 'pause', 'report']

/** What an event says, as one line without its kind and domain. */
export function eventWords(event: ConnectEvent): string {
  switch (event.kind) {
    case 'lifecycle':
      return lifecycleWords(event.event, event.detail)
    case 'block-job': {
      const why = event.error === undefined ? '' : `: ${event.error}`
      return `${jobTypeWord(event.type)} for ${event.path || event.disk} ${jobEnds[event.status] ?? 'unknown'}${why}`
    }
    case 'stream-progress':
    case 'stream-unit':
      return `${event.disk} ${event.offset}/${event.size}`
    case 'io-error':
      return `${event.path} (${event.alias}) ${ioErrorActions[event.action] ?? 'unknown'}${event.reason && ` due to ${event.reason}`}`
    case 'job-completed':
      return `operation ${event.operation}${event.error === undefined ? '' : `: ${event.error}`}`
    case 'migration-iteration':
      return `iteration: '${event.iteration}'`
    case 'agent':
      return `state: '${event.state === 1 ? 'connected' : 'disconnected'}' reason: '${event.reason}'`
    case 'device-added':
    case 'device-removed':
    case 'device-removal-failed':
      return event.alias
    case 'control-error':
      return ''
    case 'overflow':
      return `${event.dropped} events were dropped`
    case 'close':
      return `the connection broke${event.error === undefined ? '' : `: ${event.error}`}`
  }
}
