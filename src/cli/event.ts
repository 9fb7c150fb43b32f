import type { ConnectEvent, DomainEvents, EventKind } from '../api/event-hub.js'
import { CommandError, type Context } from './context.js'
import type { CommandSpec } from './spec.js'
import { UsageError } from './values.js'
import type { Values } from './values.js'
import { eventWords } from './words.js'

const kinds: readonly EventKind[] = [
  'lifecycle',
  'block-job',
  'stream-progress',
  'stream-unit',
  'io-error',
  'job-completed',
  'migration-iteration',
  'agent',
  'device-added',
  'device-removed',
  'device-removal-failed',
  'control-error',
]

function chosenKinds(options: Values): readonly EventKind[] {
  options.exclusive('all', 'event')
  const name = options.text('event')
  if (options.flag('all')) return kinds
  if (name === undefined) throw new UsageError('one of --list, --all, or --event <type> is required')
  const kind = kinds.find((candidate) => candidate === name)
  if (kind === undefined) throw new UsageError(`unknown event type ${name}`)
  return [kind]
}

function show(context: Context, event: ConnectEvent, options: Values): void {
  const now = new Date().toISOString()
  if (options.flag('json')) {
    context.print(JSON.stringify({ ...(options.flag('timestamp') && { timestamp: now }), ...event }))
    return
  }
  const stamp = options.flag('timestamp') ? `${now.replace('T', ' ').replace('Z', '+0000')}: ` : ''
  const about = event.kind === 'overflow' || event.kind === 'close' ? '' : ` for domain '${event.domain.name}'`
  context.print(`${stamp}event '${event.kind}'${about}: ${eventWords(event)}`)
}

/** Reads events until one of the reasons to stop comes up, which it answers. */
async function loop(
  context: Context,
  events: DomainEvents,
  options: Values,
): Promise<{ count: number; end?: 'interrupted' | 'timed out' }> {
  let end: 'interrupted' | 'timed out' | undefined
  const stop = (why: 'interrupted' | 'timed out'): void => {
    end = why
    events.close()
  }
  const interrupt = (): void => stop('interrupted')
  const timeout = options.seconds('timeout')
  const timer = setTimeout(() => stop('timed out'), timeout ?? 0)
  if (timeout === undefined) clearTimeout(timer)
  process.on('SIGINT', interrupt)
  context.out.gone.addEventListener('abort', interrupt)
  // nothing else keeps a process alive that only listens
  const alive = setInterval(() => undefined, 60_000)
  let count = 0
  try {
    for await (const event of events) {
      show(context, event, options)
      // not what was waited for, and nothing comes after it
      if (event.kind === 'close') throw new CommandError(eventWords(event))
      count += 1
      if (!options.flag('loop')) break
    }
  } finally {
    clearTimeout(timer)
    clearInterval(alive)
    process.off('SIGINT', interrupt)
  }
  return { count, ...(end && { end }) }
}

export const eventCommand: CommandSpec = {
  name: 'event',
  group: 'Domains',
  summary: 'wait for events of domains, and print them',
  arguments: [],
  options: [
    ['--list', 'print the types of events'],
    ['--all', 'wait for events of all types'],
    ['--event <type>', 'wait for events of this type'],
    ['--domain <domain>', 'only of this domain'],
    ['--loop', 'go on until the timeout or Ctrl-C; default: one event is enough'],
    ['--timeout <seconds>', 'wait so long at most; default: for ever'],
    ['--timestamp', 'begin each line with the time'],
    ['--json', 'print each event as one line of JSON'],
  ],
  description: [
    'Waits for events and prints each as a line. With qemu:///embed the driver works inside this process, so this command has the tree open while it waits: another command on the same tree is refused meanwhile, unless a virstreamd serves it.',
    'A connection that breaks ends it as a failure.',
    'A program that wants events while it works uses the library: `for await (const event of conn.domainEvents())`.',
  ],
  examples: [
    ['event --all --loop', 'everything, until Ctrl-C'],
    [
      'event --event block-job --domain web1 --timeout 3600',
      'the end of the stream of web1, waiting for an hour at most',
    ],
  ],
  seeAlso: ['stream-disk', 'domstate'],
  async run(context, _args, options) {
    if (options.flag('list')) {
      context.print(...kinds)
      return undefined
    }
    const chosen = chosenKinds(options)
    options.seconds('timeout')
    const conn = await context.connection()
    const name = options.text('domain')
    const domain = name === undefined ? undefined : await context.domain(name)
    const { count, end } = await loop(context, conn.domainEvents({ domain, kinds: chosen }), options)
    if (options.flag('json')) return undefined
    if (end !== undefined) context.say(`event loop ${end}`)
    context.say(`events received: ${count}`, '')
    return undefined
  },
}
