/** Users and groups as a security driver (libvirt's security_dac.c): QEMU runs as its own user, who owns what it uses. */
import { lchownSync, lstatSync } from 'node:fs'
import type { DomainDef } from '../conf/domain-def.js'
import { failFrom, messageOf } from '../error.js'
import { FileLabels } from './file-labels.js'
import { formatOwner, groupId, groupsOf, type Owner, parseOwner, primaryGroup, sameOwner, userId } from './owners.js'
import { relabels, seclabelOf, wantedLabel } from './seclabels.js'
import type { SecurityDriver } from './security-driver.js'

const fail = failFrom('VIR_FROM_SECURITY')
const MODEL = 'dac'

export interface DacOptions {
  /** name, or number with or without '+'. Default: the first of 'libvirt-qemu' and 'qemu' that the host has */
  user?: string
  /** default: the user's own */
  group?: string
  /** change the owners of images; default: yes. Otherwise only what is made for the run is given to the user */
  dynamicOwnership?: boolean
  /** write the former owners on the files themselves, as libvirt does; default: yes */
  rememberOwner?: boolean
}

/**
 * The driver 'dac'. A `<seclabel model='dac'>` of type static names the user ('+107:+107' or 'user:group'), otherwise it is
 * the one of the options. Images get back the owner that they had when no domain uses them any more (`FileLabels`). Needs root.
 */
export function dacDriver(options: DacOptions = {}): SecurityDriver {
  const files = new FileLabels(
    MODEL,
    {
      read: (path) => formatOwner(ownerOfFile(path)),
      write: (path, label) => label !== null && changeOwner(path, ownerOfLabel(label)),
    },
    options.rememberOwner ?? true,
  )
  const labelOf = (def: DomainDef): string | undefined => seclabelOf(def, MODEL)?.label
  /** of processes and of what is made for the run: also of domains with a label of type none */
  const ownerOf = async (def: DomainDef): Promise<Owner> => {
    const label = labelOf(def)
    return label === undefined ? configuredOwner(options) : parseOwner(label)
  }

  return {
    name: MODEL,

    async probe() {
      if (process.geteuid?.() !== 0) return 'only root can start processes as another user'
      try {
        await configuredOwner(options)
        return undefined
      } catch (error) {
        return messageOf(error)
      }
    },

    async generateLabel(def) {
      const label = seclabelOf(def, MODEL)
      if (label === undefined || label.type === 'none') return
      if (label.type === 'static') {
        if (label.label === undefined)
          throw fail('VIR_ERR_XML_ERROR', `the static <seclabel model='dac'> of domain '${def.name}' lacks a label`)
        await parseOwner(label.label)
      } else {
        label.label = formatOwner(await configuredOwner(options))
      }
      if (relabels(def, MODEL)) label.imagelabel = label.label
    },

    async setImageLabel(def, target, note) {
      if (target.kind !== 'runtime' && options.dynamicOwnership === false) return
      const wanted = wantedLabel(def, target, MODEL, labelOf(def) ?? formatOwner(await ownerOf(def)))
      if (wanted === undefined) return
      const owner = await parseOwner(wanted)
      if (target.kind === 'runtime') changeOwner(target.path, owner)
      else await files.give(target, formatOwner(owner), note)
    },

    restoreImageLabel: (_def, target, state, complete, stays) => files.giveBack(target, state, complete, stays),

    async processLabel(def) {
      const { uid, gid } = await ownerOf(def)
      return { uid, gid, groups: [...new Set([gid, ...(await groupsOf(uid))])] }
    },
  }
}

async function configuredOwner({ user, group }: DacOptions): Promise<Owner> {
  const uid = user === undefined ? await usualUser() : await userId(user)
  const gid = group === undefined ? await primaryGroup(uid) : await groupId(group)
  if (gid === undefined)
    throw fail('VIR_ERR_INVALID_ARG', `user '${user ?? uid}' has no name and so no group of its own`)
  return { uid, gid }
}

async function usualUser(): Promise<number> {
  for (const name of ['libvirt-qemu', 'qemu']) {
    const uid = await userId(name).catch(() => undefined)
    if (uid !== undefined) return uid
  }
  throw fail('VIR_ERR_INVALID_ARG', "there is neither a user 'libvirt-qemu' nor 'qemu', and no other is configured")
}

/** What is written on files is always made of numbers. */
function ownerOfLabel(label: string): Owner {
  const [, uid, gid] = /^\+(\d+):\+(\d+)$/.exec(label) ?? []
  if (uid === undefined) throw fail('VIR_ERR_INTERNAL_ERROR', `'${label}' is not an owner`)
  return { uid: Number(uid), gid: Number(gid) }
}

function ownerOfFile(path: string): Owner {
  const { uid, gid } = lstatSync(path)
  return { uid, gid }
}

/** Never of what a link leads to: its folder may be another's. */
function changeOwner(path: string, owner: Owner): void {
  try {
    if (!sameOwner(ownerOfFile(path), owner)) lchownSync(path, owner.uid, owner.gid)
  } catch (error) {
    throw fail(
      'VIR_ERR_SYSTEM_ERROR',
      `cannot change the owner of '${path}' to '${formatOwner(owner)}': ${messageOf(error)}`,
      error,
    )
  }
}
