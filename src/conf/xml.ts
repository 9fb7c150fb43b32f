import {
  ParseOption,
  XmlCData,
  XmlComment,
  XmlDocument,
  XmlElement as LibxmlElement,
  XmlError,
  XmlLibError,
  XmlText,
} from 'libxml2-wasm'
import type { ErrorDetail, XmlTreeNode } from 'libxml2-wasm'
import { failFrom } from '../error.js'

const fail = failFrom('VIR_FROM_DOMAIN')

/** What one document may hold; more is refused before or while it is read. */
export const xmlLimits = { bytes: 4 * 1024 * 1024, elements: 100_000, depth: 128 } as const

export interface XmlAttribute {
  /** with its prefix */
  name: string
  /** namespace, '' for none */
  uri: string
  value: string
}
/** An element as plain data; nothing of libxml2's memory is held. */
export interface XmlElement {
  kind: 'element'
  /** with its prefix */
  name: string
  localName: string
  /** namespace, '' for none */
  uri: string
  /** namespaces declared here: prefix ('' for the default one) to URI */
  declarations: Record<string, string>
  attributes: XmlAttribute[]
  children: XmlNode[]
  line: number
}
export type XmlNode = XmlElement | { kind: 'text' | 'cdata' | 'comment'; value: string }

const parseOptions: ParseOption =
  ParseOption.XML_PARSE_NONET |
  ParseOption.XML_PARSE_NO_XXE |
  ParseOption.XML_PARSE_NO_SYS_CATALOG |
  ParseOption.XML_PARSE_IGNORE_ENC |
  ParseOption.XML_PARSE_BIG_LINES

/**
 * Reads a document with libxml2 and gives its root as plain data. No entity is ever declared, expanded or fetched: a
 * document type with an internal subset or an external identifier is refused (VIR_ERR_XML_ERROR). VIR_ERR_XML_DETAIL for
 * text that is not well-formed (with the line), VIR_ERR_OVERFLOW for more than `xmlLimits` allows.
 */
export function readXml(text: string): XmlElement {
  return withDocument(text, (document) => {
    const count = { elements: 0 }
    return toElement(document.root, 1, count)
  })
}

/** Parses `text` under the same bounds as `readXml` and hands libxml2's document to `use`; disposes it afterwards. */
export function withDocument<T>(text: string, use: (document: XmlDocument) => T): T {
  refuseHuge(text)
  refuseDoctype(text)
  const document = parseDocument(text)
  try {
    return use(document)
  } finally {
    document.dispose()
  }
}

function parseDocument(text: string): XmlDocument {
  try {
    return XmlDocument.fromString(text, { option: parseOptions })
  } catch (error) {
    if (!(error instanceof XmlError)) throw error
    const details = error instanceof XmlLibError ? error.details : []
    throw fail('VIR_ERR_XML_DETAIL', `the XML is not well-formed: ${describe(details, error.message)}`, error)
  }
}

/** 'line 3: Opening and ending tag mismatch' of what libxml2 reports. */
export function describe(details: ErrorDetail[], otherwise: string): string {
  const first = details.find((detail) => detail.level >= 2) ?? details[0]
  if (first === undefined) return otherwise.trim()
  return first.line > 0 ? `line ${first.line}: ${first.message.trim()}` : first.message.trim()
}

function refuseHuge(text: string): void {
  const bytes = Buffer.byteLength(text)
  if (bytes > xmlLimits.bytes) {
    throw fail('VIR_ERR_OVERFLOW', `the XML is ${bytes} bytes long, more than the allowed ${xmlLimits.bytes}`)
  }
  let tags = 0
  for (let at = text.indexOf('<'); at !== -1; at = text.indexOf('<', at + 1)) tags++
  if (tags > 2 * xmlLimits.elements) {
    throw fail('VIR_ERR_OVERFLOW', `the XML has more than the allowed ${xmlLimits.elements} elements`)
  }
}

/** A document type stands before the root element; what may precede it are blanks, comments and instructions. */
const prolog = /^\uFEFF?(?:\s+|<\?[\s\S]*?\?>|<!--[\s\S]*?-->)*/
const bareDoctype = /^<!DOCTYPE\s+[^\s[>"']+\s*>/

function refuseDoctype(text: string): void {
  const rest = text.slice(prolog.exec(text)?.[0].length ?? 0)
  if (rest.startsWith('<!DOCTYPE') && !bareDoctype.test(rest)) {
    throw fail(
      'VIR_ERR_XML_ERROR',
      'the XML has a document type that declares or fetches something: entities are not allowed',
    )
  }
}

function toElement(element: LibxmlElement, depth: number, count: { elements: number }): XmlElement {
  if (depth > xmlLimits.depth)
    throw fail('VIR_ERR_OVERFLOW', `the XML is nested deeper than the allowed ${xmlLimits.depth} elements`)
  if (++count.elements > xmlLimits.elements) {
    throw fail('VIR_ERR_OVERFLOW', `the XML has more than the allowed ${xmlLimits.elements} elements`)
  }
  const children: XmlNode[] = []
  for (let child = element.firstChild; child !== null; child = child.next) {
    const node = toNode(child, depth, count)
    if (node !== undefined) children.push(node)
  }
  const { name, prefix } = element
  return {
    kind: 'element',
    name: qualified(prefix, name),
    localName: name,
    uri: element.namespaceUri,
    declarations: element.nsDeclarations,
    attributes: element.attrs.map((attribute) => ({
      name: qualified(attribute.prefix, attribute.name),
      uri: attribute.namespaceUri,
      value: attribute.value,
    })),
    children,
    line: element.line,
  }
}

function toNode(node: XmlTreeNode, depth: number, count: { elements: number }): XmlNode | undefined {
  if (node instanceof LibxmlElement) return toElement(node, depth + 1, count)
  if (node instanceof XmlText) return { kind: 'text', value: node.content }
  if (node instanceof XmlCData) return { kind: 'cdata', value: node.content }
  if (node instanceof XmlComment) return { kind: 'comment', value: node.content }
  return undefined
}

function qualified(prefix: string, name: string): string {
  return prefix === '' ? name : `${prefix}:${name}`
}
