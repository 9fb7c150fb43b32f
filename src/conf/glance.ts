/** What is told of any domain, also of one that holds what we do not model, as those of a libvirtd may. */
import { Reader } from './reader.js'
import { serializeElement } from './serialize.js'
import { readXml } from './xml.js'
import type { XmlElement } from './xml.js'

export interface SeenSource {
  /** 'file', 'block', 'network', 'volume', … */
  type: string
  /** path, name at a server, or volume, as it stands there; absent where it has none of these */
  path?: string
  /** as the definition says; one that is not said is raw */
  format: string
  /** whether images lie below: null says that none do, undefined says nothing */
  backingStore?: object | null
}

export interface SeenDisk {
  device: string
  target: string
  alias?: string
  readonly: boolean
  /** absent: no medium */
  source?: SeenSource
}

const names = ['file', 'dev', 'dir', 'name', 'volume', 'path']

function seenSource(disk: Reader): SeenSource | undefined {
  const source = disk.child('source')
  const type = disk.peek('type') ?? 'file'
  const path = names.map((name) => source?.peek(name)).find((value) => value !== undefined && value !== '')
  if (source === undefined || (path === undefined && (type === 'file' || type === 'block'))) return undefined
  const backing = disk.child('backingStore')
  return {
    type,
    ...(path !== undefined && { path }),
    format: disk.peekChild('driver', 'type') ?? 'raw',
    ...(backing !== undefined && { backingStore: backing.peek('type') === undefined ? null : {} }),
  }
}

function seenDisk(element: XmlElement): SeenDisk {
  const disk = new Reader(element)
  const device = disk.peek('device') ?? 'disk'
  const alias = disk.peekChild('alias', 'name')
  const source = seenSource(disk)
  return {
    device,
    target: disk.peekChild('target', 'dev') ?? '',
    ...(alias !== undefined && { alias }),
    readonly: disk.has('readonly') || device === 'cdrom',
    ...(source && { source }),
  }
}

function childrenOf(element: XmlElement, name: string): XmlElement[] {
  return element.children.filter((child) => child.kind === 'element' && child.localName === name) as XmlElement[]
}

const disksOf = (xml: string): XmlElement[] =>
  childrenOf(readXml(xml), 'devices').flatMap((devices) => childrenOf(devices, 'disk'))

export const disksIn = (xml: string): SeenDisk[] => disksOf(xml).map(seenDisk)

/** The element of a disk as it stands; undefined where the domain has none that `wanted` takes. */
export function diskXmlIn(xml: string, wanted: (disk: SeenDisk) => boolean): string | undefined {
  const found = disksOf(xml).find((element) => wanted(seenDisk(element)))
  return found && `${serializeElement(found, 'verbatim')}\n`
}

/** By target, then alias, then source. */
export function findSeen(disks: readonly SeenDisk[], name: string): SeenDisk | undefined {
  return (
    disks.find(({ target }) => target === name) ??
    disks.find(({ alias }) => alias === name) ??
    disks.find(({ source }) => source?.path === name)
  )
}

/** Of the domain itself: its title, and what runs in it ('hvm', 'exe'). */
export function headIn(xml: string): { title: string; osType: string } {
  const domain = new Reader(readXml(xml))
  return {
    title: domain.child('title')?.rawText() ?? '',
    osType: domain.child('os')?.child('type')?.text() ?? '',
  }
}
