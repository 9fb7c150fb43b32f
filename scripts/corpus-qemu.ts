/** The corpus on a real QEMU: is there a command line for a definition, and does QEMU come up with it, stopped (-S)? */
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { without } from '../src/conf/values.js'
import type { ChardevSource, DomainDef, InterfaceDef, StorageSource } from '../src/conf/domain-def.js'
import { messageOf, VirError } from '../src/error.js'
import type { ProcessExit } from '../src/native.js'
import { assignAliases, assignSourceIndexes } from '../src/machine/alias.js'
import { QemuCapabilities } from '../src/machine/capabilities.js'
import { buildCommand, commandEnvironment } from '../src/machine/command.js'
import { prepareDefinition } from '../src/machine/definition.js'
import { chooseFirmware } from '../src/machine/firmware.js'
import { withVncPorts } from '../src/qemu/domain/ports.js'
import { launch } from '../src/qemu/monitor/process.js'
import { checkSupported } from '../src/machine/supported.js'
import { resolveBackingChain } from '../src/storage/chain.js'
import { runTool } from './corpus-tool.js'
import { note, type Reasons } from './corpus.js'

export interface QemuResult {
  /** made whole and not refused at define */
  defined: Set<string>
  /** with a command line */
  commands: Set<string>
  /** QEMU came up with it */
  accepted: Set<string>
  /** why not, by name */
  refused: Map<string, string>
  atDefine: Reasons
  atCommand: Reasons
  atQemu: Reasons
  crashes: Reasons
}

export const binary = '/usr/bin/qemu-system-x86_64'
const ours = ['x86_64', 'i686']

/** Runs every definition; what the host lacks is stood in for: see `standIn`. */
export async function qemuResult(
  defs: ReadonlyMap<string, DomainDef>,
  tell: (text: string) => void,
): Promise<QemuResult> {
  const scratch = mkdtempSync(join(tmpdir(), 'corpus-'))
  const caps = await QemuCapabilities.load(binary, {
    cacheDir: join(scratch, 'cache'),
    nvramDir: join(scratch, 'nvram'),
  })
  const result: QemuResult = {
    ...{ defined: new Set<string>(), commands: new Set<string>(), accepted: new Set<string>() },
    ...{ refused: new Map<string, string>(), crashes: new Map<string, string[]>() },
    ...{
      atDefine: new Map<string, string[]>(),
      atCommand: new Map<string, string[]>(),
      atQemu: new Map<string, string[]>(),
    },
  }
  try {
    let done = 0
    for (const [name, def] of defs) {
      await runOne(name, structuredClone(def), { caps, scratch, result })
      if (++done % 100 === 0) tell(`${done} of ${defs.size} definitions tried`)
    }
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
  return result
}

interface Surroundings {
  caps: QemuCapabilities
  scratch: string
  result: QemuResult
}

async function runOne(name: string, def: DomainDef, { caps, scratch, result }: Surroundings): Promise<void> {
  const runDir = join(scratch, 'run')
  rmSync(runDir, { recursive: true, force: true })
  mkdirSync(runDir, { mode: 0o700 })
  const step = async (reasons: Reasons, reached: Set<string>, action: () => unknown): Promise<boolean> => {
    try {
      await action()
      reached.add(name)
      return true
    } catch (error) {
      if (!(error instanceof VirError)) note(result.crashes, String(error), name)
      note(reasons, lastWords(messageOf(error)), name)
      result.refused.set(name, messageOf(error))
      return false
    }
  }
  const defined = await step(result.atDefine, result.defined, () => define(def, caps))
  if (!defined) return
  const context = { caps, accel: 'tcg' as const, runDir }
  const commanded = await step(result.atCommand, result.commands, async () => {
    chooseFirmware(def)
    await standIn(def, runDir)
    // one QEMU at a time
    await withVncPorts(def, () => Promise.resolve())
    assignAliases(def)
    assignSourceIndexes(def)
    buildCommand(def, { ...context, monitorFd: 3 })
  })
  if (!commanded) return
  await step(result.atQemu, result.accepted, () =>
    comeUp(def, (monitorFd) => buildCommand(def, { ...context, monitorFd }), runDir),
  )
}

/** QEMU says several things; the line that says why comes last, without the time and the program's name. */
function lastWords(message: string): string {
  const last = message.trim().split('\n').at(-1) ?? ''
  return last.replace(/^.*qemu-system-x86_64: /, '').replace(/\/tmp\/corpus-\S*/g, '…')
}

function define(def: DomainDef, caps: QemuCapabilities): void {
  if (ours.includes(def.os.arch)) def.emulator = caps.emulator
  delete def.id
  prepareDefinition(def, caps)
  checkSupported(def, caps)
}

/** QEMU with its guest stopped, until its monitor greets; then it is killed. */
async function comeUp(def: DomainDef, args: (monitorFd: number) => string[], runDir: string): Promise<void> {
  let ended!: (exit: ProcessExit) => void
  const exit = new Promise<ProcessExit>((resolve) => (ended = resolve))
  const events = { onEvent: () => undefined, onClose: () => undefined, onAnomaly: () => undefined }
  const { process } = await launch({
    ...{ domain: def.name, binary, args, env: commandEnvironment(def), runDir, logFile: join(runDir, 'log') },
    ...{ events, onExit: (code) => ended(code) },
  })
  process.kill(9)
  await exit
}

/**
 * What this host lacks, stood in for: image files and block devices by small files of the format that is said, taps by user
 * networking, KVM by TCG, sockets and logs of character devices by ones in the run directory, the variable store by a copy of
 * its template. What needs a server, a host device or a kernel image fails for that reason.
 */
async function standIn(def: DomainDef, runDir: string): Promise<void> {
  for (const disk of def.disks) {
    if (disk.source === undefined) continue
    disk.source = await imageOf(disk.source, runDir)
    await resolveBackingChain(disk.source)
  }
  def.interfaces = def.interfaces.map(userNet)
  for (const device of [...def.serials, ...def.consoles, ...def.channels]) {
    device.source = inRunDir(device.source, runDir)
    if (device.log !== undefined) device.log.file = join(runDir, `log-${fileCount++}`)
  }
  for (const graphics of def.graphics)
    for (const listen of graphics.listens)
      if (listen.socket !== undefined) listen.socket = join(runDir, `vnc-${fileCount++}`)
  const { nvram } = def.os
  if (nvram?.path !== undefined) {
    nvram.path = join(runDir, 'nvram.fd')
    copyFileSync(nvram.template ?? '/usr/share/OVMF/OVMF_VARS_4M.fd', nvram.path)
  }
}

let fileCount = 0

async function imageOf(source: StorageSource, runDir: string): Promise<StorageSource> {
  const backing = source.backingStore
  const next = backing === undefined || backing === null ? {} : { backingStore: await imageOf(backing, runDir) }
  if (source.type === 'network') return { ...source, ...next }
  const format = source.format ?? 'raw'
  const path = join(runDir, `image-${fileCount++}.${format}`)
  await runTool('qemu-img', ['create', '-q', '-f', format, path, '16M'])
  return { ...source, ...next, type: 'file', path }
}

const tapped = ['bridge', 'network', 'direct', 'ethernet']
function userNet(net: InterfaceDef): InterfaceDef {
  if (!tapped.includes(net.type)) return net
  const user: InterfaceDef = { ...without(net, 'source', 'target', 'backend', 'script', 'driver'), type: 'user' }
  return net.driver === undefined ? user : { ...user, driver: without(net.driver, 'name') }
}

function inRunDir(source: ChardevSource, runDir: string): ChardevSource {
  if (source.type === 'file') return { ...source, path: join(runDir, `file-${fileCount++}`) }
  if (source.type === 'unix' && source.path !== undefined && source.mode === 'bind') {
    return { ...source, path: join(runDir, `sock-${fileCount++}`) }
  }
  return source
}

/** The version of the QEMU that was asked, as it says it itself. */
export async function qemuVersion(): Promise<string> {
  const words = await runTool(binary, ['--version'])
  return /version ([\d.]+)/.exec(words)?.[1] ?? words
}

export const hostName = (): string =>
  /^PRETTY_NAME="(.*)"$/m.exec(readFileSync('/etc/os-release', 'utf8'))?.[1] ?? 'unknown'
