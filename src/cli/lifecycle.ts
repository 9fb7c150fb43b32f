/** Commands that start, stop, pause. */
import type { Domain } from '../api/domain.js'
import * as c from '../constants.gen.js'
import { attachConsole } from './console.js'
import { CommandError } from './context.js'
import type { Context } from './context.js'
import { domainArgument } from './spec.js'
import type { CommandSpec } from './spec.js'
import { UsageError } from './values.js'
import type { Values } from './values.js'

interface Simple {
  name: string
  summary: string
  /** 'Domain 'x' …' once it is done */
  done: string
  options?: CommandSpec['options']
  description: readonly string[]
  examples: CommandSpec['examples']
  seeAlso: readonly string[]
  work: (domain: Domain, options: Values) => Promise<void>
}

/** A command that does one thing to one domain and says so. */
function simple({ name, summary, done, options = [], work, ...rest }: Simple): CommandSpec {
  return {
    name,
    group: 'Domains',
    summary,
    arguments: [domainArgument],
    options,
    ...rest,
    async run(context, [what = ''], values) {
      const domain = await context.domain(what)
      await context.attempt(`Failed to ${name} domain '${domain.name}'`, () => work(domain, values))
      context.say(`Domain '${domain.name}' ${done}`, '')
      return undefined
    },
  }
}

function modeFlag(options: Values, modes: Readonly<Record<string, number>>): number {
  const mode = options.text('mode')
  if (mode === undefined) return 0
  const flag = modes[mode]
  if (flag === undefined) throw new UsageError(`mode must be 'acpi' or 'agent', not '${mode}'`)
  return flag
}

const modeOption = [
  '--mode <mode>',
  "how the guest is asked: 'acpi' (the power button, the default) or 'agent'",
] as const

async function start(context: Context, what: string, options: Values): Promise<number | undefined> {
  const domain = await context.domain(what)
  if (await domain.isActive()) throw new CommandError('Domain is already active')
  const paused = options.flag('paused') ? c.VIR_DOMAIN_START_PAUSED : 0
  const fresh = options.flag('force-boot') ? c.VIR_DOMAIN_START_FORCE_BOOT : 0
  await context.attempt(`Failed to start domain '${domain.name}'`, () => domain.create(paused | fresh))
  context.say(`Domain '${domain.name}' started`, '')
  if (options.flag('console')) await attachConsole(context, domain, undefined, 0)
  return undefined
}

const startCommand: CommandSpec = {
  name: 'start',
  group: 'Domains',
  summary: 'start a domain that is defined',
  arguments: [domainArgument],
  options: [
    ['--console', 'connect to its console as soon as it is started'],
    ['--paused', 'leave its CPUs stopped; resume lets them run'],
    ['--force-boot', 'boot afresh: a managed saved state is discarded'],
  ],
  description: [
    'Starts a domain, or lets it go on from its managed saved state where it has one. The command ends when the guest runs; the guest runs on.',
    'Images whose backing images lie elsewhere are opened as they are: nothing is copied first.',
  ],
  examples: [
    ['start web1', 'start the domain web1'],
    [
      'start web1 --paused --console',
      'start it, watch its first words after `virstream resume web1` in another terminal',
    ],
  ],
  seeAlso: ['create', 'stream-disk', 'shutdown', 'destroy'],
  run: (context, [what = ''], options) => start(context, what, options),
}

export const lifecycleCommands: readonly CommandSpec[] = [
  startCommand,
  simple({
    name: 'shutdown',
    summary: 'ask the guest to power down',
    done: 'is being shutdown',
    options: [modeOption],
    description: [
      'Presses the power button of a running domain, and does not wait: the guest may take its time, or ignore it.',
    ],
    examples: [['shutdown web1', 'ask the guest of web1 to power down']],
    seeAlso: ['destroy', 'reboot'],
    work: (domain, options) =>
      domain.shutdown(
        modeFlag(options, { acpi: c.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN, agent: c.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT }),
      ),
  }),
  simple({
    name: 'destroy',
    summary: 'stop a domain at once',
    done: 'destroyed',
    options: [['--graceful', 'give up rather than kill a QEMU that does not react']],
    description: [
      'Stops a domain as pulling the plug would: what the guest had not written yet is lost. Its definition and images stay. A transient domain is gone afterwards.',
    ],
    examples: [['destroy web1', 'stop web1 now']],
    seeAlso: ['shutdown', 'undefine'],
    work: (domain, options) => domain.destroy(options.flag('graceful') ? c.VIR_DOMAIN_DESTROY_GRACEFUL : 0),
  }),
  simple({
    name: 'reboot',
    summary: 'ask the guest to restart',
    done: 'is being rebooted',
    options: [modeOption],
    description: ['Asks the guest of a running domain to restart, and does not wait. Its streams go on.'],
    examples: [['reboot web1', 'ask the guest of web1 to restart']],
    seeAlso: ['reset', 'shutdown'],
    work: (domain, options) =>
      domain.reboot(
        modeFlag(options, { acpi: c.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN, agent: c.VIR_DOMAIN_REBOOT_GUEST_AGENT }),
      ),
  }),
  simple({
    name: 'reset',
    summary: 'reset a domain as if by its reset button',
    done: 'was reset',
    description: ['Restarts the machine at once, without asking the guest. Its streams go on.'],
    examples: [['reset web1', 'reset web1']],
    seeAlso: ['reboot'],
    work: (domain) => domain.reset(),
  }),
  simple({
    name: 'suspend',
    summary: 'stop the CPUs of a running domain',
    done: 'suspended',
    description: ['Stops the CPUs of a domain; its memory stays. Streams of its disks go on.'],
    examples: [['suspend web1', 'pause web1']],
    seeAlso: ['resume', 'save'],
    work: (domain) => domain.suspend(),
  }),
  simple({
    name: 'resume',
    summary: 'let the CPUs of a paused domain run again',
    done: 'resumed',
    description: ['Lets a domain go on that was suspended, or started with --paused.'],
    examples: [['resume web1', 'let web1 go on']],
    seeAlso: ['suspend'],
    work: (domain) => domain.resume(),
  }),
]
