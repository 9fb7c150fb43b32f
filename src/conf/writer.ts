import type { Residue } from './domain-def.js'
import { childOrder, inOrder } from './order.js'
import { escapeAttribute, escapeText, indentElement } from './serialize.js'

/** An element that is being written. */
export interface Out {
  name: string
  attributes: Record<string, string | number | undefined>
  children: (Out | Kept)[]
  text?: string
}
/** An element that was kept as text: laid out anew, or exactly as it was. */
export interface Kept {
  name: string
  kept: string
  verbatim?: boolean
}

type Attributes = Record<string, string | number | undefined>
type Children = readonly (Out | Kept | undefined)[]

export function element(name: string, attributes: Attributes = {}, children: Children | string = []): Out {
  if (typeof children === 'string') return { name, attributes, children: [], text: children }
  return { name, attributes, children: children.filter((child) => child !== undefined) }
}

/** The element, unless it would say nothing: no attribute, no child, no text. */
export function unlessEmpty(out: Out): Out | undefined {
  const says = Object.values(out.attributes).some((value) => value !== undefined)
  return says || out.children.length > 0 || out.text !== undefined ? out : undefined
}

/** `<name>text</name>`, or nothing. */
export function textElement(name: string, value: string | number | undefined): Out | undefined {
  return value === undefined ? undefined : element(name, {}, String(value))
}

export function kept(compact: string, verbatim = false): Kept {
  return { name: /^<([^\s/>]+)/.exec(compact)?.[1] ?? '', kept: compact, ...(verbatim && { verbatim }) }
}

/** Puts back what the reader did not model, at the places that it came from. */
export function withResidue(out: Out, residue: readonly Residue[] = []): Out {
  const owners = residue.map(({ path }) => path.split('/').reduce<Out | undefined>(descend, out))
  residue.forEach(({ attributes = [], elements = [] }, at) => {
    const owner = owners[at]
    if (owner === undefined) return
    for (const { name, value } of attributes) owner.attributes[name] ??= value
    owner.children.push(...elements.map((text) => kept(text)))
    putInOrder(owner)
  })
  return out
}

/** The child that a step names. The first one of a name is made where it is missing; another one is gone with its owner. */
function descend(out: Out | undefined, step: string): Out | undefined {
  if (out === undefined || step === '') return out
  const [, name = step, index = '0'] = /^(.*)\[(\d+)\]$/.exec(step) ?? []
  const found = out.children.filter((child): child is Out => child.name === name && 'attributes' in child)[
    Number(index)
  ]
  if (found !== undefined || index !== '0') return found
  const made = element(name)
  out.children.push(made)
  putInOrder(out)
  return made
}

function putInOrder(out: Out): void {
  const order = childOrder[out.name]
  if (order !== undefined) out.children = inOrder(out.children, (child) => child.name, order)
}

/** The text of a document: two blanks a level, single quotes, an end of line after each element. */
export function print(out: Out): string {
  const lines: string[] = []
  printInto(lines, out, '')
  return lines.join('\n') + '\n'
}

function printInto(lines: string[], out: Out | Kept, indent: string): void {
  if ('kept' in out) {
    if (out.verbatim === true) lines.push(indent + out.kept)
    else lines.push(...indentElement(out.kept, indent))
    return
  }
  const attributes = Object.entries(out.attributes)
    .map(([name, value]) => (value === undefined ? '' : ` ${name}='${escapeAttribute(String(value))}'`))
    .join('')
  if (out.text !== undefined) {
    lines.push(`${indent}<${out.name}${attributes}>${escapeText(out.text)}</${out.name}>`)
  } else if (out.children.length === 0) {
    lines.push(`${indent}<${out.name}${attributes}/>`)
  } else {
    lines.push(`${indent}<${out.name}${attributes}>`)
    for (const child of out.children) printInto(lines, child, `${indent}  `)
    lines.push(`${indent}</${out.name}>`)
  }
}
