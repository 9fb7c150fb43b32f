/** SELinux labels as a security driver (libvirt's security_selinux.c): each QEMU has categories of its own. */
import { randomInt } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import type { DomainDef, SeclabelDef } from '../conf/domain-def.js'
import { errnoOf, failFrom, wordsOf } from '../error.js'
import { native } from '../native.js'
import { FileLabels } from './file-labels.js'
import { relabels, seclabelOf, wantedLabel } from './seclabels.js'
import type { LabelTarget, SecurityDriver } from './security-driver.js'

const fail = failFrom('VIR_FROM_SECURITY')
const MODEL = 'selinux'
const ATTRIBUTE = 'security.selinux'

export interface SelinuxOptions {
  /** write the former labels on the files themselves, as libvirt does; default: yes */
  rememberOwner?: boolean
}

/** Labels that the policy has for virtual machines. */
export interface SelinuxContexts {
  /** of processes with hardware acceleration, and without */
  domain: string
  emulated: string
  /** of images that a domain writes, and of what it only reads */
  file: string
  content: string
}

/**
 * The driver 'selinux'. A dynamic label is a process type of the policy (or `<baselabel>`) with a pair of categories that no
 * other domain has; a static one is taken as it is. Images get the type for images with the domain's categories, backing
 * images and read-only disks the one for content that all may read, shareable disks the one for images without categories.
 */
export function selinuxDriver(options: SelinuxOptions = {}): SecurityDriver {
  /** given out and not yet back, so that two domains that start at once differ */
  const taken = new Set<string>()
  const files = new FileLabels(MODEL, { read: getLabel, write: setLabel }, options.rememberOwner ?? true)

  return {
    name: MODEL,

    probe() {
      return Promise.resolve(
        existsSync('/sys/fs/selinux/enforce') ? undefined : 'the kernel of this host has no SELinux, or it is disabled',
      )
    },

    generateLabel(def, running) {
      const label = seclabelOf(def, MODEL)
      if (label !== undefined) generate(def, label, running, taken)
      return Promise.resolve()
    },

    async setImageLabel(def, target, note) {
      const wanted = wantedLabel(def, target, MODEL, imageLabel(def, target))
      if (wanted === undefined) return
      if (target.kind === 'runtime') setLabel(target.path, wanted)
      else await files.give(target, wanted, note)
    },

    restoreImageLabel: (_def, target, state, complete, stays) => files.giveBack(target, state, complete, stays),

    // a socket has the label that its maker wants for it, and one that QEMU inherits must be QEMU's own
    setSocketLabel(def) {
      const label = seclabelOf(def, MODEL)?.label
      if (label !== undefined) writeFileSync('/proc/thread-self/attr/sockcreate', label)
    },
    clearSocketLabel(def) {
      if (seclabelOf(def, MODEL)?.label !== undefined) writeFileSync('/proc/thread-self/attr/sockcreate', '')
    },

    processLabel(def) {
      const selinuxLabel = seclabelOf(def, MODEL)?.label
      return Promise.resolve(selinuxLabel === undefined ? {} : { selinuxLabel })
    },

    releaseLabel(def) {
      const label = seclabelOf(def, MODEL)?.label
      if (label !== undefined) taken.delete(categoriesOf(label))
      return Promise.resolve()
    },
  }
}

function generate(def: DomainDef, label: SeclabelDef, running: readonly DomainDef[], taken: Set<string>): void {
  const contexts = readContexts()
  if (label.type === 'none') return
  if (label.type === 'static') {
    if (label.label === undefined)
      throw fail('VIR_ERR_XML_ERROR', `the static <seclabel model='selinux'> of domain '${def.name}' lacks a label`)
    split(label.label)
  } else {
    const others = running.flatMap((other) => seclabelOf(other, MODEL)?.label ?? [])
    const level = freeLevel(new Set([...taken, ...others.map(categoriesOf)]))
    taken.add(categoriesOf(`:::${level}`))
    label.label = withLevel(label.baselabel ?? (def.virtType === 'kvm' ? contexts.domain : contexts.emulated), level)
  }
  // images get the process's own level: a static label may have any
  if (relabels(def, MODEL)) label.imagelabel = withLevel(contexts.file, split(label.label ?? '').level)
}

/** The label of an image without a say of its own; undefined where the domain labels nothing. */
function imageLabel(def: DomainDef, target: LabelTarget): string | undefined {
  const { file, content } = readContexts()
  const { label, imagelabel } = seclabelOf(def, MODEL) ?? {}
  if (target.kind === 'runtime') return label && withLevel(file, split(label).level)
  if (target.kind === 'backing' || target.kind === 'boot') return content
  if (target.shared) return file
  if (target.readonly) return content
  return imagelabel
}

// --- labels ----------------------------------------------------------------------------------------------------

interface Parts {
  /** user:role:type */
  front: string
  level: string
}

/** 'system_u:system_r:svirt_t:s0:c1,c2' */
function split(label: string): Parts {
  const [, front, level] = /^([^:\s]+:[^:\s]+:[^:\s]+)(?::(\S+))?$/.exec(label) ?? []
  if (front === undefined) throw fail('VIR_ERR_INVALID_ARG', `'${label}' is not a label of SELinux`)
  return { front, level: level ?? 's0' }
}

const withLevel = (label: string, level: string): string => `${split(label).front}:${level}`

/** 'c1,c2' of a label, '' without. */
const categoriesOf = (label: string): string => label.split(':').slice(4).join(':')

const CATEGORIES = 1024

/** A level of our own sensitivity with a pair of our own categories that no other domain has: there are half a million. */
export function freeLevel(taken: ReadonlySet<string>, own = ownRange()): string {
  const { sensitivity, first, last } = own
  const count = last - first + 1
  if (count < 2) throw fail('VIR_ERR_INTERNAL_ERROR', 'this process has too few SELinux categories to give any out')
  const pairs = (count * (count - 1)) / 2
  for (let tries = 0; tries < pairs * 20; tries++) {
    const [a, b] = [first + randomInt(count), first + randomInt(count)]
    const categories = `c${Math.min(a, b)},c${Math.max(a, b)}`
    if (a !== b && !taken.has(categories)) return `${sensitivity}:${categories}`
  }
  throw fail('VIR_ERR_INTERNAL_ERROR', 'there is no pair of SELinux categories left for another domain')
}

/** From our own label, 'system_u:system_r:virtd_t:s0-s0:c0.c1023': what the kernel lets us hand on. */
function ownRange(): { sensitivity: string; first: number; last: number } {
  const label = readFileSync('/proc/thread-self/attr/current', 'utf8').replace(/\0.*$/s, '')
  return rangeOf(label)
}

export function rangeOf(label: string): { sensitivity: string; first: number; last: number } {
  const level = label.split(':').slice(3).join(':')
  const sensitivity = /^[^-:]+/.exec(level)?.[0] ?? 's0'
  const [, first, last] = /:c(\d+)\.c(\d+)$/.exec(level) ?? []
  return { sensitivity, first: Number(first ?? 0), last: Number(last ?? CATEGORIES - 1) }
}

const DEFAULT_CONTEXTS: SelinuxContexts = {
  domain: 'system_u:system_r:svirt_t:s0',
  emulated: 'system_u:system_r:svirt_tcg_t:s0',
  file: 'system_u:object_r:svirt_image_t:s0',
  content: 'system_u:object_r:virt_content_t:s0',
}

/** What the policy says in virtual_domain_context and virtual_image_context; the usual types where it says nothing. */
export function readContexts(directory = '/etc/selinux'): SelinuxContexts {
  const lines = (path: string): string[] => {
    try {
      return readFileSync(path, 'utf8').split('\n').map((line) => line.trim()).filter((line) => line !== '') // prettier-ignore
    } catch {
      return []
    }
  }
  const policy = lines(`${directory}/config`)
    .find((line) => line.startsWith('SELINUXTYPE='))
    ?.slice('SELINUXTYPE='.length)
  const [domain, emulated] = lines(`${directory}/${policy ?? 'targeted'}/contexts/virtual_domain_context`)
  const [file, content] = lines(`${directory}/${policy ?? 'targeted'}/contexts/virtual_image_context`)
  const all = { ...DEFAULT_CONTEXTS }
  if (domain !== undefined) Object.assign(all, { domain, emulated: emulated ?? domain })
  if (file !== undefined) Object.assign(all, { file, content: content ?? file })
  return all
}

// --- files -----------------------------------------------------------------------------------------------------

function getLabel(path: string): string | undefined {
  const value = native.getxattr(path, ATTRIBUTE)
  return value && Buffer.from(value).toString('utf8').replace(/\0$/, '')
}

/** What has no labels of its own has that of its file system, and the policy says what may be done with it. */
function setLabel(path: string, label: string | null): void {
  try {
    // the kernel wants the final NUL counted
    if (label !== null) native.setxattr(path, ATTRIBUTE, Buffer.from(`${label}\0`))
    else native.removexattr(path, ATTRIBUTE)
  } catch (error) {
    if (['ENOTSUP', 'EOPNOTSUPP', 'EROFS'].includes(errnoOf(error) ?? '')) return
    const what = label === null ? 'remove the label' : `set label '${label}'`
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot ${what} of '${path}': ${wordsOf(error)}`, error)
  }
}
