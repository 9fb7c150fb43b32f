/** Commands about definitions. */
import { readFile } from 'node:fs/promises'
import { text } from 'node:stream/consumers'
import * as c from '../constants.gen.js'
import { wordsOf } from '../error.js'
import { attachConsole } from './console.js'
import { CommandError } from './context.js'
import type { Context } from './context.js'
import { domainArgument, jsonOption } from './spec.js'
import type { CommandSpec } from './spec.js'

const fileArgument = ['<file>', "file with domain XML; '-' is standard input"] as const
const validateOption = [
  '--validate',
  "check the XML against libvirt's own schema first, where that is installed",
] as const

export async function readXmlFile(context: Context, path: string): Promise<string> {
  try {
    return path === '-' ? await text(context.io.stdin) : await readFile(path, 'utf8')
  } catch (error) {
    throw new CommandError(`Failed to open file '${path}': ${wordsOf(error)}`)
  }
}

const defineCommand: CommandSpec = {
  name: 'define',
  group: 'Definitions',
  summary: 'define a domain from XML, without starting it',
  arguments: [fileArgument],
  options: [validateOption, jsonOption],
  description: [
    'Reads domain XML as libvirt describes it, fills in what it leaves open (UUID, addresses, controllers, MAC addresses) and keeps it. A domain with the same name and UUID is redefined; while it runs, that is for its next start.',
    'What the XML asks for and this driver cannot do is refused here, by name.',
  ],
  examples: [
    ['define web1.xml', 'define the domain that web1.xml describes'],
    ['define --validate -', 'define what comes on standard input, if the schema allows it'],
  ],
  seeAlso: ['create', 'undefine', 'dumpxml'],
  async run(context, [file = ''], options) {
    const xml = await readXmlFile(context, file)
    const conn = await context.connection()
    const flags = options.flag('validate') ? c.VIR_DOMAIN_DEFINE_VALIDATE : 0
    const domain = await context.attempt(`Failed to define domain from ${file}`, () => conn.domainDefineXML(xml, flags))
    if (options.flag('json')) context.printJson(domain)
    else context.say(`Domain '${domain.name}' defined from ${file}`, '')
    return undefined
  },
}

const createCommand: CommandSpec = {
  name: 'create',
  group: 'Definitions',
  summary: 'start a transient domain from XML',
  arguments: [fileArgument],
  options: [
    ['--console', 'connect to its console as soon as it is started'],
    ['--paused', 'leave its CPUs stopped; resume lets them run'],
    validateOption,
    jsonOption,
  ],
  description: ['Starts a domain from XML without keeping a definition: it is gone when it stops.'],
  examples: [['create scratch.xml --console', 'start what scratch.xml describes, on this terminal']],
  seeAlso: ['define', 'start', 'destroy'],
  async run(context, [file = ''], options) {
    const xml = await readXmlFile(context, file)
    const conn = await context.connection()
    const paused = options.flag('paused') ? c.VIR_DOMAIN_START_PAUSED : 0
    const validate = options.flag('validate') ? c.VIR_DOMAIN_START_VALIDATE : 0
    const failure = `Failed to create domain from ${file}`
    const domain = await context.attempt(failure, () => conn.domainCreateXML(xml, paused | validate))
    if (options.flag('json')) context.printJson(domain)
    else context.say(`Domain '${domain.name}' created from ${file}`, '')
    if (options.flag('console')) await attachConsole(context, domain, undefined, 0)
    return undefined
  },
}

const undefineCommand: CommandSpec = {
  name: 'undefine',
  group: 'Definitions',
  summary: 'forget the definition of a domain',
  arguments: [domainArgument],
  options: [
    ['--managed-save', 'remove its managed saved state too; without this a domain that has one is refused'],
    ['--nvram', 'remove its UEFI variable store too'],
    ['--keep-nvram', 'keep its UEFI variable store; without either a domain that has one is refused'],
  ],
  description: ['Forgets a definition. Images are not touched. A domain that runs goes on, and is gone when it stops.'],
  examples: [['undefine web1 --managed-save', 'forget web1 and its saved state']],
  seeAlso: ['define', 'destroy'],
  async run(context, [what = ''], options) {
    options.exclusive('nvram', 'keep-nvram')
    const domain = await context.domain(what)
    const flags =
      (options.flag('managed-save') ? c.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE : 0) |
      (options.flag('nvram') ? c.VIR_DOMAIN_UNDEFINE_NVRAM : 0) |
      (options.flag('keep-nvram') ? c.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM : 0)
    await context.attempt(`Failed to undefine domain '${domain.name}'`, () => domain.undefine(flags))
    context.say(`Domain '${domain.name}' has been undefined`, '')
    return undefined
  },
}

const dumpxmlCommand: CommandSpec = {
  name: 'dumpxml',
  group: 'Definitions',
  summary: 'print the XML of a domain',
  arguments: [domainArgument],
  options: [
    ['--inactive', 'the definition that its next start uses, even while it runs'],
    ['--security-info', 'with passwords'],
    ['--migratable', 'as another host would need it'],
  ],
  description: [
    'Prints the XML of a domain: of the running one with what only a running domain has (id, aliases, the whole backing chain of each disk), else its definition.',
  ],
  examples: [['dumpxml web1 --inactive > web1.xml', 'keep the definition of web1 in a file']],
  seeAlso: ['define', 'dominfo', 'domblklist'],
  async run(context, [what = ''], options) {
    const domain = await context.domain(what)
    const flags =
      (options.flag('inactive') ? c.VIR_DOMAIN_XML_INACTIVE : 0) |
      (options.flag('security-info') ? c.VIR_DOMAIN_XML_SECURE : 0) |
      (options.flag('migratable') ? c.VIR_DOMAIN_XML_MIGRATABLE : 0)
    const xml = await context.attempt(`Failed to get the XML of domain '${domain.name}'`, () =>
      domain.getXMLDesc(flags),
    )
    context.print(xml)
    return undefined
  },
}

const autostartCommand: CommandSpec = {
  name: 'autostart',
  group: 'Definitions',
  summary: 'start a domain with the host, or no longer',
  arguments: [domainArgument],
  options: [['--disable', 'no longer']],
  description: [
    'Marks a domain: when its tree is opened for the first time after the host has booted, the domain is started. Nothing opens the tree by itself; a unit of your init system that runs `virstream list` does.',
  ],
  examples: [
    ['autostart web1', 'start web1 with the host'],
    ['autostart web1 --disable', 'no longer'],
  ],
  seeAlso: ['dominfo', 'list'],
  async run(context, [what = ''], options) {
    const domain = await context.domain(what)
    const un = options.flag('disable') ? 'un' : ''
    const failure = `Failed to ${un}mark domain '${domain.name}' as autostarted`
    await context.attempt(failure, () => domain.setAutostart(un === ''))
    context.say(`Domain '${domain.name}' ${un}marked as autostarted`, '')
    return undefined
  },
}

export const definitionCommands: readonly CommandSpec[] = [
  defineCommand,
  createCommand,
  undefineCommand,
  dumpxmlCommand,
  autostartCommand,
]
