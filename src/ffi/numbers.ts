/** Structures that functions fill in, read by their layout on 64-bit Linux. */

export interface Filled {
  readonly bytes: Uint8Array
  int: (at: number) => number
  /** unsigned short */
  ushort: (at: number) => number
  /** unsigned long and long long */
  ulong: (at: number) => number
  long: (at: number) => number
  address: (at: number) => bigint
}

/** Zeroed memory for a function to fill in; offsets are bytes. */
export function fillIn(size: number): Filled {
  const bytes = new Uint8Array(size)
  const view = new DataView(bytes.buffer)
  return {
    bytes,
    int: (at) => view.getInt32(at, true),
    ushort: (at) => view.getUint16(at, true),
    ulong: (at) => Number(view.getBigUint64(at, true)),
    long: (at) => Number(view.getBigInt64(at, true)),
    address: (at) => view.getBigUint64(at, true),
  }
}
