import { randomBytes, randomUUID } from 'node:crypto'
import { failFrom } from '../error.js'
import type { OnOff, YesNo } from './domain-def.js'
import type { Reader } from './reader.js'

const fail = failFrom('VIR_FROM_DOMAIN')

/** How one attribute's text becomes a value and back; `parse` answers undefined for text that it can't be. */
export interface Codec<V> {
  parse(text: string): V | undefined
  format(value: V): string
}

export const text: Codec<string> = { parse: (value) => (value === '' ? undefined : value), format: (value) => value }
export const anyText: Codec<string> = { parse: (value) => value, format: (value) => value }

export function oneOf<const V extends string>(...values: readonly V[]): Codec<V> {
  return { parse: (value) => values.find((each) => each === value), format: (value) => value }
}
export const yesNo: Codec<YesNo> = oneOf('yes', 'no')
export const onOff: Codec<OnOff> = oneOf('on', 'off')
/** 'yes' and 'no' as a boolean */
export const yes: Codec<boolean> = {
  parse: (value) => (value === 'yes' ? true : value === 'no' ? false : undefined),
  format: (value) => (value ? 'yes' : 'no'),
}

/** A whole number, decimal, from `min` to `max`. */
export function whole(min = 0, max: number = Number.MAX_SAFE_INTEGER): Codec<number> {
  return {
    parse: (value) => within(/^\s*[+-]?\d+$/.test(value) ? Number(value) : NaN, min, max),
    format: (value) => String(value),
  }
}
/** 32 bits without sign, libvirt's unsigned int */
export const uint: Codec<number> = whole(0, 0xffffffff)
export const positive: Codec<number> = whole(1, 0xffffffff)

/** A number in C notation (`0x1f`, `037`, `31`), written as hexadecimal with at least `digits` digits. */
export function hex(max: number, digits: number): Codec<number> {
  return {
    parse: (value) => within(cNumber(value), 0, max),
    format: (value) => `0x${value.toString(16).padStart(digits, '0')}`,
  }
}

function cNumber(value: string): number {
  if (/^(0x[0-9a-f]+|[1-9]\d*|0)$/i.test(value)) return Number(value)
  return /^0[0-7]+$/.test(value) ? parseInt(value, 8) : NaN
}

function within(value: number, min: number, max: number): number | undefined {
  return value >= min && value <= max ? value : undefined
}

/** Which attribute holds which property, and how: read and written by the same row. */
export type Field<T> = {
  [K in keyof T & string]-?: readonly [attribute: string, key: K, codec: Codec<NonNullable<T[K]>>]
}[keyof T & string]

/** The properties that are there; VIR_ERR_XML_ERROR for a value that its codec refuses. */
export function readFields<T>(reader: Reader, fields: readonly Field<T>[]): Partial<T> {
  const values: Partial<T> = {}
  for (const [attribute, key, codec] of fields) {
    const value = readAttr(reader, attribute, codec)
    if (value !== undefined) values[key] = value
  }
  return values
}

/** Attributes as `[name, text]`, in the order of the fields. */
export function writeFields<T>(values: T, fields: readonly Field<T>[]): Record<string, string | undefined> {
  const attributes: Record<string, string | undefined> = {}
  for (const [attribute, key, codec] of fields) {
    const value = values[key]
    if (value !== undefined && value !== null) attributes[attribute] = (codec as Codec<unknown>).format(value)
  }
  return attributes
}

/** One attribute; VIR_ERR_XML_ERROR for a value that the codec refuses. */
export function readAttr<V>(reader: Reader, attribute: string, codec: Codec<V>): V | undefined {
  const value = reader.attr(attribute)
  if (value === undefined) return undefined
  const parsed = codec.parse(value)
  if (parsed === undefined) throw reader.invalid(attribute, value)
  return parsed
}

/** The same for an attribute that has to be there. */
export function needAttr<V>(reader: Reader, attribute: string, codec: Codec<V>): V {
  const value = reader.required(attribute)
  const parsed = codec.parse(value)
  if (parsed === undefined) throw reader.invalid(attribute, value)
  return parsed
}

/** The text of an element through a codec. */
export function readText<V>(reader: Reader, codec: Codec<V>): V {
  const parsed = codec.parse(reader.text())
  if (parsed === undefined) throw reader.invalidText(reader.text())
  return parsed
}

const units = 'kmgtpe'

/**
 * A size of an element's text and its `unit` attribute, in bytes: 'b', 'bytes', 'KB' (1000), 'K' and 'KiB' (1024) and so
 * on (virScaleInteger). VIR_ERR_INVALID_ARG for an unknown unit, VIR_ERR_OVERFLOW past what a number holds exactly.
 */
export function readSize(reader: Reader, defaultUnit: string): number {
  const value = reader.text()
  if (!/^\+?\d+$/.test(value)) throw reader.invalidText(value)
  return toBytes(BigInt(value), reader.attr('unit') ?? defaultUnit, reader.name)
}

function toBytes(value: bigint, unit: string, element: string): number {
  const bytes = value * scaleOf(unit)
  if (bytes <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(bytes)
  throw fail('VIR_ERR_OVERFLOW', `the size '${value} ${unit}' of element '${element}' is too large`)
}

/** The same in KiB, rounded up as libvirt does. */
export function readKib(reader: Reader, defaultUnit = 'KiB'): number {
  return Math.ceil(readSize(reader, defaultUnit) / 1024)
}

/** A number of units in KiB, rounded up. */
export function toKib(value: number, unit: string, element: string): number {
  return Math.ceil(toBytes(BigInt(value), unit, element) / 1024)
}

function scaleOf(unit: string): bigint {
  const lower = unit.toLowerCase()
  if (lower === 'b' || unit === 'byte' || unit === 'bytes' || unit === '') return 1n
  const power = units.indexOf(lower[0] ?? ' ') + 1
  const suffix = lower.slice(1)
  if (power === 0 || !['', 'b', 'ib'].includes(suffix))
    throw fail('VIR_ERR_INVALID_ARG', `the unit '${unit}' is not known`)
  return (suffix === 'b' ? 1000n : 1024n) ** BigInt(power)
}

/** A UUID in libvirt's canonical spelling: 32 hexadecimal digits, hyphens and blanks ignored (virUUIDParse). */
export function parseUuid(value: string): string | undefined {
  const digits = value.replace(/[-\s]/g, '').toLowerCase()
  if (!/^[0-9a-f]{32}$/.test(digits)) return undefined
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
}

export function generateUuid(): string {
  return randomUUID()
}

/** A unicast MAC address in lower case; undefined for anything else. */
export function parseMac(value: string): string | undefined {
  const parts = value.split(':')
  if (parts.length !== 6 || !parts.every((part) => /^[0-9a-f]{1,2}$/i.test(part))) return undefined
  return parts.map((part) => part.padStart(2, '0').toLowerCase()).join(':')
}

/** The first octet says it: its lowest bit is set in an address of more than one station. */
export function isMulticast(mac: string): boolean {
  return (parseInt(mac.slice(0, 2), 16) & 1) === 1
}

/** A random address of QEMU's range, 52:54:00. */
export function generateMac(): string {
  return `52:54:00:${[...randomBytes(3)].map((byte) => byte.toString(16).padStart(2, '0')).join(':')}`
}

/** The object without some of its properties. */
export function without<T extends object, K extends keyof T>(object: T, ...keys: readonly K[]): Omit<T, K> {
  return Object.fromEntries(Object.entries(object).filter(([key]) => !keys.some((each) => each === key))) as Omit<T, K>
}

/** The property, where there is something to say: a value, and not an object without properties. */
export function part<K extends string, V>(key: K, value: V | undefined): Partial<Record<K, V>> {
  const object: Partial<Record<K, V>> = {}
  const says = typeof value !== 'object' || value === null || Object.keys(value).length > 0
  if (value !== undefined && says) object[key] = value
  return object
}
