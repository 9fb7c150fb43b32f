/* eslint-disable @typescript-eslint/no-deprecated -- libvirt's schemas are RelaxNG, and only libxml2 reads that here */
import { closeSync, existsSync, openSync, readFileSync, readSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { RelaxNGValidator, XmlDocument, XmlError, XmlLibError, xmlRegisterInputProvider } from 'libxml2-wasm'
import { failFrom, messageOf } from '../error.js'
import { withDocument } from './xml.js'

const fail = failFrom('VIR_FROM_DOMAIN')

/** Where packages of libvirt put their schemas; the first folder with a `domain.rng` is used. */
export const schemaFolders: readonly string[] = ['/usr/share/libvirt/schemas', '/usr/local/share/libvirt/schemas']

const compiled = new Map<string, RelaxNGValidator>()

/**
 * Checks domain XML against libvirt's own RelaxNG schema (virXMLValidateAgainstSchema). VIR_ERR_XML_INVALID_SCHEMA with
 * libxml2's complaints, the line and the element where it does not fit; VIR_ERR_OPERATION_UNSUPPORTED where the schema is not installed. The
 * schema is compiled once.
 */
export function validateDomainXml(xml: string, folders: readonly string[] = schemaFolders): void {
  const validator = schema(folders)
  withDocument(xml, (document) => {
    try {
      validator.validate(document)
    } catch (error) {
      if (!(error instanceof XmlError)) throw error
      throw fail(
        'VIR_ERR_XML_INVALID_SCHEMA',
        `the XML does not fit the schema 'domain.rng': ${complaint(error)}`,
        error,
      )
    }
  })
}

/** libxml2 says what is wrong without a place and then which element fails, with one. */
function complaint(error: XmlError): string {
  const details = error instanceof XmlLibError ? error.details : []
  const place = details.find(({ line }) => line > 0)
  const text = [...new Set(details.map(({ message }) => message.trim()))].slice(0, 3).join(', ')
  return place === undefined ? text || messageOf(error) : `line ${place.line} (${place.xpath ?? ''}): ${text}`
}

function schema(folders: readonly string[]): RelaxNGValidator {
  const file = folders.map((folder) => join(folder, 'domain.rng')).find((path) => existsSync(path))
  if (file === undefined) {
    throw fail('VIR_ERR_OPERATION_UNSUPPORTED', `libvirt's schema 'domain.rng' is in none of '${folders.join("', '")}'`)
  }
  const known = compiled.get(file)
  if (known !== undefined) return known
  const validator = compile(file)
  compiled.set(file, validator)
  return validator
}

function compile(file: string): RelaxNGValidator {
  included.folder = dirname(file)
  registerProvider()
  try {
    const document = XmlDocument.fromBuffer(readFileSync(file), { url: file })
    try {
      return RelaxNGValidator.fromDoc(document)
    } finally {
      document.dispose()
    }
  } catch (error) {
    throw fail('VIR_ERR_INTERNAL_ERROR', `the schema '${file}' can't be read: ${messageOf(error).trim()}`, error)
  } finally {
    included.folder = undefined
  }
}

/** While a schema is compiled: the folder that libxml2 may read further schemas from, and nothing else. */
const included: { folder: string | undefined; registered: boolean } = { folder: undefined, registered: false }

function registerProvider(): void {
  if (included.registered) return
  included.registered = xmlRegisterInputProvider({
    match: (path) => included.folder !== undefined && dirname(path) === included.folder && path.endsWith('.rng'),
    open: (path) => attempt(() => openSync(path, 'r'), undefined),
    read: (fd, buffer) => attempt(() => readSync(fd, buffer, 0, buffer.byteLength, null), -1),
    close: (fd) => attempt(() => (closeSync(fd), true), false),
  })
}

/** libxml2 calls back through wasm, which no exception may cross. */
function attempt<T>(action: () => T, otherwise: T): T {
  try {
    return action()
  } catch {
    return otherwise
  }
}
