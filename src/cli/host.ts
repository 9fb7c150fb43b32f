/** Commands about the connection and the host. */
import { packageVersion } from '../util/package.js'
import { jsonOption } from './spec.js'
import type { CommandSpec } from './spec.js'

function dotted(version: number): string {
  return `${Math.floor(version / 1_000_000)}.${Math.floor(version / 1000) % 1000}.${version % 1000}`
}

const capabilitiesCommand: CommandSpec = {
  name: 'capabilities',
  group: 'Host',
  summary: 'print what the host can run, as XML',
  arguments: [],
  options: [],
  description: ['Prints the capabilities of host and driver, as libvirt describes them.'],
  examples: [['capabilities', 'what the host can run']],
  seeAlso: ['domcapabilities'],
  async run(context) {
    const conn = await context.connection()
    context.print(await context.attempt('failed to get capabilities', () => conn.getCapabilities()))
    return undefined
  },
}

const domcapabilitiesCommand: CommandSpec = {
  name: 'domcapabilities',
  group: 'Host',
  summary: 'print what a domain can have, as XML',
  arguments: [],
  options: [
    ['--virttype <type>', "'kvm' or 'qemu'; default: the better one that works"],
    ['--emulatorbin <path>', 'QEMU to ask; default: the one for the architecture'],
    ['--arch <arch>', "architecture, e.g. 'x86_64'; default: that of the host"],
    ['--machine <type>', "machine type, e.g. 'q35'; default: that of the emulator"],
  ],
  description: [
    'Prints the devices, features and machine that a domain can have with an emulator, as libvirt describes them.',
  ],
  examples: [['domcapabilities --machine q35', 'what a q35 machine can have']],
  seeAlso: ['capabilities'],
  async run(context, _args, options) {
    const conn = await context.connection()
    const [emulator, arch] = [options.text('emulatorbin'), options.text('arch')]
    const [machine, virtType] = [options.text('machine'), options.text('virttype')]
    const xml = await context.attempt('failed to get emulator capabilities', () =>
      conn.getDomainCapabilities(emulator, arch, machine, virtType),
    )
    context.print(xml)
    return undefined
  },
}

const uriCommand: CommandSpec = {
  name: 'uri',
  group: 'Host',
  summary: 'print the connection URI',
  arguments: [],
  options: [],
  description: ['Prints the URI that commands connect to.'],
  examples: [['uri', 'where commands go when no URI is given']],
  seeAlso: ['version'],
  async run(context) {
    const conn = await context.connection()
    context.print(await conn.getURI())
    context.say('')
    return undefined
  },
}

const versionCommand: CommandSpec = {
  name: 'version',
  group: 'Host',
  summary: 'print the versions of virstream and of the hypervisor',
  arguments: [],
  options: [jsonOption],
  description: ['Prints the version of virstream, and of the hypervisor that the connection leads to.'],
  examples: [['version --json', 'for a script']],
  seeAlso: ['uri', 'capabilities'],
  async run(context, _args, options) {
    const conn = await context.connection()
    const data = await context.attempt('failed to get the version', async () => ({
      library: packageVersion,
      api: await conn.getType(),
      apiVersion: dotted(await conn.getLibVersion()),
      hypervisor: dotted(await conn.getVersion()),
    }))
    if (options.flag('json')) context.printJson(data)
    else {
      context.print(`Using library: virstream ${data.library}`, `Using API: ${data.api} ${data.apiVersion}`)
      context.print(`Running hypervisor: ${data.api} ${data.hypervisor}`)
      context.say('')
    }
    return undefined
  },
}

export const hostCommands: readonly CommandSpec[] = [
  capabilitiesCommand,
  domcapabilitiesCommand,
  uriCommand,
  versionCommand,
]
