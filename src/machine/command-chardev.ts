import type { ChardevDef, ChardevSource, DomainDef } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { addressProps, aliasOf, device, escapeComma, type CommandCaps, type Props } from './command-props.js'

const fail = failFrom('VIR_FROM_QEMU')

/** Where a unix socket without a path of its own listens. */
export const chardevSocketPath = (runDir: string, alias: string): string => `${runDir}/${alias}.sock`

/** Serial ports, channels and consoles with their host ends. */
export function chardevsCommand(
  def: DomainDef,
  caps: CommandCaps,
  runDir: string,
  listeners?: ReadonlyMap<string, number>,
): string[] {
  const build = (kind: string, chr: ChardevDef, props: (id: string) => Props & { driver: string }): string[] => {
    const id = aliasOf(chr, kind)
    return [...chardev(`char${id}`, chr.source, runDir, id, chr.log, listeners?.get(id)), ...device(caps, props(id))]
  }
  return [
    ...def.serials.flatMap((chr) => build('serial port', chr, (id) => serialProps(def, chr, id))),
    ...def.channels.flatMap((chr) => build('channel', chr, (id) => channelProps(def, chr, id))),
    // a console of type 'serial' is the serial port over again
    ...def.consoles
      .filter((chr) => chr.targetType === 'virtio')
      .flatMap((chr) => build('console', chr, (id) => portProps(def, chr, 'virtconsole', id))),
  ]
}

const serialDrivers = new Set(['isa-serial', 'pci-serial', 'usb-serial', 'isa-debugcon'])
const serialDriverOfType: Record<string, string> = {
  'isa-serial': 'isa-serial',
  'pci-serial': 'pci-serial',
  'usb-serial': 'usb-serial',
  'isa-debug': 'isa-debugcon',
}

function serialProps(def: DomainDef, chr: ChardevDef, id: string): Props & { driver: string } {
  const driver = chr.targetModel ?? serialDriverOfType[chr.targetType ?? 'isa-serial'] ?? ''
  if (!serialDrivers.has(driver)) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `serial port '${id}' has the unsupported model '${driver}'`)
  }
  const index = driver === 'isa-serial' ? chr.port : undefined
  return { driver, chardev: `char${id}`, id, index, ...addressProps(def, chr.address) }
}

function channelProps(def: DomainDef, chr: ChardevDef, id: string): Props & { driver: string } {
  if (chr.targetType !== 'virtio') {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `channels of type '${chr.targetType ?? ''}' are not supported`)
  }
  return { ...portProps(def, chr, 'virtserialport', id), name: chr.name }
}

const portProps = (def: DomainDef, chr: ChardevDef, driver: string, id: string): Props & { driver: string } => ({
  driver,
  ...addressProps(def, chr.address),
  chardev: `char${id}`,
  id,
})

/** `-chardev`, which takes no JSON. `alias` names the socket of a source that has no path, `listener` one that QEMU inherits. */
export function chardev(
  id: string,
  source: ChardevSource,
  runDir: string,
  alias: string,
  log?: ChardevDef['log'],
  listener?: number,
): string[] {
  const [backend, ...options] =
    listener === undefined
      ? backendOptions(source, chardevSocketPath(runDir, alias))
      : ['socket', `fd=${listener}`, 'server=on', 'wait=off']
  const logOptions = log ? [`logfile=${escapeComma(log.file)}`, ...(log.append ? [`logappend=${log.append}`] : [])] : []
  return ['-chardev', [backend, `id=${escapeComma(id)}`, ...options, ...logOptions].join(',')]
}

function backendOptions(source: ChardevSource, defaultSocket: string): string[] {
  switch (source.type) {
    case 'pty':
    case 'null':
    case 'vc':
      return [source.type]
    case 'file':
      return ['file', path(source.path), ...(source.append ? [`append=${source.append}`] : [])]
    case 'dev':
      return ['serial', path(source.path)]
    case 'pipe':
      return ['pipe', path(source.path)]
    case 'unix':
      return ['socket', path(source.path ?? defaultSocket), ...serverOptions(source)]
    case 'tcp':
      return tcpOptions(source)
    case 'udp':
      return udpOptions(source)
    case 'stdio':
    case 'spicevmc':
    case 'spiceport':
      throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `character devices of type '${source.type}' are not supported`)
  }
}

const path = (text: string): string => `path=${escapeComma(text)}`

/** A listening socket does not hold up the start; a connecting one may try again. */
function serverOptions(source: Extract<ChardevSource, { type: 'unix' | 'tcp' }>): string[] {
  if (source.mode === 'bind') return ['server=on', 'wait=off']
  if (source.reconnect === undefined) return []
  return [`reconnect=${source.reconnect.enabled === 'yes' ? (source.reconnect.timeout ?? 1) : 0}`]
}

function tcpOptions(source: Extract<ChardevSource, { type: 'tcp' }>): string[] {
  if (source.tls === 'yes' || source.protocol === 'tls' || source.protocol === 'telnets') {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', 'TLS is not supported for character devices')
  }
  return [
    'socket',
    `host=${escapeComma(source.host)}`,
    `port=${escapeComma(source.service)}`,
    ...(source.protocol === 'telnet' ? ['telnet=on'] : []),
    ...serverOptions(source),
  ]
}

function udpOptions({ bind, connect }: Extract<ChardevSource, { type: 'udp' }>): string[] {
  return [
    'udp',
    `host=${escapeComma(connect.host ?? '')}`,
    `port=${escapeComma(connect.service)}`,
    `localaddr=${escapeComma(bind?.host ?? '')}`,
    `localport=${escapeComma(bind?.service ?? '0')}`,
  ]
}
