/** Arrays of virTypedParameter, as libvirt lays them out: an 80 byte name, an int type, a value of 8 bytes. */
import koffi from 'koffi'
import * as c from '../constants.gen.js'

/** bytes of one */
export const TYPED_PARAM_SIZE = 96
const NAME_SIZE = 80

export type TypedParams = Map<string, number | string | boolean>

export function readTypedParams(bytes: Uint8Array, count: number): TypedParams {
  const params: TypedParams = new Map()
  for (let nth = 0; nth < count; nth++) {
    const one = bytes.subarray(nth * TYPED_PARAM_SIZE, (nth + 1) * TYPED_PARAM_SIZE)
    const name = Buffer.from(one.subarray(0, NAME_SIZE)).toString('utf8')
    const view = new DataView(one.buffer, one.byteOffset, one.byteLength)
    const value = readValue(view, view.getInt32(NAME_SIZE, true))
    if (value !== undefined) params.set(name.slice(0, name.indexOf('\0')), value)
  }
  return params
}

function readValue(view: DataView, type: number): number | string | boolean | undefined {
  const at = NAME_SIZE + 8
  switch (type) {
    case c.VIR_TYPED_PARAM_INT:
      return view.getInt32(at, true)
    case c.VIR_TYPED_PARAM_UINT:
      return view.getUint32(at, true)
    case c.VIR_TYPED_PARAM_LLONG:
      return Number(view.getBigInt64(at, true))
    case c.VIR_TYPED_PARAM_ULLONG:
      return Number(view.getBigUint64(at, true))
    case c.VIR_TYPED_PARAM_DOUBLE:
      return view.getFloat64(at, true)
    case c.VIR_TYPED_PARAM_BOOLEAN:
      return view.getUint8(at) !== 0
    case c.VIR_TYPED_PARAM_STRING: {
      const text = view.getBigUint64(at, true)
      return text === 0n ? undefined : koffi.decode.string(text)
    }
    default:
      return undefined
  }
}

/** As above, of memory that libvirt has. */
export function readTypedParamsAt(at: bigint, count: number): TypedParams {
  return readTypedParams(bytesAt(at, count * TYPED_PARAM_SIZE), count)
}

/** A copy of memory that libvirt has. */
export function bytesAt(at: bigint, length: number): Uint8Array {
  if (length === 0) return new Uint8Array()
  return Uint8Array.from(koffi.decode(at, 'uint8_t', length) as ArrayLike<number>)
}

export function numberOf(params: TypedParams, name: string): number | undefined {
  const value = params.get(name)
  return typeof value === 'number' ? value : undefined
}

/** Runs `use` with the parameters in memory: texts, and numbers as unsigned long long. */
export async function withTypedParams<T>(
  params: Readonly<Record<string, string | number>>,
  use: (bytes: Uint8Array, count: number) => Promise<T>,
): Promise<T> {
  const entries = Object.entries(params)
  const bytes = new Uint8Array(entries.length * TYPED_PARAM_SIZE)
  const view = new DataView(bytes.buffer)
  // what JavaScript has moves
  const texts: unknown[] = []
  for (const [nth, [name, value]] of entries.entries()) {
    const at = nth * TYPED_PARAM_SIZE
    bytes.set(Buffer.from(name), at)
    view.setInt32(at + NAME_SIZE, typeof value === 'string' ? c.VIR_TYPED_PARAM_STRING : c.VIR_TYPED_PARAM_ULLONG, true)
    const number = typeof value === 'string' ? koffi.address(copyOf(value, texts)) : BigInt(value)
    view.setBigUint64(at + NAME_SIZE + 8, number, true)
  }
  try {
    return await use(bytes, entries.length)
  } finally {
    for (const text of texts) koffi.free(text)
  }
}

function copyOf(text: string, into: unknown[]): unknown {
  const bytes = Buffer.from(`${text}\0`)
  const copy: unknown = koffi.alloc('uint8_t', bytes.length)
  koffi.encode(copy, koffi.array('uint8_t', bytes.length), bytes)
  into.push(copy)
  return copy
}
