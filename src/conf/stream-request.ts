/**
 * What a definition asks of us in `<metadata>`: disks that are streamed from the moment the domain starts.
 * `<virstream:stream xmlns:virstream='urn:virstream:stream:1' disk='vda' bandwidth='10485760' policy='full'/>`
 */
import { failFrom } from '../error.js'
import type { DomainDef } from './domain-def.js'
import { readXml, type XmlElement } from './xml.js'

const fail = failFrom('VIR_FROM_DOMAIN')

export const STREAM_NAMESPACE = 'urn:virstream:stream:1'

export interface StreamRequest {
  /** target dev, alias or source path */
  disk: string
  /** bytes/s; absent: no limit */
  bandwidth?: number
  policy?: 'full' | 'idle'
}

/** VIR_ERR_XML_ERROR for a request without a disk, with a value that is none, or with an attribute that we don't know. */
export function readStreamRequests(def: DomainDef): StreamRequest[] {
  return def.metadata
    .filter((text) => text.includes(STREAM_NAMESPACE))
    .map((text) => readXml(text))
    .filter((element) => element.uri === STREAM_NAMESPACE && element.localName === 'stream')
    .map(readRequest)
}

function readRequest(element: XmlElement): StreamRequest {
  const values = new Map(element.attributes.map(({ name, value }) => [name, value]))
  const take = (name: string): string | undefined => {
    const value = values.get(name)
    values.delete(name)
    return value
  }
  const [disk, bandwidth, policy] = [take('disk'), take('bandwidth'), take('policy')]
  for (const name of values.keys()) throw fail('VIR_ERR_XML_ERROR', `element 'stream' has no attribute '${name}'`)
  if (disk === undefined || disk === '') throw fail('VIR_ERR_XML_ERROR', "element 'stream' needs the attribute 'disk'")
  if (bandwidth !== undefined && (!/^\d+$/.test(bandwidth) || !Number.isSafeInteger(Number(bandwidth))))
    throw fail('VIR_ERR_XML_ERROR', `'${bandwidth}' is not a bandwidth, a number of bytes per second`)
  if (policy !== undefined && policy !== 'full' && policy !== 'idle')
    throw fail('VIR_ERR_XML_ERROR', `'${policy}' is not a policy, 'full' or 'idle'`)
  return { disk, ...(bandwidth !== undefined && { bandwidth: Number(bandwidth) }), ...(policy && { policy }) }
}
