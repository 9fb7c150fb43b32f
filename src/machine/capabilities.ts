/** What one QEMU binary can do: asked once over QMP, kept on disk, thrown away when the binary or we ourselves change. */
import { createHash } from 'node:crypto'
import { mkdir, readFile, rename, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { failFrom, wordsOf } from '../error.js'
import { packageVersion } from '../util/package.js'
import { probeCapabilities, type CpuInfo, type MachineInfo, type ProbedCapabilities } from './capabilities-probe.js'
import { SchemaIndex, type SchemaInfo } from './capabilities-schema.js'
import type { CommandCaps } from './command-props.js'
import type { DefinitionCaps } from './definition-caps.js'
import { probeKvm, type KvmProbe } from './kvm-probe.js'

const fail = failFrom('VIR_FROM_QEMU')

export interface CapabilitiesOptions {
  /** where the answers are kept; it is made when it is missing */
  cacheDir: string
  /** directory for the variable stores of UEFI guests */
  nvramDir?: string
}

export class QemuCapabilities implements CommandCaps, DefinitionCaps {
  /** path of the binary */
  readonly emulator: string
  /** 'x86_64' */
  readonly arch: string
  /** 1000000 * major + 1000 * minor + micro */
  readonly version: number
  /** the distribution's words for the version, may be '' */
  readonly package: string
  readonly machines: readonly MachineInfo[]
  readonly cpus: readonly CpuInfo[]
  /** what can be `<domain type=…>` with this binary; whether KVM works is asked of `kvmWorks` */
  readonly virtTypes: readonly ('qemu' | 'kvm')[]
  /** directory for the variable stores of UEFI guests */
  readonly nvramDir?: string
  /** the driver keeps QEMU on the host CPUs of `<vcpu cpuset>` */
  readonly pinsVcpus = true
  /** the answer of query-qmp-schema */
  readonly schema: readonly SchemaInfo[]
  readonly #index: SchemaIndex
  readonly #types: ReadonlySet<string>
  readonly #options: ReadonlySet<string>
  readonly #machineProperties: ReadonlySet<string>
  readonly #blockDrivers: ReadonlySet<string>
  readonly #netdevTypes: ReadonlySet<string>
  readonly #cacheDir: string
  readonly #key: string
  #kvm: Promise<KvmProbe> | undefined

  private constructor(binary: string, key: string, probed: ProbedCapabilities, options: CapabilitiesOptions) {
    const { major, minor, micro } = probed.version
    this.emulator = binary
    this.arch = probed.arch
    this.version = 1_000_000 * major + 1000 * minor + micro
    this.package = probed.version.package
    this.machines = probed.machines
    this.cpus = probed.cpus
    this.virtTypes = probed.kvmPresent ? ['qemu', 'kvm'] : ['qemu']
    if (options.nvramDir !== undefined) this.nvramDir = options.nvramDir
    this.schema = probed.schema
    this.#index = new SchemaIndex(probed.schema)
    this.#types = new Set(probed.types)
    this.#options = new Set(probed.options)
    this.#machineProperties = new Set(probed.machineProperties)
    this.#blockDrivers = new Set(this.#index.argumentValues('blockdev-add', 'driver'))
    this.#netdevTypes = new Set(this.#index.argumentValues('netdev_add', 'type'))
    this.#cacheDir = options.cacheDir
    this.#key = key
  }

  /** VIR_ERR_SYSTEM_ERROR when there is no such binary, VIR_ERR_INTERNAL_ERROR when it does not answer. */
  static async load(binary: string, options: CapabilitiesOptions): Promise<QemuCapabilities> {
    const key = await cacheKey(binary)
    const file = join(options.cacheDir, `${createHash('sha256').update(binary).digest('hex').slice(0, 16)}.json`)
    const cached = await readCache(file, key)
    if (cached !== undefined) return new QemuCapabilities(binary, key, cached, options)
    const probed = await probeCapabilities(binary)
    await writeCache(options.cacheDir, file, { key, probed })
    return new QemuCapabilities(binary, key, probed, options)
  }

  /** Is the binary still the one that was asked? VIR_ERR_SYSTEM_ERROR when it is gone. */
  async isCurrent(): Promise<boolean> {
    return (await cacheKey(this.emulator)) === this.#key
  }

  /** Does KVM work here? Found out by running a guest, at the first question. */
  async kvmWorks(): Promise<boolean> {
    return (await this.#probeKvm()).kvm
  }
  /** Why KVM does not work, as a sentence; '' when it does. */
  async kvmReason(): Promise<string> {
    return (await this.#probeKvm()).reason
  }
  #probeKvm(): Promise<KvmProbe> {
    if (!this.virtTypes.includes('kvm'))
      return Promise.resolve({ kvm: false, reason: 'this QEMU is built without KVM' })
    return (this.#kvm ??= probeKvm(this.emulator, this.#cacheDir))
  }

  /** What definitions ask, as an object that can be spread. */
  get definition(): DefinitionCaps {
    const { emulator, machines, virtTypes, nvramDir, pinsVcpus } = this
    const has = (type: string): boolean => this.hasDevice(type)
    return { emulator, machines, virtTypes, pinsVcpus, ...(nvramDir !== undefined && { nvramDir }), has }
  }

  hasDevice(type: string): boolean {
    return this.#types.has(type)
  }
  /** The same under the name that definitions use. */
  has(type: string): boolean {
    return this.#types.has(type)
  }
  hasBlockDriver(name: string): boolean {
    return this.#blockDrivers.has(name)
  }
  hasNetdev(type: string): boolean {
    return this.#netdevTypes.has(type)
  }
  hasCommand(name: string): boolean {
    return this.#index.hasCommand(name)
  }
  hasCommandArgument(command: string, argument: string): boolean {
    return this.#index.hasCommandArgument(command, argument)
  }
  hasEvent(name: string): boolean {
    return this.#index.hasEvent(name)
  }
  hasOption(name: string): boolean {
    return this.#options.has(name)
  }
  hasMachineProperty(name: string): boolean {
    return this.#machineProperties.has(name)
  }

  /**
   * QEMU says it of `device_add` by a feature flag; `object-add` with enumerated types came together with JSON for `-object`,
   * and netdevs of type `dgram` with JSON for `-netdev`.
   */
  takesJson(option: 'device' | 'object' | 'netdev'): boolean {
    if (option === 'device') return this.#index.hasCommandFeature('device_add', 'json-cli')
    if (option === 'object') return this.#index.argumentValues('object-add', 'qom-type').length > 0
    return this.#netdevTypes.has('dgram')
  }

  /** A machine by its name or alias; undefined: the binary has none such. */
  machine(name: string): MachineInfo | undefined {
    return this.machines.find((machine) => machine.name === name || machine.alias === name)
  }

  get defaultMachine(): MachineInfo | undefined {
    return this.machines.find(({ isDefault }) => isDefault)
  }

  defaultRamId(machine: string): string | undefined {
    return this.machine(machine)?.defaultRamId
  }
}

// --- the cache -------------------------------------------------------------------------------------------------

interface CacheFile {
  key: string
  probed: ProbedCapabilities
}

/** to be raised when ProbedCapabilities changes within one version of the package */
const cacheFormat = 1

/** Modules that come or go change what a binary can do without touching it. */
const moduleDirs = ['/usr/lib/x86_64-linux-gnu/qemu', '/usr/lib64/qemu-kvm', '/usr/lib64/qemu', '/usr/lib/qemu']

async function cacheKey(binary: string): Promise<string> {
  const own = await stat(binary).catch((error: unknown) => {
    throw fail('VIR_ERR_SYSTEM_ERROR', `Cannot check QEMU binary '${binary}': ${wordsOf(error)}`, error)
  })
  const modules = await Promise.all(moduleDirs.map((dir) => stat(dir).catch(() => undefined)))
  const times = [own, ...modules].map((info) => (info ? `${info.mtimeMs}/${info.ctimeMs}/${info.size}` : '-'))
  return [binary, ...times, packageVersion, cacheFormat].join('|')
}

async function readCache(file: string, key: string): Promise<ProbedCapabilities | undefined> {
  try {
    const cached = JSON.parse(await readFile(file, 'utf8')) as CacheFile
    return cached.key === key ? cached.probed : undefined
  } catch {
    return undefined // absent, or cut off by a full disk: the binary can be asked again
  }
}

async function writeCache(dir: string, file: string, content: CacheFile): Promise<void> {
  await mkdir(dir, { recursive: true, mode: 0o700 })
  const temporary = `${file}.${process.pid}`
  await writeFile(temporary, JSON.stringify(content), { mode: 0o600 })
  await rename(temporary, file)
}
