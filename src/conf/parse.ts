import { failFrom } from '../error.js'
import { checkDomain } from './check.js'
import type { DomainDef } from './domain-def.js'
import { parseChardev } from './parse-chardev.js'
import { numberControllers, parseController } from './parse-controller.js'
import { parseClock, parseCpu, parseVcpu } from './parse-cpu.js'
import { parseDisk } from './parse-disk.js'
import { parseGraphics, parseVideo } from './parse-graphics.js'
import { parseInterface } from './parse-interface.js'
import { parseInput, parseMemballoon, parsePanic, parseRng, parseWatchdog } from './parse-misc.js'
import { parseFeatures, parseOs } from './parse-os.js'
import { parseSeclabel } from './parse-seclabel.js'
import { Reader } from './reader.js'
import { serializeElement } from './serialize.js'
import {
  generateUuid,
  oneOf,
  parseUuid,
  part,
  positive,
  readAttr,
  readKib,
  readText,
  uint,
  whole,
  yesNo,
} from './values.js'
import { readXml } from './xml.js'

const fail = failFrom('VIR_FROM_DOMAIN')

export const qemuNamespace = 'http://libvirt.org/schemas/domain/qemu/1.0'

const virtTypes = oneOf(
  ...['qemu', 'kqemu', 'kvm', 'xen', 'lxc', 'uml', 'openvz', 'test', 'vmware', 'hyperv', 'vbox', 'phyp', 'parallels'],
  ...['bhyve', 'vz', 'hvf'],
)

/**
 * Domain XML as data (virDomainDefParseString). What we do not model is kept as residue. A UUID, MAC addresses and controller
 * numbers that are not said are made up; everything else that is absent stays absent.
 *
 * Throws VirError of domain VIR_FROM_DOMAIN: VIR_ERR_XML_ERROR for text that is not well-formed (with the line) and for
 * missing or impossible values, VIR_ERR_CONFIG_UNSUPPORTED for words that are not known, VIR_ERR_NO_NAME, VIR_ERR_NO_TARGET,
 * VIR_ERR_OVERFLOW for more than is allowed, as libvirt's parser has it.
 */
export function parseDomainXml(xml: string): DomainDef {
  const root = readXml(xml)
  if (root.name !== 'domain' || root.uri !== '') {
    throw fail('VIR_ERR_XML_ERROR', `the root element is '${root.name}', not 'domain'`)
  }
  const reader = new Reader(root)
  const def = parseDomain(reader)
  checkDomain(def)
  return def
}

function parseDomain(reader: Reader): DomainDef {
  const id = readAttr(reader, 'id', whole(-1, 0x7fffffff))
  // libvirt misses a name first
  const identity = readIdentity(reader)
  return {
    virtType: readVirtType(reader),
    ...(id !== undefined && id >= 0 && { id }),
    ...identity,
    metadata: (reader.child('metadata')?.rawChildren() ?? []).map((child) => serializeElement(child, 'verbatim')),
    ...readMemory(reader),
    vcpu: parseVcpu(reader),
    iothreads: readIothreads(reader),
    os: parseOs(reader),
    features: parseFeatures(reader),
    ...part('cpu', parseCpu(reader)),
    clock: parseClock(reader),
    ...readLifecycle(reader),
    ...readPm(reader),
    ...readBacking(reader),
    ...readDevices(reader),
    seclabels: reader.children('seclabel').map(parseSeclabel),
    ...readCommandline(reader),
    ...reader.residue(),
  }
}

function readVirtType(reader: Reader): string {
  reader.required('type')
  return readAttr(reader, 'type', virtTypes) ?? ''
}

function readIdentity(reader: Reader): Pick<DomainDef, 'name' | 'uuid' | 'title' | 'description'> {
  const name = reader.childText('name')
  if (name === undefined) throw fail('VIR_ERR_NO_NAME', "the domain needs an element 'name'")
  if (name.includes('/')) throw fail('VIR_ERR_XML_ERROR', `the name '${name}' of the domain can't hold '/'`)
  const title = reader.childText('title')
  if (title?.includes('\n') === true) throw fail('VIR_ERR_XML_ERROR', "the title of the domain can't hold line breaks")
  const said = reader.childText('uuid')
  const uuid = said === undefined ? generateUuid() : parseUuid(said)
  if (uuid === undefined) throw fail('VIR_ERR_XML_ERROR', `element 'uuid' can't hold '${said ?? ''}'`)
  return { name, uuid, ...part('title', title), ...part('description', reader.childText('description')) }
}

/** Where nothing is said, the memory is the sum of the NUMA cells; a current one that is a little too large is cut. */
function readMemory(reader: Reader): Pick<DomainDef, 'memory' | 'currentMemory'> {
  const [total, current] = [reader.child('memory'), reader.child('currentMemory')]
  const memory = total === undefined ? 0 : readKib(total)
  const balloon = current === undefined ? 0 : readKib(current)
  return { memory, currentMemory: balloon === 0 ? memory : balloon }
}

function readIothreads(reader: Reader): { id: number }[] {
  const [count, list] = [reader.child('iothreads'), reader.child('iothreadids')]
  const ids = (list?.children('iothread') ?? []).map((each) => {
    each.required('id')
    return readAttr(each, 'id', positive) ?? 0
  })
  if (new Set(ids).size !== ids.length)
    throw fail('VIR_ERR_XML_ERROR', 'the id of an I/O thread is given more than once')
  const total = Math.max(count === undefined ? 0 : readText(count, uint), ids.length)
  if (total > 0xffff) throw fail('VIR_ERR_XML_ERROR', `a domain can't have '${total}' I/O threads`)
  for (let id = 1; ids.length < total; id++) if (!ids.includes(id)) ids.push(id)
  return ids.map((id) => ({ id }))
}

const lifecycleActions = oneOf('destroy', 'restart', 'preserve', 'rename-restart')
const crashActions = oneOf('destroy', 'restart', 'preserve', 'rename-restart', 'coredump-destroy', 'coredump-restart')

function readLifecycle(reader: Reader): Pick<DomainDef, 'onPoweroff' | 'onReboot' | 'onCrash'> {
  const [poweroff, reboot, crash] = ['on_poweroff', 'on_reboot', 'on_crash'].map((name) => reader.child(name))
  return {
    onPoweroff: poweroff ? readText(poweroff, lifecycleActions) : 'destroy',
    onReboot: reboot ? readText(reboot, lifecycleActions) : 'restart',
    onCrash: crash ? readText(crash, crashActions) : 'destroy',
  }
}

function readPm(reader: Reader): Pick<DomainDef, 'pm'> {
  const pm = reader.child('pm')
  if (pm === undefined) return {}
  const [mem, disk] = ['suspend-to-mem', 'suspend-to-disk'].map((name) => {
    const child = pm.child(name)
    return child && readAttr(child, 'enabled', yesNo)
  })
  return part('pm', { ...part('suspendToMem', mem), ...part('suspendToDisk', disk) })
}

function readBacking(reader: Reader): Pick<DomainDef, 'memoryBacking'> {
  const backing = reader.child('memoryBacking')
  if (backing === undefined) return {}
  const [source, access] = [backing.child('source'), backing.child('access')]
  const mode = access && readAttr(access, 'mode', oneOf('shared', 'private'))
  return part('memoryBacking', {
    ...(backing.child('hugepages') && { hugepages: true }),
    ...(backing.child('locked') && { locked: true }),
    ...(mode !== undefined && { shared: mode === 'shared' }),
    ...part('source', source && readAttr(source, 'type', oneOf('anonymous', 'file', 'memfd'))),
  })
}

/** The devices of one kind; those that can't be modelled are left to the residue. */
function collect<T>(devices: Reader | undefined, name: string, parse: (reader: Reader) => T | undefined): T[] {
  const defs: T[] = []
  for (const reader of devices?.children(name) ?? []) {
    const def = parse(reader)
    if (def === undefined) reader.leave()
    else defs.push(def)
  }
  return defs
}

type Devices =
  | ('emulator' | 'disks' | 'controllers' | 'interfaces' | 'serials' | 'consoles' | 'channels' | 'inputs')
  | ('graphics' | 'videos' | 'rngs' | 'memballoon' | 'watchdogs' | 'panics')

function readDevices(domain: Reader): Pick<DomainDef, Devices> {
  const devices = domain.child('devices')
  const balloons = collect(devices, 'memballoon', parseMemballoon)
  if (balloons.length > 1) throw fail('VIR_ERR_XML_ERROR', "a domain has at most one element 'memballoon'")
  return {
    ...part('emulator', devices?.childText('emulator')),
    disks: collect(devices, 'disk', parseDisk),
    controllers: numberControllers(collect(devices, 'controller', parseController)),
    interfaces: collect(devices, 'interface', parseInterface),
    serials: collect(devices, 'serial', (reader) => parseChardev(reader, 'serial')),
    consoles: collect(devices, 'console', (reader) => parseChardev(reader, 'console')),
    channels: collect(devices, 'channel', (reader) => parseChardev(reader, 'channel')),
    inputs: collect(devices, 'input', parseInput),
    graphics: collect(devices, 'graphics', parseGraphics),
    videos: collect(devices, 'video', parseVideo),
    rngs: collect(devices, 'rng', parseRng),
    ...part('memballoon', balloons[0]),
    watchdogs: collect(devices, 'watchdog', parseWatchdog),
    panics: collect(devices, 'panic', parsePanic),
  }
}

function readCommandline(reader: Reader): Pick<DomainDef, 'qemuCommandline'> {
  const commandline = reader.child('commandline', qemuNamespace)
  if (commandline === undefined) return {}
  const args = commandline.children('arg', qemuNamespace).map((arg) => argument(arg, 'value'))
  const env = commandline.children('env', qemuNamespace).map((each) => {
    const name = argument(each, 'name')
    if (!/^[A-Za-z_]\w*$/.test(name))
      throw fail('VIR_ERR_XML_ERROR', `an environment variable can't be called '${name}'`)
    return { name, value: each.attr('value') ?? '' }
  })
  return { qemuCommandline: { args, env } }
}

function argument(reader: Reader, attribute: string): string {
  const value = reader.attr(attribute)
  if (value === undefined)
    throw fail('VIR_ERR_INTERNAL_ERROR', `element 'qemu:${reader.name}' needs the attribute '${attribute}'`)
  return value
}
