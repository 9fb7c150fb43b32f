/** A domain's definition as QEMU's command line, in libvirt's order and manner (qemuBuildCommandLine). */
import type { DomainDef } from '../conf/domain-def.js'
import { diskNodes } from './blockdev.js'
import { chardevsCommand } from './command-chardev.js'
import { controllersCommand } from './command-controller.js'
import { disksCommand } from './command-disk.js'
import { bootCommand, clockCommand, machineCommand, powerCommand } from './command-machine.js'
import {
  graphicsCommand,
  inputsCommand,
  memballoonCommand,
  panicsCommand,
  rngsCommand,
  videosCommand,
  watchdogsCommand,
} from './command-misc.js'
import { interfacesCommand, type TapFds } from './command-net.js'
import { escapeComma, object, type CommandCaps } from './command-props.js'

export interface CommandContext {
  caps: CommandCaps
  /** what the guest's code runs on; the domain's type says what was asked for */
  accel: 'kvm' | 'tcg'
  /** a listening unix socket that QEMU inherits under this number: its monitor */
  monitorFd: number
  /** private directory (0700) of the domain: sockets without a path of their own, secrets */
  runDir: string
  /** TCP port for a VNC server that is to get one by itself */
  vncPort?: number
  /** inherited descriptors of tap devices by the alias of their interface */
  tapFds?: TapFds
  /** listening unix sockets that QEMU inherits, by the alias of their character device */
  listeners?: ReadonlyMap<string, number>
  /** directory of certificates for NBD images with tls='yes' */
  nbdTlsDir?: string
  /** 'defer': the guest's state comes over the monitor's `migrate-incoming` */
  incoming?: 'defer'
  /** path at which a second monitor listens, for what must get through while the first one does not */
  recoverySocket?: string
  /** the time that the guest's clock is reckoned from; default: now */
  now?: Date
}

/** A file that must lie in the run directory, mode 0600, when QEMU starts, and that is of no use afterwards. */
export interface SecretFile {
  path: string
  data: string
}

const nbdTlsId = 'nbd-tls'
const secretFile = (runDir: string, id: string): string => `${runDir}/${id}.secret`

/**
 * argv after the binary. Every device of `def` must have its alias and address and every image its index, format and
 * backing chain. VIR_ERR_CONFIG_UNSUPPORTED, with the element's name, for what this binary or we cannot do.
 */
export function buildCommand(def: DomainDef, context: CommandContext): string[] {
  const { caps, runDir } = context
  const tls = context.nbdTlsDir !== undefined && usesNbdTls(def)
  const secretPath = (id: string): string => secretFile(runDir, id)
  return [
    ...['-name', `guest=${escapeComma(def.name)},debug-threads=on`],
    '-S',
    ...machineCommand(def, context),
    ...['-uuid', def.uuid],
    ...(def.graphics.length === 0 ? ['-display', 'none'] : []),
    ...['-no-user-config', '-nodefaults'],
    ...monitor(context.monitorFd),
    ...(context.recoverySocket === undefined ? [] : recoveryMonitor(context.recoverySocket)),
    ...clockCommand(def, caps, context.now ?? new Date()),
    ...powerCommand(def, caps),
    ...bootCommand(def),
    ...controllersCommand(def, caps),
    ...(tls ? nbdTls(caps, context.nbdTlsDir) : []),
    ...disksCommand(def, caps, tls ? { tlsCreds: nbdTlsId } : {}, secretPath),
    ...interfacesCommand(def, caps, context.tapFds ?? {}),
    ...chardevsCommand(def, caps, runDir, context.listeners),
    ...inputsCommand(def, caps),
    ...graphicsCommand(def, context),
    ...videosCommand(def, caps),
    ...watchdogsCommand(def, caps),
    ...(context.incoming ? ['-incoming', context.incoming] : []),
    ...memballoonCommand(def, caps),
    ...rngsCommand(def, caps, runDir),
    ...panicsCommand(def, caps),
    ...(caps.hasOption('sandbox') ? ['-sandbox', sandbox] : []),
    ...['-msg', 'timestamp=on'],
    ...(def.qemuCommandline?.args ?? []),
  ]
}

/** QEMU may not gain rights, start programs or change its own scheduling and limits. */
const sandbox = 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'

const monitor = (fd: number): string[] => [
  ...['-chardev', `socket,id=charmonitor,fd=${fd},server=on,wait=off`],
  ...['-mon', 'chardev=charmonitor,id=monitor,mode=control'],
]

const recoveryMonitor = (path: string): string[] => [
  ...['-chardev', `socket,id=charrecovery,path=${escapeComma(path)},server=on,wait=off`],
  ...['-mon', 'chardev=charrecovery,id=recovery,mode=control'],
]

const nbdTls = (caps: CommandCaps, dir: string | undefined): string[] =>
  object(caps, { 'qom-type': 'tls-creds-x509', id: nbdTlsId, dir, endpoint: 'client', 'verify-peer': true })

function usesNbdTls(def: DomainDef): boolean {
  return def.disks.some((disk) => {
    for (let source = disk.source ?? null; source; source = source.backingStore ?? null) {
      if (source.type === 'network' && source.tls === 'yes') return true
    }
    return false
  })
}

/** What the definition adds to QEMU's environment. */
export function commandEnvironment(def: DomainDef): Record<string, string> {
  const zone = def.clock.offset === 'timezone' && def.clock.timezone !== undefined ? { TZ: def.clock.timezone } : {}
  const own = (def.qemuCommandline?.env ?? []).map(({ name, value }) => [name, value] as const)
  return { ...zone, ...Object.fromEntries(own) }
}

/** The files with secrets that the command line refers to: to be written before the start and removed after it. */
export function commandSecretFiles(def: DomainDef, context: Pick<CommandContext, 'runDir'>): SecretFile[] {
  return def.disks.flatMap((disk) => {
    const secrets = disk.source ? diskNodes(disk, { tlsCreds: nbdTlsId }).secrets : []
    return secrets.map(({ id, data }) => ({ path: secretFile(context.runDir, id), data }))
  })
}
