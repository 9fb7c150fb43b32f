import { isIP } from 'node:net'
import { failFrom } from '../error.js'
import type { InterfaceDef } from './domain-def.js'
import { interfaceFields as fields, interfaceTypes } from './interface-fields.js'
import { readDevice, readVirtio } from './parse-device.js'
import type { Reader } from './reader.js'
import { generateMac, isMulticast, oneOf, parseMac, part, readAttr, readFields, uint, whole } from './values.js'

const fail = failFrom('VIR_FROM_DOMAIN')

/** One `<interface>` (virDomainNetDefParseXML); undefined for a type that we do not model. */
export function parseInterface(reader: Reader): InterfaceDef | undefined {
  if (['null', 'vds'].includes(reader.peek('type') ?? '')) return undefined
  const type = readAttr(reader, 'type', interfaceTypes) ?? 'user'
  const [source, target, backend, rom] = ['source', 'target', 'backend', 'rom'].map((name) => reader.child(name))
  return {
    type,
    mac: readMac(reader),
    ...readSource(source, type),
    ...part('target', target && readFields(target, fields.target)),
    ...readModel(reader),
    ...part('backend', backend && readFields(backend, fields.backend)),
    ...(type !== 'hostdev' && readDriver(reader)),
    ips: reader.children('ip').map(readIp),
    ...readLink(reader),
    ...part('rom', rom && readRom(rom)),
    ...readDevice(reader, { boot: true }),
    ...reader.residue(),
  }
}

function readMac(reader: Reader): string {
  const said = reader.child('mac')?.attr('address')
  if (said === undefined) return generateMac()
  const mac = parseMac(said)
  if (mac === undefined) throw fail('VIR_ERR_XML_ERROR', `attribute 'address' of element 'mac' can't be '${said}'`)
  if (isMulticast(mac)) throw fail('VIR_ERR_XML_ERROR', `the MAC address '${said}' is one of many stations, not of one`)
  return mac
}

/** What the source of a type has to say; types that are not here need no source. */
const needed: Readonly<Record<string, readonly string[]>> = {
  ...{ bridge: ['bridge'], network: ['network'], direct: ['dev'], vdpa: ['dev'], internal: ['name'], hostdev: [] },
  ...{ mcast: ['address', 'port'], client: ['address', 'port'], udp: ['address', 'port'], server: ['port'] },
  vhostuser: ['type', 'path', 'mode'],
}

function readSource(source: Reader | undefined, type: InterfaceDef['type']): Pick<InterfaceDef, 'source'> {
  const attributes = needed[type]
  if (source === undefined) {
    if (attributes === undefined) return {}
    throw fail('VIR_ERR_XML_ERROR', `an interface of type '${type}' needs an element 'source'`)
  }
  const missing = attributes?.find((name) => (source.peek(name) ?? '') === '')
  if (missing !== undefined) throw fail('VIR_ERR_XML_ERROR', `element 'source' needs the attribute '${missing}'`)
  if (type === 'hostdev' && !source.has('address') && !source.has('vendor')) {
    throw fail('VIR_ERR_XML_ERROR', "the source of an interface of type 'hostdev' needs an element 'address'")
  }
  return part('source', readFields(source, fields.source))
}

function readModel(reader: Reader): Pick<InterfaceDef, 'model'> {
  const model = reader.child('model')?.attr('type')
  if (model === undefined || model === '') return {}
  if (!/^[\w-]+$/.test(model))
    throw fail('VIR_ERR_INVALID_ARG', `the interface model '${model}' holds a character that no model name can`)
  return { model }
}

function readDriver(reader: Reader): Pick<InterfaceDef, 'driver'> {
  const driver = reader.child('driver')
  if (driver === undefined) return {}
  return part('driver', { ...readFields(driver, fields.driver), ...readVirtio(driver) })
}

function readIp(reader: Reader): InterfaceDef['ips'][number] {
  const family = readAttr(reader, 'family', oneOf('ipv4', 'ipv6'))
  const address = reader.required('address')
  if (isIP(address) !== (family === 'ipv6' ? 6 : 4)) throw reader.invalid('address', address)
  const prefix = readAttr(reader, 'prefix', whole(0, family === 'ipv6' ? 128 : 32))
  return { address, ...part('family', family), ...part('prefix', prefix) }
}

function readLink(reader: Reader): Pick<InterfaceDef, 'link' | 'mtu' | 'script'> {
  const [link, mtu] = [reader.child('link'), reader.child('mtu')]
  const state = link && readAttr(link, 'state', oneOf('up', 'down'))
  const size = mtu && readAttr(mtu, 'size', uint)
  const script = reader.child('script')?.attr('path')
  return {
    ...part('link', state),
    ...part('mtu', size),
    ...part('script', script),
  }
}

function readRom(reader: Reader): NonNullable<InterfaceDef['rom']> {
  const rom = readFields(reader, fields.rom)
  if (rom.enabled === 'no' && (rom.bar !== undefined || rom.file !== undefined)) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', "a ROM that is not enabled has neither 'bar' nor 'file'")
  }
  return rom
}
