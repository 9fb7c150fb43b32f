import type { Duplex, Readable } from 'node:stream'
import type { ReadStream } from 'node:tty'
import type { Domain } from '../api/domain.js'
import { VIR_DOMAIN_CONSOLE_FORCE, VIR_DOMAIN_CONSOLE_SAFE } from '../constants.gen.js'
import { messageOf } from '../error.js'
import { CommandError } from './context.js'
import type { Context } from './context.js'
import { domainArgument } from './spec.js'
import type { CommandSpec } from './spec.js'

/** ^] */
const ESCAPE = 0x1d

/** ms without output after the end of an input that is no terminal */
const LINGER = 1000

function isTerminal(stream: Readable): stream is ReadStream {
  return (stream as Partial<ReadStream>).isTTY === true
}

/** Joins standard input and output to the console until the escape character, or until either side ends. */
export async function attachConsole(
  context: Context,
  domain: Domain,
  device: string | undefined,
  flags: number,
): Promise<void> {
  const failure = `Failed to open the console of domain '${domain.name}'`
  const console = await context.attempt(failure, () => domain.openConsole(device, flags))
  const { stdin } = context.io
  context.say(`Connected to domain '${domain.name}'`, 'Escape character is ^] (Ctrl + ])')
  if (isTerminal(stdin)) stdin.setRawMode(true)
  try {
    await join(context, stdin, console)
  } catch (error) {
    throw new CommandError(`The console of domain '${domain.name}' broke off: ${messageOf(error)}`)
  } finally {
    if (isTerminal(stdin)) stdin.setRawMode(false)
    stdin.pause()
    console.destroy()
  }
  context.say('')
}

function join(context: Context, stdin: Readable, console: Duplex): Promise<void> {
  return new Promise((resolve, reject) => {
    let linger: NodeJS.Timeout | undefined
    const finish = (error?: Error): void => {
      clearTimeout(linger)
      stdin.off('data', type)
      stdin.off('end', ended)
      if (error === undefined) resolve()
      else reject(error)
    }
    const type = (chunk: Buffer): void => {
      const escape = isTerminal(stdin) ? chunk.indexOf(ESCAPE) : -1
      console.write(escape === -1 ? chunk : chunk.subarray(0, escape))
      if (escape !== -1) finish()
    }
    const ended = (): void => {
      linger = setTimeout(finish, LINGER)
    }
    console.on('data', (chunk: Buffer) => {
      context.out.stream.write(chunk)
      linger?.refresh()
    })
    console.on('error', finish)
    console.on('close', () => finish())
    console.on('end', () => finish())
    context.out.gone.addEventListener('abort', () => finish())
    stdin.on('data', type)
    stdin.on('end', ended)
  })
}

export const consoleCommand: CommandSpec = {
  name: 'console',
  group: 'Domains',
  summary: 'connect to the console of a guest',
  arguments: [domainArgument],
  options: [
    ['--devname <alias>', "console, serial port or channel with this alias ('serial0'); default: the first console"],
    ['--force', 'disconnect who is connected already'],
    ['--safe', 'only where the driver keeps two sessions apart'],
  ],
  description: [
    'Joins this terminal to the console of a running domain. Everything that is typed goes to the guest, also Ctrl-C; Ctrl-] ends it.',
    'When standard input is not a terminal, it is sent as it is; the command ends when it has ended and the guest has been silent for a second.',
  ],
  examples: [
    ['console web1', 'log in on web1'],
    ['console web1 --devname serial1', 'its second serial port'],
  ],
  seeAlso: ['start', 'create'],
  async run(context, [what = ''], options) {
    const domain = await context.domain(what)
    const flags =
      (options.flag('force') ? VIR_DOMAIN_CONSOLE_FORCE : 0) | (options.flag('safe') ? VIR_DOMAIN_CONSOLE_SAFE : 0)
    await attachConsole(context, domain, options.text('devname'), flags)
    return undefined
  },
}
