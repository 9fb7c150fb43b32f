/** A saved domain on disk, in the layout of libvirt's own save images: header, XML, QEMU's migration stream. */
import { closeSync, openSync, readSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { endianness } from 'node:os'
import { failFrom, wordsOf } from '../../error.js'

const fail = failFrom('VIR_FROM_QEMU')

const COMPLETE = 'LibvirtQemudSave'
/** while it is being written */
const PARTIAL = 'LibvirtQemudPart'
const VERSION = 2
const HEADER = 92
/** no XML of ours is larger; a length beyond it is not believed */
const XML_MAX = 16 * 1024 * 1024

const little = endianness() === 'LE'
const putU32 = (buffer: Buffer, value: number, at: number): unknown =>
  little ? buffer.writeUInt32LE(value, at) : buffer.writeUInt32BE(value, at)
const getU32 = (buffer: Buffer, at: number): number => (little ? buffer.readUInt32LE(at) : buffer.readUInt32BE(at))

export interface SavedDomain {
  /** open, positioned at the migration stream; the caller closes it */
  fd: number
  xml: string
  wasRunning: boolean
}

/** Makes the file and leaves it open behind the XML, marked as incomplete. */
export function createSaveFile(path: string, xml: string, running: boolean): number {
  const text = Buffer.from(`${xml}\0`)
  const header = Buffer.alloc(HEADER)
  header.write(PARTIAL, 0, 'latin1')
  for (const [i, value] of [VERSION, text.length, running ? 1 : 0, 0, 0].entries()) putU32(header, value, 16 + 4 * i)
  let fd: number
  try {
    fd = openSync(path, 'w', 0o600)
  } catch (error) {
    throw fail('VIR_ERR_OPERATION_FAILED', `failed to create file '${path}': ${wordsOf(error)}`, error)
  }
  try {
    writeFileSync(fd, Buffer.concat([header, text]))
  } catch (error) {
    closeSync(fd)
    rmSync(path, { force: true })
    throw fail('VIR_ERR_OPERATION_FAILED', `failed to write '${path}': ${wordsOf(error)}`, error)
  }
  return fd
}

/** All is written: only now is the file worth anything. */
export function completeSaveFile(fd: number): void {
  writeSync(fd, Buffer.from(COMPLETE, 'latin1'), 0, COMPLETE.length, 0)
}

/** Did its writer not come to the end? What is no saved domain at all is none of this. */
export function isIncomplete(path: string): boolean {
  const fd = openSync(path, 'r')
  try {
    const magic = Buffer.alloc(PARTIAL.length)
    return readSync(fd, magic, 0, magic.length, 0) < magic.length || magic.toString('latin1') === PARTIAL
  } finally {
    closeSync(fd)
  }
}

/** Opens a saved domain. VIR_ERR_SYSTEM_ERROR for what cannot be read, VIR_ERR_OPERATION_FAILED for what is none, or an incomplete one. */
export function openSaveFile(path: string): SavedDomain {
  let fd: number
  try {
    fd = openSync(path, 'r')
  } catch (error) {
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot read domain image '${path}': ${wordsOf(error)}`, error)
  }
  try {
    const header = read(fd, HEADER, path)
    const magic = header.toString('latin1', 0, 16)
    if (magic === PARTIAL) throw fail('VIR_ERR_OPERATION_FAILED', `save image '${path}' is incomplete`)
    if (magic !== COMPLETE) throw fail('VIR_ERR_OPERATION_FAILED', `'${path}' is not a saved domain`)
    const [version, length, running, compressed] = [16, 20, 24, 28].map((at) => getU32(header, at))
    if (version !== VERSION)
      throw fail('VIR_ERR_OPERATION_FAILED', `save image '${path}' has version '${String(version)}', not '${VERSION}'`)
    if (compressed !== 0)
      throw fail('VIR_ERR_OPERATION_FAILED', `save image '${path}' is compressed, which is not supported`)
    if (length === undefined || length === 0 || length > XML_MAX)
      throw fail('VIR_ERR_OPERATION_FAILED', `save image '${path}' is damaged`)
    const text = read(fd, length, path)
    const end = text.indexOf(0)
    return { fd, xml: text.toString('utf8', 0, end === -1 ? length : end), wasRunning: running !== 0 }
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

function read(fd: number, length: number, path: string): Buffer {
  const buffer = Buffer.alloc(length)
  if (readSync(fd, buffer, 0, length, null) !== length)
    throw fail('VIR_ERR_OPERATION_FAILED', `save image '${path}' is too short`)
  return buffer
}
