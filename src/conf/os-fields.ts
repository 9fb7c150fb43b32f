import type { OsDef } from './domain-def.js'
import type { Field } from './values.js'
import { anyText, oneOf, whole, yesNo } from './values.js'

export const osTypes = ['hvm', 'xen', 'linux', 'exe', 'uml', 'xenpvh']

const loader: Field<Omit<NonNullable<OsDef['loader']>, 'path'>>[] = [
  ['readonly', 'readonly', yesNo],
  ['secure', 'secure', yesNo],
  ['type', 'type', oneOf('rom', 'pflash')],
  ['format', 'format', oneOf('raw', 'qcow2')],
]
const nvram: Field<Omit<NonNullable<OsDef['nvram']>, 'path'>>[] = [
  ['template', 'template', anyText],
  ['format', 'format', oneOf('raw', 'qcow2')],
]
const bios: Field<NonNullable<OsDef['bios']>>[] = [
  ['useserial', 'useserial', yesNo],
  ['rebootTimeout', 'rebootTimeout', whole(-1, 65535)],
]

export const loaderFields = { loader, nvram, bios }
