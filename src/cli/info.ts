/** Commands that tell of a domain. */
import { headIn } from '../conf/glance.js'
import { VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP } from '../qemu/monitor/flags.js'
import { domainArgument, jsonOption } from './spec.js'
import type { CommandSpec } from './spec.js'
import { reasonWord, stateWord } from './words.js'

const dominfoCommand: CommandSpec = {
  name: 'dominfo',
  group: 'Domains',
  summary: 'tell the basics of a domain',
  arguments: [domainArgument],
  options: [jsonOption],
  description: ['Prints id, name, UUID, state, CPUs, CPU time (seconds), memory (KiB) and whether it is persistent.'],
  examples: [['dominfo web1', 'the basics of web1']],
  seeAlso: ['domstate', 'dumpxml'],
  async run(context, [what = ''], options) {
    const domain = await context.domain(what)
    const failure = `Failed to get the information of domain '${domain.name}'`
    const data = await context.attempt(failure, async () => {
      const { state, maxMem, memory, nrVirtCpu, cpuTime } = await domain.getInfo()
      const persistent = await domain.isPersistent()
      const autostart = await domain.getAutostart()
      const managedSave = persistent && (await domain.hasManagedSaveImage())
      const { osType } = headIn(await domain.getXMLDesc())
      const { id, name, uuid } = domain
      const word = stateWord(state)
      return {
        id,
        name,
        uuid,
        osType,
        state: word,
        nrVirtCpu,
        cpuTime,
        maxMem,
        memory,
        persistent,
        autostart,
        managedSave,
      }
    })
    if (options.flag('json')) {
      context.printJson(data)
      return undefined
    }
    const rows: [string, string][] = [
      ['Id', data.id === -1 ? '-' : String(data.id)],
      ['Name', data.name],
      ['UUID', data.uuid],
      ['OS Type', data.osType],
      ['State', data.state],
      ['CPU(s)', String(data.nrVirtCpu)],
      ...(data.id === -1 ? [] : ([['CPU time', `${(data.cpuTime / 1e9).toFixed(1)}s`]] satisfies [string, string][])),
      ['Max memory', `${data.maxMem} KiB`],
      ['Used memory', `${data.memory} KiB`],
      ['Persistent', data.persistent ? 'yes' : 'no'],
      ['Autostart', data.autostart ? 'enable' : 'disable'],
      ['Managed save', data.managedSave ? 'yes' : 'no'],
    ]
    context.print(...rows.map(([label, value]) => `${label}:`.padEnd(16) + value))
    context.say('')
    return undefined
  },
}

const domstateCommand: CommandSpec = {
  name: 'domstate',
  group: 'Domains',
  summary: 'tell the state of a domain',
  arguments: [domainArgument],
  options: [['--reason', 'also how it came to it'], jsonOption],
  description: [
    "Prints one of: running, idle, paused, in shutdown, shut off, crashed, pmsuspended. With --reason also how it came to that: 'paused (I/O error)', 'shut off (crashed)'.",
  ],
  examples: [['domstate web1 --reason', "'running (booted)', say"]],
  seeAlso: ['dominfo', 'event'],
  async run(context, [what = ''], options) {
    const domain = await context.domain(what)
    const { state, reason } = await context.attempt(`Failed to get the state of domain '${domain.name}'`, () =>
      domain.getState(),
    )
    const [word, why] = [stateWord(state), reasonWord(state, reason)]
    if (options.flag('json')) context.printJson({ state: word, reason: why })
    else context.print(options.flag('reason') ? `${word} (${why})` : word)
    if (!options.flag('json')) context.say('')
    return undefined
  },
}

const monitorCommand: CommandSpec = {
  name: 'qemu-monitor-command',
  group: 'Domains',
  summary: 'say something to the monitor of a QEMU',
  arguments: [domainArgument, ['<cmd...>', 'a QMP command as JSON, or words for the human monitor with --hmp']],
  options: [
    ['--hmp', 'the words are a line for the human monitor'],
    ['--pretty', 'indent the JSON of the answer'],
    ['--return-value', "print only what the answer has as 'return'"],
  ],
  description: [
    'Hands a command to the QEMU of a running domain and prints what it answers. The driver does not know what was changed that way: for looking, and for experts.',
  ],
  examples: [
    ['qemu-monitor-command web1 --pretty \'{"execute":"query-block-jobs"}\'', 'the block jobs as QEMU sees them'],
    ['qemu-monitor-command web1 --hmp info block', 'the same for people'],
  ],
  seeAlso: ['dumpxml', 'blockjob'],
  async run(context, [what = '', ...words], options) {
    options.exclusive('hmp', 'pretty')
    options.exclusive('hmp', 'return-value')
    const domain = await context.domain(what)
    const flags = options.flag('hmp') ? VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP : 0
    const failure = `Failed to run the monitor command on domain '${domain.name}'`
    const answer = await context.attempt(failure, () => domain.qemuMonitorCommand(words.join(' '), flags))
    if (options.flag('return-value')) {
      const { return: value } = JSON.parse(answer) as { return: unknown }
      context.print(JSON.stringify(value, undefined, options.flag('pretty') ? 2 : undefined))
    } else if (options.flag('pretty')) context.printJson(JSON.parse(answer))
    else context.print(answer.trimEnd())
    return undefined
  },
}

export const infoCommands: readonly CommandSpec[] = [dominfoCommand, domstateCommand, monitorCommand]
