import { Command, CommanderError } from 'commander'
import { messageOf, VirError } from '../error.js'
import { packageVersion } from '../util/package.js'
import { blockCommands } from './block.js'
import { deviceCommands } from './device.js'
import { blockJobCommands } from './blockjob.js'
import { blockcommitCommand } from './commit.js'
import { consoleCommand } from './console.js'
import { CommandError, Context } from './context.js'
import type { GlobalOptions, Io } from './context.js'
import { definitionCommands } from './definition.js'
import { eventCommand } from './event.js'
import { commandHelp, globalOptions, programHelp } from './help.js'
import { hostCommands } from './host.js'
import { infoCommands } from './info.js'
import { jobCommands } from './job.js'
import { lifecycleCommands } from './lifecycle.js'
import { listCommand } from './list.js'
import { migrateControlCommands } from './migrate-control.js'
import { migrateCommand } from './migrate.js'
import { saveCommands } from './save.js'
import { groups } from './spec.js'
import type { CommandSpec } from './spec.js'
import { streamCommands } from './stream.js'
import { UsageError, Values } from './values.js'

/** Every command, in the order of the help. */
export const specs: readonly CommandSpec[] = [
  listCommand,
  ...lifecycleCommands,
  ...infoCommands,
  consoleCommand,
  eventCommand,
  ...definitionCommands,
  ...streamCommands,
  ...blockJobCommands,
  blockcommitCommand,
  ...blockCommands,
  ...deviceCommands,
  migrateCommand,
  ...migrateControlCommands,
  ...jobCommands,
  ...saveCommands,
  ...hostCommands,
]

/** Runs one command line (without 'node' and the script) and answers the exit status. */
export async function runCli(argv: readonly string[], io: Io): Promise<number> {
  let status = 0
  const program = buildProgram(io, (answer) => {
    status = answer
  })
  try {
    await program.parseAsync([...argv], { from: 'user' })
    return status
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 1
    for (const line of errorLines(error)) io.stderr.write(`error: ${line}\n`)
    return 1
  }
}

function buildProgram(io: Io, answer: (status: number) => void): Command {
  const program = new Command('virstream')
  program
    .exitOverride()
    .configureOutput({ writeOut: (text) => io.stdout.write(text), writeErr: (text) => io.stderr.write(text) })
    .configureHelp({ formatHelp: () => programHelp(specs, groups) })
    .version(packageVersion, '-V, --version')
    .helpCommand(true)
  for (const [flags, meaning] of globalOptions) program.option(flags, meaning)
  for (const spec of specs) addCommand(program, spec, io, answer)
  return program
}

function addCommand(program: Command, spec: CommandSpec, io: Io, answer: (status: number) => void): void {
  const command = program.command(spec.name).description(spec.summary)
  command.configureHelp({ formatHelp: () => commandHelp(spec) })
  command.showHelpAfterError(`see 'virstream ${spec.name} --help'`)
  for (const [name, meaning] of spec.arguments) command.argument(name, meaning)
  for (const [flags, meaning] of spec.options) command.option(flags, meaning)
  command.action(async () => {
    const context = new Context(io, program.opts<GlobalOptions>())
    try {
      answer((await spec.run(context, command.args, new Values(command.opts()))) ?? 0)
    } finally {
      await context.close()
    }
    await context.out.flush()
    if (context.out.problem !== undefined)
      throw new CommandError(`Failed to write the output: ${context.out.problem.message}`)
  })
}

/** The sentence of the command, then that of what was below it, with libvirt's code. */
function errorLines(error: unknown): string[] {
  if (error instanceof VirError) return [`${error.message} (${error.code})`]
  if (error instanceof CommandError)
    return [error.message, ...(error.cause === undefined ? [] : errorLines(error.cause))]
  if (error instanceof UsageError) return [error.message]
  return [messageOf(error)]
}
