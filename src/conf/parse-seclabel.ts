import type { SeclabelDef } from './domain-def.js'
import { seclabelFields } from './fields.js'
import type { Reader } from './reader.js'
import { readFields } from './values.js'

/** `<seclabel>` of a domain, an image or a character device. */
export function parseSeclabel(reader: Reader): SeclabelDef {
  const [label, imagelabel, baselabel] = ['label', 'imagelabel', 'baselabel'].map((name) => reader.childText(name))
  return {
    ...readFields(reader, seclabelFields),
    ...(label !== undefined && { label }),
    ...(imagelabel !== undefined && { imagelabel }),
    ...(baselabel !== undefined && { baselabel }),
  }
}
