/** Commands that keep the running state of a domain in a file. */
import { resolve } from 'node:path'
import * as c from '../constants.gen.js'
import type { Context } from './context.js'
import { readXmlFile } from './definition.js'
import { domainArgument } from './spec.js'
import type { CommandSpec } from './spec.js'
import type { Values } from './values.js'

const stateOptions = [
  ['--running', 'it runs when it is restored; default: as it was'],
  ['--paused', 'it is paused when it is restored; default: as it was'],
] as const

function stateFlags(options: Values): number {
  options.exclusive('running', 'paused')
  const running = options.flag('running') ? c.VIR_DOMAIN_SAVE_RUNNING : 0
  return running | (options.flag('paused') ? c.VIR_DOMAIN_SAVE_PAUSED : 0)
}

async function readOptionalXml(context: Context, options: Values): Promise<string | undefined> {
  const file = options.text('xml')
  return file === undefined ? undefined : readXmlFile(context, file)
}

const saveCommand: CommandSpec = {
  name: 'save',
  group: 'Saved states',
  summary: 'save a running domain to a file, and stop it',
  arguments: [domainArgument, ['<file>', 'where its memory and state go']],
  options: [['--xml <file>', 'domain XML to keep with it instead of its own, where the driver can'], ...stateOptions],
  description: [
    'Writes the memory and the state of a running domain to a file and stops it; restore lets it go on from there. Its images are not copied and must stay as they are. Not while a disk is being streamed. Ctrl-C waits until it is done; a second one leaves a paused domain and half a file.',
  ],
  examples: [['save web1 /var/tmp/web1.save', 'save web1']],
  seeAlso: ['restore', 'managedsave'],
  async run(context, [what = '', file = ''], options) {
    const flags = stateFlags(options)
    const xml = await readOptionalXml(context, options)
    const domain = await context.domain(what)
    const failure = `Failed to save domain '${domain.name}' to ${file}`
    await context.whole(failure, () => domain.save(resolve(file), xml, flags))
    context.say(`Domain '${domain.name}' saved to ${file}`, '')
    return undefined
  },
}

const restoreCommand: CommandSpec = {
  name: 'restore',
  group: 'Saved states',
  summary: 'let a domain go on from a saved state',
  arguments: [['<file>', 'what save wrote']],
  options: [['--xml <file>', 'domain XML to use instead of the saved one'], ...stateOptions],
  description: ['Starts the domain that was saved to a file, and lets it go on where it was. The file stays.'],
  examples: [['restore /var/tmp/web1.save --paused', 'go on with web1, paused']],
  seeAlso: ['save', 'resume'],
  async run(context, [file = ''], options) {
    const flags = stateFlags(options)
    const xml = await readOptionalXml(context, options)
    const conn = await context.connection()
    await context.attempt(`Failed to restore domain from ${file}`, () => conn.domainRestore(resolve(file), xml, flags))
    context.say(`Domain restored from ${file}`, '')
    return undefined
  },
}

const managedsaveCommand: CommandSpec = {
  name: 'managedsave',
  group: 'Saved states',
  summary: 'save a running domain so that its next start goes on from there',
  arguments: [domainArgument],
  options: stateOptions,
  description: [
    'As save, but the driver keeps the file: the next `virstream start` of the domain lets it go on where it was.',
  ],
  examples: [['managedsave web1', 'save web1 until its next start']],
  seeAlso: ['start', 'managedsave-remove', 'save'],
  async run(context, [what = ''], options) {
    const domain = await context.domain(what)
    const flags = stateFlags(options)
    await context.whole(`Failed to save domain '${domain.name}' state`, () => domain.managedSave(flags))
    context.say(`Domain '${domain.name}' state saved`, '')
    return undefined
  },
}

const managedsaveRemoveCommand: CommandSpec = {
  name: 'managedsave-remove',
  group: 'Saved states',
  summary: 'discard the managed saved state of a domain',
  arguments: [domainArgument],
  options: [],
  description: ['Discards the managed saved state of a domain: its next start boots it afresh.'],
  examples: [['managedsave-remove web1', 'web1 boots afresh at its next start']],
  seeAlso: ['managedsave', 'start'],
  async run(context, [what = '']) {
    const domain = await context.domain(what)
    if (!(await domain.hasManagedSaveImage())) {
      context.say(`Domain '${domain.name}' has no managed save image; removal skipped`, '')
      return undefined
    }
    const failure = `Failed to remove managed save image for domain '${domain.name}'`
    await context.attempt(failure, () => domain.managedSaveRemove())
    context.say(`Removed managedsave image for domain '${domain.name}'`, '')
    return undefined
  },
}

export const saveCommands: readonly CommandSpec[] = [
  saveCommand,
  restoreCommand,
  managedsaveCommand,
  managedsaveRemoveCommand,
]
