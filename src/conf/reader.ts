import type { VirError } from '../error.js'
import { failFrom } from '../error.js'
import type { Residue } from './domain-def.js'
import { childOrder, inOrder } from './order.js'
import { serializeElement } from './serialize.js'
import type { XmlElement } from './xml.js'

const fail = failFrom('VIR_FROM_DOMAIN')

/**
 * Reads one element and remembers what was asked for. What nobody asked for is the residue of the definition that the
 * element becomes: attributes and children that we do not model, kept so that they survive a round trip.
 */
export class Reader {
  readonly name: string
  readonly #element: XmlElement
  readonly #attributes = new Set<string>()
  readonly #children = new Map<XmlElement, Reader>()
  #residueTaken = false
  #left = false

  constructor(element: XmlElement) {
    this.#element = element
    this.name = element.localName
  }

  get line(): number {
    return this.#element.line
  }

  /** The value of an attribute without a namespace. */
  attr(name: string): string | undefined {
    this.#attributes.add(name)
    return this.peek(name)
  }

  /** Like `attr`, but does not count as read: for looking before deciding whether this is something that we model. */
  peek(name: string): string | undefined {
    return valueOf(this.#element, name)
  }

  /** As libvirt's virXMLPropStringRequired: VIR_ERR_XML_ERROR where the attribute is missing or empty. */
  required(name: string): string {
    const value = this.attr(name)
    if (value === undefined || value === '') {
      throw fail('VIR_ERR_XML_ERROR', `element '${this.name}' needs the attribute '${name}'`)
    }
    return value
  }

  /** The first child of this name (of those whose attributes are as wanted); the others are left alone. */
  child(
    name: string,
    uri = '',
    wanted: (attr: (name: string) => string | undefined) => boolean = () => true,
  ): Reader | undefined {
    const element = this.#elements().find(
      (child) => child.localName === name && child.uri === uri && wanted((attribute) => valueOf(child, attribute)),
    )
    return element === undefined ? undefined : this.#reader(element)
  }

  /** Every child of this name. */
  children(name: string, uri = ''): Reader[] {
    return this.#elements()
      .filter((child) => child.localName === name && child.uri === uri)
      .map((child) => this.#reader(child))
  }

  /** Whether there is such a child, without counting it as read. */
  has(name: string): boolean {
    return this.#find(name, '') !== undefined
  }

  /** An attribute of the first child of this name, without counting either as read. */
  peekChild(name: string, attribute: string): string | undefined {
    const element = this.#find(name, '')
    return element && valueOf(element, attribute)
  }

  /** All element children as they stand, for content that is kept and not interpreted. */
  rawChildren(): XmlElement[] {
    for (const child of this.#elements()) this.#reader(child).takeAll()
    return this.#elements()
  }

  /** The text of this element, all of it, with the blanks around it removed. */
  text(): string {
    return this.#element.children
      .map((child) => (child.kind === 'text' || child.kind === 'cdata' ? child.value : ''))
      .join('')
      .trim()
  }

  /** The text exactly as it stands. */
  rawText(): string {
    return this.#element.children
      .map((child) => (child.kind === 'text' || child.kind === 'cdata' ? child.value : ''))
      .join('')
  }

  /** The text of the first child of this name; undefined where it is missing or empty, as libvirt reads strings. */
  childText(name: string): string | undefined {
    const text = this.child(name)?.rawText()
    return text === '' ? undefined : text
  }

  /** An attribute's value can't be what it is: names element, attribute and value. */
  invalid(attribute: string, value: string): VirError {
    return fail('VIR_ERR_XML_ERROR', `attribute '${attribute}' of element '${this.name}' can't be '${value}'`)
  }

  /** The same for the text of the element. */
  invalidText(value: string): VirError {
    return fail('VIR_ERR_XML_ERROR', `element '${this.name}' can't hold '${value}'`)
  }

  /** All attributes without a namespace, each counted as read. */
  attributes(): Record<string, string> {
    const plain = this.#element.attributes.filter((attribute) => attribute.uri === '')
    for (const { name } of plain) this.#attributes.add(name)
    return Object.fromEntries(plain.map(({ name, value }) => [name, value]))
  }

  /** Names of the children without a namespace, each once. */
  childNames(): string[] {
    return [...new Set(this.#elements().flatMap((child) => (child.uri === '' ? [child.localName] : [])))]
  }

  /** Not ours after all: the whole element is residue of its owner, whatever was read of it. */
  leave(): void {
    this.#left = true
  }

  /** Everything below is dealt with: nothing of it becomes residue. */
  takeAll(): void {
    this.#residueTaken = true
  }

  /**
   * What was not read, below this element too. To be called once by what makes the definition, after it read all that it
   * knows; children whose own `residue` was taken before belong to another definition and are left out.
   */
  residue(): { residue?: Residue[] } {
    this.#residueTaken = true
    const residue: Residue[] = []
    this.#collect('', residue)
    return residue.length === 0 ? {} : { residue: residue.sort((a, b) => (a.path < b.path ? -1 : 1)) }
  }

  #collect(path: string, into: Residue[]): void {
    const attributes = this.#element.attributes
      .filter((attribute) => attribute.uri !== '' || !this.#attributes.has(attribute.name))
      .flatMap(({ name, uri, value }) => withNamespace(name, uri, value))
    const kept: XmlElement[] = []
    const seen = new Map<string, number>()
    for (const element of this.#elements()) {
      const index = seen.get(element.name) ?? 0
      seen.set(element.name, index + 1)
      const reader = this.#children.get(element)
      if (reader === undefined || reader.#left) kept.push(element)
      else if (!reader.#residueTaken) reader.#collect(joined(path, element.name, index), into)
    }
    this.#add(into, path, attributes, kept)
    for (const name of new Set(kept.map((element) => element.name))) this.#holdPlace(into, path, name)
  }

  /** An element that was read stands before a kept one of the same name even if nothing else is to be said in it. */
  #holdPlace(into: Residue[], path: string, name: string): void {
    const place = joined(path, name, 0)
    const [first] = this.#elements().filter((element) => element.name === name)
    const read = first && this.#children.get(first)
    if (read !== undefined && !read.#left && !read.#residueTaken && !into.some((each) => each.path === place))
      into.push({ path: place })
  }

  #add(into: Residue[], path: string, attributes: { name: string; value: string }[], kept: XmlElement[]): void {
    if (attributes.length === 0 && kept.length === 0) return
    const elements = inOrder(kept, (element) => element.name, childOrder[this.name] ?? []).map((element) =>
      serializeElement(element, 'compact'),
    )
    into.push({ path, ...(attributes.length > 0 && { attributes }), ...(elements.length > 0 && { elements }) })
  }

  #elements(): XmlElement[] {
    return this.#element.children.filter((child) => child.kind === 'element')
  }

  #find(name: string, uri: string): XmlElement | undefined {
    return this.#elements().find((child) => child.localName === name && child.uri === uri)
  }

  #reader(element: XmlElement): Reader {
    const known = this.#children.get(element)
    if (known !== undefined) return known
    const reader = new Reader(element)
    this.#children.set(element, reader)
    return reader
  }
}

function valueOf(element: XmlElement, name: string): string | undefined {
  return element.attributes.find((each) => each.name === name && each.uri === '')?.value
}

function joined(path: string, name: string, index: number): string {
  const step = index === 0 ? name : `${name}[${index}]`
  return path === '' ? step : `${path}/${step}`
}

/** An attribute of a foreign namespace goes with the declaration of its prefix. */
function withNamespace(name: string, uri: string, value: string): { name: string; value: string }[] {
  const prefix = name.slice(0, Math.max(name.indexOf(':'), 0))
  const own = { name, value }
  return uri === '' || prefix === '' || prefix === 'xml' ? [own] : [{ name: `xmlns:${prefix}`, value: uri }, own]
}
