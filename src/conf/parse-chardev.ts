import { failFrom } from '../error.js'
import type { ChardevDef, ChardevSource } from './domain-def.js'
import type { Reconnect } from './fields.js'
import { readDevice } from './parse-device.js'
import type { Reader } from './reader.js'
import { needAttr, oneOf, onOff, positive, readAttr, uint, yesNo } from './values.js'

const fail = failFrom('VIR_FROM_DOMAIN')

export type ChardevKind = 'serial' | 'console' | 'channel'

const targetTypes: Readonly<Record<ChardevKind, readonly string[]>> = {
  serial: ['isa-serial', 'usb-serial', 'pci-serial', 'spapr-vio-serial', 'system-serial', 'sclp-serial', 'isa-debug'],
  console: ['serial', 'xen', 'uml', 'virtio', 'lxc', 'openvz', 'sclp', 'sclplm'],
  channel: ['guestfwd', 'virtio', 'xen'],
}
const foreignTypes = ['nmdm', 'qemu-vdagent', 'dbus']

/** `<serial>`, `<console>` or `<channel>` (virDomainChrDefParseXML); undefined for a kind of source that we do not model. */
export function parseChardev(reader: Reader, kind: ChardevKind): ChardevDef | undefined {
  if (foreignTypes.includes(reader.peek('type') ?? '')) return undefined
  const target = reader.child('target')
  const targetType = readTargetType(target, kind)
  reader.attr('tty')
  const source = readChardevSource(reader, { generatesPath: targetType === 'virtio' && kind === 'channel' })
  if (source.type === 'spicevmc' && targetType !== 'virtio') {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', "a character device of type 'spicevmc' can only be a virtio channel")
  }
  return {
    source,
    ...readLog(reader),
    ...(targetType !== undefined && { targetType }),
    ...(target && readTarget(target, kind)),
    ...readDevice(reader),
    ...reader.residue(),
  }
}

function readTargetType(target: Reader | undefined, kind: ChardevKind): string | undefined {
  const type = target?.attr('type')
  if (type === undefined && kind === 'channel')
    throw fail('VIR_ERR_XML_ERROR', "a channel needs a target with the attribute 'type'")
  if (type !== undefined && !targetTypes[kind].includes(type)) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `the target type '${type}' of element '${kind}' is not known`)
  }
  return type ?? (kind === 'console' ? 'serial' : undefined)
}

function readTarget(target: Reader, kind: ChardevKind): Pick<ChardevDef, 'port' | 'name' | 'state' | 'targetModel'> {
  const port = readAttr(target, 'port', uint)
  const model = kind === 'serial' ? target.child('model')?.attr('name') : undefined
  const name = kind === 'channel' ? target.attr('name') : undefined
  const state = kind === 'channel' ? readAttr(target, 'state', oneOf('connected', 'disconnected')) : undefined
  return {
    ...(port !== undefined && { port }),
    ...(name !== undefined && { name }),
    ...(state !== undefined && { state }),
    ...(model !== undefined && { targetModel: model }),
  }
}

function readLog(reader: Reader): Pick<ChardevDef, 'log'> {
  const log = one(reader, 'log')
  if (log === undefined) return {}
  const append = readAttr(log, 'append', onOff)
  return { log: { file: log.required('file'), ...(append !== undefined && { append }) } }
}

function one(reader: Reader, name: string, most = 1): Reader | undefined {
  const found = reader.children(name)
  if (found.length > most)
    throw fail('VIR_ERR_XML_ERROR', `element '${reader.name}' has more than ${most} of element '${name}'`)
  return found[0]
}

/**
 * The host end of a character device, as a device, an RNG or a smart card has one. `generatesPath`: a unix socket without a
 * path is one that we bind (virtio channels); elsewhere VIR_ERR_XML_ERROR.
 */
export function readChardevSource(reader: Reader, options: { generatesPath?: boolean } = {}): ChardevSource {
  const type = readType(reader)
  const source = one(reader, 'source', type === 'udp' ? 2 : 1)
  switch (type) {
    case 'null':
    case 'vc':
    case 'stdio':
    case 'spicevmc':
      return { type }
    case 'pty': {
      const path = source?.attr('path')
      return { type, ...(path !== undefined && path !== '' && { path }) }
    }
    case 'file':
    case 'dev':
    case 'pipe':
      return readPath(source, type)
    case 'unix':
      return readUnix(source, options.generatesPath === true)
    case 'tcp':
      return readTcp(reader, source)
    case 'udp':
      return readUdp(reader)
    case 'spiceport':
      return { type, channel: needSource(source, type).required('channel') }
  }
}

type SourceType = ChardevSource['type']
const sourceTypes: readonly SourceType[] = [
  ...(['pty', 'null', 'vc', 'stdio', 'file', 'dev', 'pipe', 'unix', 'tcp', 'udp', 'spicevmc', 'spiceport'] as const),
]
function readType(reader: Reader): SourceType {
  const said = reader.attr('type') ?? 'pty'
  const type = sourceTypes.find((each) => each === said)
  if (type !== undefined) return type
  throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `the type '${said}' of element '${reader.name}' is not known`)
}

function needSource(source: Reader | undefined, type: SourceType): Reader {
  if (source !== undefined) return source
  throw fail('VIR_ERR_XML_ERROR', `a character device of type '${type}' needs an element 'source'`)
}

function readPath(source: Reader | undefined, type: 'file' | 'dev' | 'pipe'): ChardevSource {
  const path = needSource(source, type).required('path')
  if (type !== 'file') return { type, path }
  const append = readAttr(needSource(source, type), 'append', onOff)
  return { type, path, ...(append !== undefined && { append }) }
}

const modes = oneOf('bind', 'connect')

function readUnix(source: Reader | undefined, generatesPath: boolean): ChardevSource {
  const path = source?.attr('path')
  const mode = (source && readAttr(source, 'mode', modes)) ?? 'connect'
  const generated = path === undefined || path === ''
  const reconnect = source ? readReconnect(source, generated ? 'bind' : mode) : {}
  if (!generated) return { type: 'unix', mode, path, ...reconnect }
  if (!generatesPath)
    throw fail('VIR_ERR_XML_ERROR', "a character device of type 'unix' needs a source with the attribute 'path'")
  return { type: 'unix', mode: 'bind', ...reconnect }
}

function readTcp(reader: Reader, source: Reader | undefined): ChardevSource {
  const from = needSource(source, 'tcp')
  const protocol = one(reader, 'protocol')
  const tls = readAttr(from, 'tls', yesNo)
  const mode = readAttr(from, 'mode', modes) ?? 'connect'
  return {
    type: 'tcp',
    mode,
    host: from.required('host'),
    service: from.required('service'),
    protocol: (protocol && readAttr(protocol, 'type', oneOf('raw', 'telnet', 'telnets', 'tls'))) ?? 'raw',
    ...(tls !== undefined && { tls }),
    ...readReconnect(from, mode),
  }
}

function readUdp(reader: Reader): ChardevSource {
  const ends: { bind?: { host?: string; service?: string }; connect?: { host?: string; service?: string } } = {}
  for (const source of reader.children('source')) {
    const mode = readAttr(source, 'mode', modes) ?? 'connect'
    const [host, service] = [source.attr('host'), source.attr('service')]
    ends[mode] ??= { ...(host !== undefined && { host }), ...(service !== undefined && { service }) }
  }
  const { bind, connect } = ends
  if (connect?.service === undefined) {
    throw fail(
      'VIR_ERR_XML_ERROR',
      "a character device of type 'udp' needs a source to connect to, with the attribute 'service'",
    )
  }
  return { type: 'udp', ...(bind && { bind }), connect: { ...connect, service: connect.service } }
}

function readReconnect(source: Reader, mode: 'bind' | 'connect'): { reconnect?: Reconnect } {
  const reconnect = source.child('reconnect')
  if (reconnect === undefined) return {}
  const enabled = needAttr(reconnect, 'enabled', yesNo)
  if (enabled === 'no') return { reconnect: { enabled } }
  if (mode === 'bind') throw fail('VIR_ERR_CONFIG_UNSUPPORTED', 'only a character device that connects can reconnect')
  return { reconnect: { enabled, timeout: needAttr(reconnect, 'timeout', positive) } }
}
