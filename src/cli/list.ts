import type { Domain } from '../api/domain.js'
import { headIn } from '../conf/glance.js'
import * as c from '../constants.gen.js'
import { VIR_DOMAIN_SHUTOFF } from '../constants.gen.js'
import type { Context } from './context.js'
import { formatTable } from './output.js'
import { jsonOption } from './spec.js'
import type { CommandSpec } from './spec.js'
import type { Values } from './values.js'
import { stateWord } from './words.js'

const filters: readonly (readonly [option: string, flag: number, meaning: string])[] = [
  ['transient', c.VIR_CONNECT_LIST_DOMAINS_TRANSIENT, 'only domains without a definition'],
  ['persistent', c.VIR_CONNECT_LIST_DOMAINS_PERSISTENT, 'only domains with a definition'],
  ['state-running', c.VIR_CONNECT_LIST_DOMAINS_RUNNING, 'only domains that run'],
  ['state-paused', c.VIR_CONNECT_LIST_DOMAINS_PAUSED, 'only domains that are paused'],
  ['state-shutoff', c.VIR_CONNECT_LIST_DOMAINS_SHUTOFF, 'only domains that are shut off'],
  ['state-other', c.VIR_CONNECT_LIST_DOMAINS_OTHER, 'only domains in any other state'],
  ['autostart', c.VIR_CONNECT_LIST_DOMAINS_AUTOSTART, 'only domains that start with the host'],
  ['no-autostart', c.VIR_CONNECT_LIST_DOMAINS_NO_AUTOSTART, 'only domains that do not'],
  ['with-managed-save', c.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE, 'only domains with a managed saved state'],
  ['without-managed-save', c.VIR_CONNECT_LIST_DOMAINS_NO_MANAGEDSAVE, 'only domains without one'],
]

interface Row {
  id: number
  name: string
  uuid: string
  state: string
  title: string
  managedSave: boolean
}

async function rowOf(domain: Domain): Promise<Row> {
  const { state } = await domain.getState()
  const { id, name, uuid } = domain
  const { title } = headIn(await domain.getXMLDesc())
  const managedSave = state === VIR_DOMAIN_SHUTOFF && (await domain.hasManagedSaveImage())
  return { id, name, uuid, state: stateWord(state), title, managedSave }
}

function listFlags(options: Values): number {
  let flags = 0
  const shutOff = options.flag('state-shutoff') || options.flag('state-other')
  if (options.flag('all') || shutOff) flags = c.VIR_CONNECT_LIST_DOMAINS_ACTIVE | c.VIR_CONNECT_LIST_DOMAINS_INACTIVE
  else flags = options.flag('inactive') ? c.VIR_CONNECT_LIST_DOMAINS_INACTIVE : c.VIR_CONNECT_LIST_DOMAINS_ACTIVE
  for (const [option, flag] of filters) if (options.flag(option)) flags |= flag
  return flags
}

/** Running ones first, by id; the others by name. */
function inOrder(a: Domain, b: Domain): number {
  if (a.id !== -1 && b.id !== -1) return a.id - b.id
  if (a.id === b.id) return a.name < b.name ? -1 : 1
  return a.id === -1 ? 1 : -1
}

async function printTable(context: Context, domains: readonly Domain[], options: Values): Promise<void> {
  const rows = await Promise.all(domains.map(rowOf))
  const marked = options.flag('managed-save')
  const withTitle = options.flag('title')
  const cells = rows.map(({ id, name, state, title, managedSave }) => [
    id === -1 ? '-' : String(id),
    name,
    marked && managedSave ? 'saved' : state,
    ...(withTitle ? [title] : []),
  ])
  context.print(...formatTable(['Id', 'Name', 'State', ...(withTitle ? ['Title'] : [])], cells, context.quiet))
  context.say('')
}

export const listCommand: CommandSpec = {
  name: 'list',
  group: 'Domains',
  summary: 'list domains',
  arguments: [],
  options: [
    ['--inactive', 'domains that do not run, instead of those that do'],
    ['--all', 'domains that run and domains that do not'],
    ...filters.map(([option, , meaning]) => [`--${option}`, meaning] as const),
    ['--uuid', 'print UUIDs, one to a line'],
    ['--name', 'print names, one to a line'],
    ['--id', 'print ids, one to a line'],
    ['--table', 'print a table (the default)'],
    ['--managed-save', "show 'saved' as the state of domains with a managed saved state"],
    ['--title', 'show titles too'],
    jsonOption,
  ],
  description: [
    'Prints the domains that run; with --all also those that are only defined. Filters of one kind (--state-running --state-paused) add up, filters of different kinds narrow the list.',
  ],
  examples: [
    ['list --all', 'every domain with its state'],
    ['list --state-paused --name', 'the names of paused domains, for a script'],
  ],
  seeAlso: ['dominfo', 'domstate'],
  async run(context, _args, options) {
    options.exclusive('table', 'json', 'name')
    options.exclusive('table', 'json', 'uuid')
    options.exclusive('table', 'json', 'id')
    const conn = await context.connection()
    const domains = await context.attempt('Failed to list domains', () => conn.listAllDomains(listFlags(options)))
    domains.sort(inOrder)
    if (options.flag('json')) {
      context.printJson(await Promise.all(domains.map(rowOf)))
    } else if (options.flag('id') || options.flag('uuid') || options.flag('name')) {
      for (const { id, uuid, name } of domains) {
        const shown = [
          ...(options.flag('id') ? [id === -1 ? '-' : String(id)] : []),
          ...(options.flag('uuid') ? [uuid] : []),
          ...(options.flag('name') ? [name] : []),
        ]
        context.print(shown.join(' '))
      }
      context.say('')
    } else await printTable(context, domains, options)
    return undefined
  },
}
