import type { DomainDef } from './domain-def.js'
import { formatChardev } from './format-chardev.js'
import { formatController, formatInterface } from './format-controller.js'
import { formatDisk, formatSeclabel } from './format-disk.js'
import {
  formatGraphics,
  formatInput,
  formatMemballoon,
  formatPanic,
  formatRng,
  formatVideo,
  formatWatchdog,
} from './format-misc.js'
import { formatClock, formatCpu, formatFeatures, formatOs, formatVcpu } from './format-os.js'
import { inactiveDef } from './inactive.js'
import { qemuNamespace } from './parse.js'
import type { Out } from './writer.js'
import { element, kept, print, textElement, withResidue } from './writer.js'

export interface FormatOptions {
  /** also passwords and cookies (VIR_DOMAIN_XML_SECURE) */
  secure?: boolean
  /** without what only a running domain has (VIR_DOMAIN_XML_INACTIVE) */
  inactive?: boolean
  /** for another host (VIR_DOMAIN_XML_MIGRATABLE): without the id and without indexes, aliases and paths of this run */
  migratable?: boolean
}

/**
 * The definition as libvirt prints it: its order of elements, two blanks a level, single quotes. What was not modelled
 * comes back where it was. Reading the text again gives an equal definition (with `secure`).
 */
export function formatDomainXml(def: DomainDef, options: FormatOptions = {}): string {
  const shown = options.inactive === true || options.migratable === true ? inactiveDef(def) : def
  return print(formatDomain(shown, options.secure === true))
}

function formatDomain(def: DomainDef, secure: boolean): Out {
  const namespace = def.qemuCommandline === undefined ? {} : { 'xmlns:qemu': qemuNamespace }
  const out = element('domain', { type: def.virtType, id: def.id, ...namespace }, [
    element('name', {}, def.name),
    element('uuid', {}, def.uuid),
    textElement('title', def.title),
    textElement('description', def.description),
    def.metadata.length === 0
      ? undefined
      : element(
          'metadata',
          {},
          def.metadata.map((child) => kept(child, true)),
        ),
    element('memory', { unit: 'KiB' }, String(def.memory)),
    element('currentMemory', { unit: 'KiB' }, String(def.currentMemory)),
    formatBacking(def),
    formatVcpu(def.vcpu),
    ...formatIothreads(def),
    formatOs(def.os),
    formatFeatures(def.features),
    def.cpu === undefined ? undefined : formatCpu(def.cpu),
    formatClock(def.clock),
    textElement('on_poweroff', def.onPoweroff),
    textElement('on_reboot', def.onReboot),
    textElement('on_crash', def.onCrash),
    formatPm(def),
    formatDevices(def, secure),
    ...def.seclabels.map(formatSeclabel),
    formatCommandline(def),
  ])
  return withResidue(out, def.residue)
}

function formatBacking({ memoryBacking: backing }: DomainDef): Out | undefined {
  if (backing === undefined) return undefined
  const access = backing.shared === undefined ? undefined : backing.shared ? 'shared' : 'private'
  return element('memoryBacking', {}, [
    backing.hugepages === true ? element('hugepages') : undefined,
    backing.locked === true ? element('locked') : undefined,
    backing.source === undefined ? undefined : element('source', { type: backing.source }),
    access === undefined ? undefined : element('access', { mode: access }),
  ])
}

/** The ids are only written where they are not just 1, 2, 3 … or something else is kept with them. */
function formatIothreads({ iothreads, residue = [] }: DomainDef): Out[] {
  if (iothreads.length === 0) return []
  const count = element('iothreads', {}, String(iothreads.length))
  const plain =
    iothreads.every(({ id }, at) => id === at + 1) && !residue.some(({ path }) => path.startsWith('iothreadids'))
  return plain
    ? [count]
    : [
        count,
        element(
          'iothreadids',
          {},
          iothreads.map(({ id }) => element('iothread', { id })),
        ),
      ]
}

function formatPm({ pm }: DomainDef): Out | undefined {
  if (pm === undefined) return undefined
  return element('pm', {}, [
    pm.suspendToMem === undefined ? undefined : element('suspend-to-mem', { enabled: pm.suspendToMem }),
    pm.suspendToDisk === undefined ? undefined : element('suspend-to-disk', { enabled: pm.suspendToDisk }),
  ])
}

function formatDevices(def: DomainDef, secure: boolean): Out {
  return element('devices', {}, [
    textElement('emulator', def.emulator),
    ...def.disks.map((disk) => formatDisk(disk, secure)),
    ...def.controllers.map(formatController),
    ...def.interfaces.map(formatInterface),
    ...def.serials.map((serial) => formatChardev('serial', serial)),
    ...def.consoles.map((console) => formatChardev('console', console)),
    ...def.channels.map((channel) => formatChardev('channel', channel)),
    ...def.inputs.map(formatInput),
    ...def.graphics.map((graphics) => formatGraphics(graphics, secure)),
    ...def.videos.map(formatVideo),
    ...def.watchdogs.map(formatWatchdog),
    def.memballoon === undefined ? undefined : formatMemballoon(def.memballoon),
    ...def.rngs.map(formatRng),
    ...def.panics.map(formatPanic),
  ])
}

function formatCommandline({ qemuCommandline: commandline }: DomainDef): Out | undefined {
  if (commandline === undefined) return undefined
  return element('qemu:commandline', {}, [
    ...commandline.args.map((value) => element('qemu:arg', { value })),
    ...commandline.env.map(({ name, value }) => element('qemu:env', { name, ...(value !== '' && { value }) })),
  ])
}
