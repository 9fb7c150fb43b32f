import { failFrom } from '../error.js'
import type { GraphicsDef, GraphicsListen, VideoDef } from './domain-def.js'
import { graphicsFields as fields, graphicsTypes, videoFields, videoModels } from './graphics-fields.js'
import { readDevice } from './parse-device.js'
import type { Reader } from './reader.js'
import { needAttr, oneOf, readAttr, readFields, uint, whole, yes, yesNo } from './values.js'

const fail = failFrom('VIR_FROM_DOMAIN')

/** One `<graphics>` (virDomainGraphicsDefParseXML). Port -1 or none means that one is given out at start. */
export function parseGraphics(reader: Reader): GraphicsDef {
  const type = needAttr(reader, 'type', graphicsTypes)
  if (type !== 'vnc' && type !== 'spice' && type !== 'rdp') return { type, listens: [], ...reader.residue() }
  const listens = readListens(reader, type)
  const ports = { ...readPorts(reader, type), ...(type === 'vnc' && readFields(reader, fields.websocket)) }
  const onNetwork = listens[0]?.type === 'address' || listens[0]?.type === 'network'
  return {
    type,
    ...(onNetwork ? ports : { autoport: type === 'vnc' }),
    ...(type === 'vnc' && readFields(reader, fields.vnc)),
    ...(type !== 'rdp' && readFields(reader, fields.common)),
    listens,
    ...reader.residue(),
  }
}

function readPorts(reader: Reader, type: 'vnc' | 'spice' | 'rdp'): Pick<GraphicsDef, 'port' | 'autoport'> {
  const port = readAttr(reader, 'port', whole(-1, 65535))
  const auto = readAttr(reader, 'autoport', yes)
  const tlsPort = type === 'spice' ? reader.peek('tlsPort') : undefined
  const unsaid =
    type === 'spice' ? port === -1 && (tlsPort === undefined || tlsPort === '-1') : port === undefined || port === -1
  const autoport = auto ?? unsaid
  return { ...(port !== undefined && port > 0 && { port }), autoport }
}

/** At least one; the attributes `listen` and `socket` of `<graphics>` are the old way to say the first one. */
function readListens(reader: Reader, type: 'vnc' | 'spice' | 'rdp'): GraphicsListen[] {
  const address = nonEmpty(reader.attr('listen'))
  const socket = type === 'vnc' ? nonEmpty(reader.attr('socket')) : undefined
  const [first, ...others] = reader
    .children('listen')
    .map((listen, at) =>
      readListen(listen, type, at === 0 ? { address, socket } : { address: undefined, socket: undefined }),
    )
  if (first === undefined || (socket !== undefined && (first.type === 'address' || first.type === 'network'))) {
    const old: GraphicsListen =
      socket === undefined ? { type: 'address', ...(address !== undefined && { address }) } : { type: 'socket', socket }
    return [old, ...others]
  }
  return [first, ...others]
}

function nonEmpty(value: string | undefined): string | undefined {
  return value === '' ? undefined : value
}

interface Old {
  address: string | undefined
  socket: string | undefined
}
function readListen(reader: Reader, graphics: string, old: Old): GraphicsListen {
  const type = needAttr(reader, 'type', oneOf('none', 'address', 'network', 'socket'))
  if ((type === 'socket' || type === 'none') && graphics === 'rdp') {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `graphics of type 'rdp' can't listen with type '${type}'`)
  }
  const listen: GraphicsListen = { type }
  const address = sameAs('listen', nonEmpty(reader.attr('address')), type === 'address' ? old.address : undefined)
  const socket = sameAs('socket', nonEmpty(reader.attr('socket')), type === 'socket' ? old.socket : undefined)
  const network = nonEmpty(reader.attr('network'))
  refuseForeign('network', network, type)
  refuseForeign('socket', socket, type)
  if (address !== undefined && (type === 'address' || type === 'network')) listen.address = address
  if (network !== undefined) listen.network = network
  if (socket !== undefined) listen.socket = socket
  return listen
}

function sameAs(attribute: string, value: string | undefined, old: string | undefined): string | undefined {
  if (value !== undefined && old !== undefined && value !== old) {
    throw fail(
      'VIR_ERR_CONFIG_UNSUPPORTED',
      `attribute '${attribute}' of element 'graphics' is '${old}', but its first element 'listen' says '${value}'`,
    )
  }
  return value ?? old
}

function refuseForeign(attribute: 'network' | 'socket', value: string | undefined, type: string): void {
  if (value === undefined || attribute === type) return
  throw fail('VIR_ERR_XML_ERROR', `element 'listen' of type '${type}' can't have the attribute '${attribute}'`)
}

/** One `<video>` (virDomainVideoDefParseXML); the model 'default' is the hypervisor's choice. */
export function parseVideo(reader: Reader): VideoDef {
  const model = reader.child('model')
  const [acceleration, resolution] = [model?.child('acceleration'), model?.child('resolution')]
  const accel3d = acceleration && readAttr(acceleration, 'accel3d', yesNo)
  return {
    model: (model && readAttr(model, 'type', oneOf(...videoModels))) ?? 'default',
    ...(model && readFields(model, videoFields)),
    ...(accel3d !== undefined && { accel3d }),
    ...(resolution && { resolution: { x: needAttr(resolution, 'x', uint), y: needAttr(resolution, 'y', uint) } }),
    ...readDevice(reader),
    ...reader.residue(),
  }
}
