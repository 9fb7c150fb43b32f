import { failFrom } from '../error.js'
import type { XmlElement, XmlNode } from './xml.js'

const fail = failFrom('VIR_FROM_DOMAIN')

const entities: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;', "'": '&apos;' }
const notXml = /[\u0000-\u0008\u000B\u000C\u000E-\u001F\uFFFE\uFFFF]/u

/** Text of an element; escapes what libvirt escapes. Refuses characters that XML 1.0 can't hold. */
export function escapeText(text: string): string {
  if (notXml.test(text))
    throw fail('VIR_ERR_INVALID_ARG', `XML can't hold a control character that is in ${JSON.stringify(text)}`)
  return text.replace(/[&<>"']/g, (character) => entities[character] ?? character).replace(/\r/g, '&#13;')
}

/** Value of an attribute: line breaks and tabs are kept as references, or a reader would turn them into blanks. */
export function escapeAttribute(value: string): string {
  return escapeText(value).replace(/\n/g, '&#10;').replace(/\t/g, '&#9;')
}

/**
 * One element as text that stands on its own: namespaces that it uses are declared on it. `verbatim` keeps blanks,
 * comments and CDATA, as the content of `<metadata>` is kept; otherwise blanks between elements and comments go.
 */
export function serializeElement(element: XmlElement, style: 'compact' | 'verbatim'): string {
  return serialize(element, style, new Map([['xml', 'http://www.w3.org/XML/1998/namespace']]))
}

function serialize(element: XmlElement, style: 'compact' | 'verbatim', outer: ReadonlyMap<string, string>): string {
  const scope = new Map(outer)
  const declared: [string, string][] = []
  const declare = (prefix: string, uri: string): void => {
    scope.set(prefix, uri)
    declared.push([prefix === '' ? 'xmlns' : `xmlns:${prefix}`, uri])
  }
  for (const [prefix, uri] of Object.entries(element.declarations)) {
    if (scope.get(prefix) !== uri) declare(prefix, uri)
  }
  if ((scope.get(prefixOf(element.name)) ?? '') !== element.uri) declare(prefixOf(element.name), element.uri)
  for (const { name, uri } of element.attributes) {
    const prefix = prefixOf(name)
    if (prefix !== '' && scope.get(prefix) !== uri) declare(prefix, uri)
  }
  const quote = style === 'verbatim' ? '"' : "'"
  const attributes = [...declared, ...element.attributes.map(({ name, value }) => [name, value] as const)]
    .map(([name, value]) => ` ${name}=${quote}${escapeAttribute(value)}${quote}`)
    .join('')
  const content = keptChildren(element, style)
    .map((child) => (child.kind === 'element' ? serialize(child, style, scope) : serializeText(child)))
    .join('')
  return content === ''
    ? `<${element.name}${attributes}/>`
    : `<${element.name}${attributes}>${content}</${element.name}>`
}

function keptChildren(element: XmlElement, style: 'compact' | 'verbatim'): XmlNode[] {
  if (style === 'verbatim') return element.children
  const children = element.children.filter((child) => child.kind !== 'comment')
  const mixed = children.some((child) => child.kind !== 'element' && child.value.trim() !== '')
  return mixed || !children.some((child) => child.kind === 'element')
    ? children
    : children.filter((child) => child.kind === 'element')
}

function serializeText(node: Exclude<XmlNode, XmlElement>): string {
  if (node.kind === 'comment') return `<!--${node.value}-->`
  if (node.kind === 'cdata') return `<![CDATA[${node.value.replaceAll(']]>', ']]]]><![CDATA[>')}]]>`
  return escapeText(node.value)
}

function prefixOf(name: string): string {
  return name.includes(':') ? name.slice(0, name.indexOf(':')) : ''
}

const token = /<!--[\s\S]*?-->|<!\[CDATA\[[\s\S]*?\]\]>|<\?[\s\S]*?\?>|<(?:"[^"]*"|'[^']*'|[^'">])*>|[^<]+/g

/** Lays out a compact element on lines, children two blanks deeper; an element with text of its own stays on one line. */
export function indentElement(compact: string, indent: string): string[] {
  const tokens = compact.match(token) ?? []
  const lines: string[] = []
  let depth = 0
  for (let at = 0; at < tokens.length; at++) {
    const start = tokens[at] ?? ''
    if (start.startsWith('</')) depth--
    const end = isOpening(start) ? endOfLeaf(tokens, at) : at
    lines.push(indent + '  '.repeat(depth) + tokens.slice(at, end + 1).join(''))
    if (isOpening(start) && end === at) depth++
    at = end
  }
  return lines
}

function isOpening(token: string): boolean {
  return token.startsWith('<') && !/^<[/!?]/.test(token) && !token.endsWith('/>')
}

/** Where the element that opens at `at` ends, if text comes before any child of it; `at` itself otherwise. */
function endOfLeaf(tokens: string[], at: number): number {
  const next = tokens[at + 1] ?? ''
  const isText = !next.startsWith('<') || next.startsWith('<![CDATA[')
  if (!isText && !next.startsWith('</')) return at
  let depth = 0
  for (let end = at; end < tokens.length; end++) {
    const current = tokens[end] ?? ''
    if (isOpening(current)) depth++
    if (current.startsWith('</') && --depth === 0) return end
  }
  return at
}
