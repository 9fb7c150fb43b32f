/**
 * What a definition asks of us in `<metadata>`: disks that are streamed from the moment the domain starts, and how much of
 * the host's bandwidth for streams they get, against other streams.
 * `<virstream:stream xmlns:virstream='urn:virstream:stream:1' disk='vda' bandwidth='10485760' policy='full' weight='2'/>`
 * `<virstream:streams xmlns:virstream='urn:virstream:stream:1' weight='2'/>`: of all streams of the domain that say none
 */
import { failFrom } from '../error.js'
import type { DomainDef } from './domain-def.js'
import { readXml, type XmlElement } from './xml.js'

const fail = failFrom('VIR_FROM_DOMAIN')

export const STREAM_NAMESPACE = 'urn:virstream:stream:1'

/** The heaviest stream; the lightest is 1. */
export const MAX_WEIGHT = 1000

export interface StreamRequest {
  /** target dev, alias or source path */
  disk: string
  /** bytes/s; absent: no limit */
  bandwidth?: number
  policy?: 'full' | 'idle'
  /** 1 to MAX_WEIGHT; absent: that of the domain */
  weight?: number
  /** seconds */
  baseTimeout?: number
}

/** VIR_ERR_XML_ERROR for a request without a disk, with a value that is none, or with an attribute that we don't know. */
export function readStreamRequests(def: DomainDef): StreamRequest[] {
  return elements(def, 'stream').map(readRequest)
}

/** The weight of streams of a domain that are begun without one; undefined: it says none. VIR_ERR_XML_ERROR as above. */
export function readDomainWeight(def: DomainDef): number | undefined {
  const weights = elements(def, 'streams').map((element) => {
    const values = attributes(element)
    const weight = weightOf(values)
    refuseOthers(element, values)
    return weight
  })
  return weights.at(-1)
}

function elements(def: DomainDef, name: string): XmlElement[] {
  return def.metadata
    .filter((text) => text.includes(STREAM_NAMESPACE))
    .map((text) => readXml(text))
    .filter((element) => element.uri === STREAM_NAMESPACE && element.localName === name)
}

const attributes = (element: XmlElement): Map<string, string> =>
  new Map(element.attributes.map(({ name, value }) => [name, value]))

function take(values: Map<string, string>, name: string): string | undefined {
  const value = values.get(name)
  values.delete(name)
  return value
}

function refuseOthers(element: XmlElement, values: ReadonlyMap<string, string>): void {
  for (const name of values.keys())
    throw fail('VIR_ERR_XML_ERROR', `element '${element.localName}' has no attribute '${name}'`)
}

function weightOf(values: Map<string, string>): number | undefined {
  const weight = take(values, 'weight')
  if (weight === undefined) return undefined
  if (!/^\d+$/.test(weight) || Number(weight) < 1 || Number(weight) > MAX_WEIGHT)
    throw fail('VIR_ERR_XML_ERROR', `'${weight}' is not a weight, a whole number from 1 to ${MAX_WEIGHT}`)
  return Number(weight)
}

function readRequest(element: XmlElement): StreamRequest {
  const values = attributes(element)
  const [disk, bandwidth, policy] = [take(values, 'disk'), take(values, 'bandwidth'), take(values, 'policy')]
  const baseTimeout = take(values, 'baseTimeout')
  const weight = weightOf(values)
  refuseOthers(element, values)
  if (disk === undefined || disk === '') throw fail('VIR_ERR_XML_ERROR', "element 'stream' needs the attribute 'disk'")
  if (bandwidth !== undefined && (!/^\d+$/.test(bandwidth) || !Number.isSafeInteger(Number(bandwidth))))
    throw fail('VIR_ERR_XML_ERROR', `'${bandwidth}' is not a bandwidth, a number of bytes per second`)
  if (policy !== undefined && policy !== 'full' && policy !== 'idle')
    throw fail('VIR_ERR_XML_ERROR', `'${policy}' is not a policy, 'full' or 'idle'`)
  if (baseTimeout !== undefined && !/^[1-9]\d{0,8}$/.test(baseTimeout))
    throw fail('VIR_ERR_XML_ERROR', `'${baseTimeout}' is not a time for the base, a number of seconds`)
  return {
    disk,
    ...(bandwidth !== undefined && { bandwidth: Number(bandwidth) }),
    ...(policy && { policy }),
    ...(weight !== undefined && { weight }),
    ...(baseTimeout !== undefined && { baseTimeout: Number(baseTimeout) }),
  }
}
