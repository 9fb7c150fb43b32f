/** Asks a QEMU binary what it can do: one run without a machine, over QMP on its standard input and output. */
import { spawn, type ChildProcessByStdio } from 'node:child_process'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { Duplex, type Readable, type Writable } from 'node:stream'
import { failFrom, messageOf } from '../error.js'
import { QmpClient } from '../qmp/client.js'
import type { SchemaInfo } from './capabilities-schema.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms for the whole of one question; a binary on a cold disk under load takes some seconds to start */
const TIMEOUT = 30_000

/** One machine of query-machines. */
export interface MachineInfo {
  name: string
  alias?: string
  isDefault: boolean
  maxCpus: number
  deprecated: boolean
  /** 'qemu64' */
  defaultCpu?: string
  /** 'pc.ram' */
  defaultRamId?: string
  hotpluggableCpus: boolean
}
export interface CpuInfo {
  name: string
  /** features that the accelerator of the probe (TCG) lacks */
  blockers: string[]
  deprecated: boolean
}

/** What a binary said, as it is kept in the cache. */
export interface ProbedCapabilities {
  version: { major: number; minor: number; micro: number; package: string }
  /** 'x86_64' */
  arch: string
  /** built with KVM; whether KVM works is another question */
  kvmPresent: boolean
  machines: MachineInfo[]
  cpus: CpuInfo[]
  /** QOM types that can be made */
  types: string[]
  /** command line options that QEMU knows parameters of */
  options: string[]
  /** properties of the machines with an alias, all together */
  machineProperties: string[]
  schema: SchemaInfo[]
}

/** VIR_ERR_INTERNAL_ERROR, with the binary's own words, when it cannot be run or does not speak QMP. */
export async function probeCapabilities(binary: string): Promise<ProbedCapabilities> {
  const args = ['-S', '-no-user-config', '-nodefaults', '-display', 'none', '-machine', 'none', '-qmp', 'stdio']
  const [program, ...rest] = endingWithUs(binary, args)
  const child = spawn(program, rest, { stdio: ['pipe', 'pipe', 'pipe'], env: { LC_ALL: 'C', PATH: '/usr/bin:/bin' } })
  let words = ''
  child.stderr.setEncoding('utf8').on('data', (text: string) => (words = (words + text).slice(-4096)))
  const failed = once(child, 'error').then(([error]: unknown[]) => Promise.reject(error as Error))
  try {
    return await Promise.race([failed, ask(child)])
  } catch (error) {
    // its words can come after its end
    if (!child.stderr.closed)
      await once(child.stderr, 'close', { signal: AbortSignal.timeout(1000) }).catch(() => undefined)
    const what = words.trim() === '' ? messageOf(error) : words.trim()
    throw fail('VIR_ERR_INTERNAL_ERROR', `Failed to probe QEMU binary '${binary}': ${what}`, error)
  } finally {
    child.kill('SIGKILL')
  }
}

const SETPRIV = '/usr/bin/setpriv'

/** QEMU does not mind that nobody listens any more, so a process that is killed would leave it behind for ever. */
function endingWithUs(binary: string, args: string[]): [string, ...string[]] {
  return existsSync(SETPRIV) ? [SETPRIV, '--pdeathsig', 'KILL', '--', binary, ...args] : [binary, ...args]
}

async function ask(child: ChildProcessByStdio<Writable, Readable, Readable>): Promise<ProbedCapabilities> {
  const stream = Duplex.from({ readable: child.stdout, writable: child.stdin })
  const client = await QmpClient.connect(stream, { timeout: TIMEOUT })
  const query = <T>(command: string, args?: object): Promise<T> =>
    client.execute(command, args, { timeout: TIMEOUT }) as Promise<T>
  try {
    const [version, target, kvm, machines, cpus, types, options, schema] = await Promise.all([
      query<QmpVersion>('query-version'),
      query<{ arch: string }>('query-target'),
      query<{ present: boolean }>('query-kvm'),
      query<QmpMachine[]>('query-machines'),
      query<QmpCpu[]>('query-cpu-definitions'),
      query<{ name: string }[]>('qom-list-types', { abstract: false }),
      query<{ option: string }[]>('query-command-line-options'),
      query<SchemaInfo[]>('query-qmp-schema'),
    ])
    const current = machines.filter(({ alias }) => alias !== undefined)
    const properties = await Promise.all(
      current.map(({ name }) => query<{ name: string }[]>('qom-list-properties', { typename: `${name}-machine` })),
    )
    return {
      version: { ...version.qemu, package: version.package },
      arch: target.arch,
      kvmPresent: kvm.present,
      machines: machines.map(machineInfo),
      cpus: cpus.map(cpuInfo),
      types: types.map(({ name }) => name).toSorted(),
      options: options.map(({ option }) => option).toSorted(),
      machineProperties: [...new Set(properties.flat().map(({ name }) => name))].toSorted(),
      schema,
    }
  } finally {
    client.close()
  }
}

interface QmpVersion {
  qemu: { major: number; minor: number; micro: number }
  package: string
}
interface QmpMachine {
  name: string
  alias?: string
  'is-default'?: boolean
  'cpu-max': number
  'hotpluggable-cpus': boolean
  deprecated?: boolean
  'default-cpu-type'?: string
  'default-ram-id'?: string
}
interface QmpCpu {
  name: string
  'unavailable-features'?: string[]
  deprecated?: boolean
}

function machineInfo(machine: QmpMachine): MachineInfo {
  const defaultCpu = machine['default-cpu-type']?.replace(/-[^-]*-cpu$/, '')
  return {
    name: machine.name,
    ...(machine.alias !== undefined && { alias: machine.alias }),
    isDefault: machine['is-default'] ?? false,
    maxCpus: machine['cpu-max'],
    deprecated: machine.deprecated ?? false,
    ...(defaultCpu !== undefined && { defaultCpu }),
    ...(machine['default-ram-id'] !== undefined && { defaultRamId: machine['default-ram-id'] }),
    hotpluggableCpus: machine['hotpluggable-cpus'],
  }
}

const cpuInfo = (cpu: QmpCpu): CpuInfo => ({
  name: cpu.name,
  blockers: cpu['unavailable-features'] ?? [],
  deprecated: cpu.deprecated ?? false,
})
