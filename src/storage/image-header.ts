/**
 * Headers of image files, from bytes that nobody vouches for: every offset and length is checked before it is used.
 * Sources: QEMU docs/interop/qcow2.txt and docs/interop/qed_spec.txt.
 */

/** A header that contradicts itself, or has what we don't know. */
export class ImageHeaderError extends Error {
  override readonly name = 'ImageHeaderError'
  /** the image may be all right, but asks for something that is not supported */
  readonly unsupported: boolean

  constructor(message: string, unsupported = false) {
    super(message)
    this.unsupported = unsupported
  }
}

export interface ImageHeader {
  format: 'qcow2' | 'qed'
  /** of qcow2: 2 or 3 */
  version?: number
  /** bytes that the guest sees */
  virtualSize: bigint
  /** bytes */
  clusterSize: number
  encrypted: boolean
  /** written to by a QEMU that did not close it (also: that has it open) */
  dirty: boolean
  corrupt: boolean
  /** the text in the header, and the format that it gives the backing image */
  backing?: { string: string; format?: string }
}

/** Bytes that `parseHeader` wants: the first cluster, which holds all of the header. */
export const MAX_HEADER_BYTES = 2 * 1024 * 1024
const MAX_BACKING_BYTES = 1023

/** First bytes → format, for a message that says what an image is. */
const MAGICS: readonly (readonly [format: string, offset: number, bytes: string])[] = [
  ['qcow2', 0, 'QFI\xfb\0\0\0\x02'],
  ['qcow2', 0, 'QFI\xfb\0\0\0\x03'],
  ['qcow', 0, 'QFI\xfb\0\0\0\x01'],
  ['qed', 0, 'QED\0'],
  ['vmdk', 0, 'KDMV'],
  ['vmdk', 0, 'COWD'],
  ['vmdk', 0, '# Disk DescriptorFile'],
  ['vdi', 64, '\x7f\x10\xda\xbe'],
  ['vhdx', 0, 'vhdxfile'],
  ['vpc', 0, 'conectix'],
  ['luks', 0, 'LUKS\xba\xbe'],
  ['parallels', 0, 'WithoutFreeSpace'],
  ['parallels', 0, 'WithouFreSpacExt'],
  ['bochs', 0, 'Bochs Virtual HD Image'],
  ['iso', 0x8001, 'CD001'],
]

/** The format that the first bytes look like; undefined: none that we know. For messages only, never to choose a format. */
export function formatByMagic(bytes: Buffer): string | undefined {
  return MAGICS.find(([, offset, magic]) => bytes.toString('latin1', offset, offset + magic.length) === magic)?.[0]
}

/** Parses the header of an image of `format`; `bytes` are the file's first. Throws an `ImageHeaderError`. */
export function parseHeader(format: 'qcow2' | 'qed', bytes: Buffer): ImageHeader {
  return format === 'qcow2' ? parseQcow2(bytes) : parseQed(bytes)
}

function require(condition: boolean, what: string): asserts condition {
  if (!condition) throw new ImageHeaderError(what)
}

function textAt(bytes: Buffer, offset: number, length: number, what: string): string {
  require(offset + length <= bytes.length, `${what} lies outside of the header`)
  const part = bytes.subarray(offset, offset + length)
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(part)
  } catch {
    throw new ImageHeaderError(`${what} is not UTF-8`)
  }
  require(!text.includes('\0'), `${what} contains a NUL`)
  return text
}

// --- qcow2 -------------------------------------------------------------------------------------------------------

const DIRTY = 1n
const CORRUPT = 2n
const EXTERNAL_DATA = 4n
/** dirty, corrupt, external data, compression type, extended L2 entries */
const KNOWN_FEATURES = 31n
const EXTENSION_END = 0
const EXTENSION_BACKING_FORMAT = 0xe2792aca

function parseQcow2(bytes: Buffer): ImageHeader {
  require(bytes.length >= 72, 'header is too short')
  const version = bytes.readUInt32BE(4)
  if (version !== 2 && version !== 3) throw new ImageHeaderError(`version ${version} is not supported`, true)
  const clusterBits = bytes.readUInt32BE(20)
  require(clusterBits >= 9 && clusterBits <= 21, `cluster size 2^${clusterBits} is out of range`)
  const clusterSize = 2 ** clusterBits
  const crypt = bytes.readUInt32BE(32)
  require(crypt <= 2, `encryption method ${crypt} is unknown`)
  const { features, length } = version === 2 ? { features: 0n, length: 72 } : version3(bytes, clusterSize)
  const backing = qcow2Backing(bytes, length, clusterSize)
  return {
    format: 'qcow2',
    version,
    virtualSize: bytes.readBigUInt64BE(24),
    clusterSize,
    encrypted: crypt !== 0,
    dirty: (features & DIRTY) !== 0n,
    corrupt: (features & CORRUPT) !== 0n,
    ...(backing && { backing }),
  }
}

function version3(bytes: Buffer, clusterSize: number): { features: bigint; length: number } {
  require(bytes.length >= 104, 'header is too short')
  const length = bytes.readUInt32BE(100)
  require(length >= 104 && length % 8 === 0 && length <= clusterSize, `header length ${length} is out of range`)
  const features = bytes.readBigUInt64BE(72)
  const unknown = features & ~KNOWN_FEATURES
  if (unknown !== 0n) throw new ImageHeaderError(`incompatible features 0x${unknown.toString(16)} are unknown`, true)
  if ((features & EXTERNAL_DATA) !== 0n) throw new ImageHeaderError('external data files are not supported', true)
  return { features, length }
}

function qcow2Backing(bytes: Buffer, headerLength: number, clusterSize: number): ImageHeader['backing'] {
  const offset = bytes.readBigUInt64BE(8)
  const length = bytes.readUInt32BE(16)
  if (offset === 0n || length === 0) return undefined
  require(length <= MAX_BACKING_BYTES, `backing file name of ${length} bytes is out of range`)
  require(offset >= BigInt(headerLength) &&
    offset + BigInt(length) <= BigInt(clusterSize), 'backing file name lies outside of the first cluster')
  const string = textAt(bytes, Number(offset), length, 'backing file name')
  const format = backingFormat(bytes, headerLength, Number(offset))
  return { string, ...(format !== undefined && { format }) }
}

/** The header extension that names the backing image's format; extensions end at the latest where the name begins. */
function backingFormat(bytes: Buffer, from: number, end: number): string | undefined {
  let format: string | undefined
  for (let at = from; at + 8 <= end;) {
    require(at + 8 <= bytes.length, 'header extension lies outside of the header')
    const type = bytes.readUInt32BE(at)
    const length = bytes.readUInt32BE(at + 4)
    if (type === EXTENSION_END) break
    require(at + 8 + length <= end, 'header extension is too long')
    if (type === EXTENSION_BACKING_FORMAT) {
      require(length <= 15, 'backing format is too long')
      format = textAt(bytes, at + 8, length, 'backing format')
    }
    at += 8 + Math.ceil(length / 8) * 8
  }
  return format === '' ? undefined : format
}

// --- QED ---------------------------------------------------------------------------------------------------------

const QED_BACKING = 1n
const QED_NEED_CHECK = 2n
/** the backing image is raw, whatever its content looks like */
const QED_BACKING_IS_RAW = 4n

function parseQed(bytes: Buffer): ImageHeader {
  require(bytes.length >= 64, 'header is too short')
  const clusterSize = bytes.readUInt32LE(4)
  const headerSize = bytes.readUInt32LE(12)
  const powerOfTwo = clusterSize >= 4096 && clusterSize <= 64 * 1024 * 1024 && (clusterSize & (clusterSize - 1)) === 0
  require(powerOfTwo, `cluster size ${clusterSize} is out of range`)
  require(headerSize > 0, 'header is too short')
  const features = bytes.readBigUInt64LE(16)
  const unknown = features & ~7n
  if (unknown !== 0n) throw new ImageHeaderError(`features 0x${unknown.toString(16)} are unknown`, true)
  const backing = qedBacking(bytes, features, clusterSize * headerSize)
  return {
    format: 'qed',
    virtualSize: bytes.readBigUInt64LE(48),
    clusterSize,
    encrypted: false,
    dirty: (features & QED_NEED_CHECK) !== 0n,
    corrupt: false,
    ...(backing && { backing }),
  }
}

function qedBacking(bytes: Buffer, features: bigint, headerBytes: number): ImageHeader['backing'] {
  const offset = bytes.readUInt32LE(56)
  const length = bytes.readUInt32LE(60)
  if ((features & QED_BACKING) === 0n || length === 0) return undefined
  require(length <= MAX_BACKING_BYTES, `backing file name of ${length} bytes is out of range`)
  require(offset >= 64 && offset + length <= headerBytes, 'backing file name lies outside of the header')
  const string = textAt(bytes, offset, length, 'backing file name')
  return { string, ...((features & QED_BACKING_IS_RAW) !== 0n && { format: 'raw' }) }
}
