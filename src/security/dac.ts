/** Users and groups as a security driver (libvirt's security_dac.c): QEMU runs as its own user, who owns what it uses. */
import { chownSync, realpathSync, statSync } from 'node:fs'
import type { DomainDef } from '../conf/domain-def.js'
import { errnoOf, failFrom, messageOf } from '../error.js'
import { LabelMemory, withMetadataLock } from './label-memory.js'
import { formatOwner, groupId, groupsOf, type Owner, parseOwner, primaryGroup, sameOwner, userId } from './owners.js'
import { relabels, seclabelOf, wantedLabel } from './seclabels.js'
import type { LabelTarget, SecurityDriver } from './security-driver.js'

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

/** What restoring an owner needs. */
interface State {
  /** owner before the first domain got the file */
  owner: Owner
  /** owner that the file was given */
  given: Owner
  /** domains that used the file already; null: nothing is written on the file */
  users: number | null
}

const memory = new LabelMemory(MODEL)

/**
 * The driver 'dac'. A `<seclabel model='dac'>` of type static names the user ('+107:+107' or 'user:group'), otherwise it is
 * the one of the options. Images get back the owner that they had when no domain uses them any more. Where nothing can be
 * written on files, those that others may use too (backing images, read-only and shareable disks) keep the user, as in
 * libvirt. Needs root.
 */
export function dacDriver(options: DacOptions = {}): SecurityDriver {
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
      else await give(target, owner, options.rememberOwner ?? true, note)
    },

    restoreImageLabel: (_def, target, state, complete) => giveBack(target, JSON.parse(state) as State, complete),

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

async function give(
  target: LabelTarget,
  given: Owner,
  rememberOwner: boolean,
  note: (state: string) => void,
): Promise<void> {
  const path = realpath(target.path)
  if (path === undefined) throw fail('VIR_ERR_SYSTEM_ERROR', `'${target.path}' does not exist`)
  await withMetadataLock(path, () => {
    const now = ownerOfFile(path)
    if (rememberOwner && memory.isPossible(path)) {
      const users = memory.read(path)
      if (users !== undefined && !sameOwner(now, given))
        throw fail(
          'VIR_ERR_OPERATION_INVALID',
          `'${target.path}' is in use with owner '${formatOwner(now)}', it cannot have '${formatOwner(given)}' as well`,
        )
      const owner = users === undefined ? now : (ownerOfLabel(users.label) ?? now)
      note(JSON.stringify({ owner, given, users: users?.count ?? 0 } satisfies State))
      memory.remember(path, formatOwner(owner))
      try {
        changeOwner(path, given)
      } catch (error) {
        memory.recall(path)
        throw error
      }
      return
    }
    const exclusive = target.kind !== 'backing' && target.kind !== 'boot' && !target.readonly && !target.shared
    if (exclusive) note(JSON.stringify({ owner: now, given, users: null } satisfies State))
    changeOwner(path, given)
  })
}

async function giveBack(target: LabelTarget, state: State, complete: boolean): Promise<void> {
  const path = realpath(target.path)
  if (path === undefined) return
  await withMetadataLock(path, () => {
    const users = state.users === null ? undefined : memory.read(path)
    if (users === undefined) {
      // nothing is counted: never begun, or the host has booted since
      if (sameOwner(ownerOfFile(path), state.given)) changeOwner(path, state.owner)
      return
    }
    if (!complete && users.count <= (state.users ?? 0)) return
    const label = memory.recall(path)
    if (label !== undefined) changeOwner(path, ownerOfLabel(label) ?? state.owner)
  })
}

/** What is written on files is always made of numbers. */
function ownerOfLabel(label: string): Owner | undefined {
  const [, uid, gid] = /^\+(\d+):\+(\d+)$/.exec(label) ?? []
  return uid === undefined ? undefined : { uid: Number(uid), gid: Number(gid) }
}

function ownerOfFile(path: string): Owner {
  const { uid, gid } = statSync(path)
  return { uid, gid }
}

/** Attributes are those of the file, not of a link to it. Undefined: there is no such file. */
function realpath(path: string): string | undefined {
  try {
    return realpathSync(path)
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot find '${path}': ${messageOf(error)}`, error)
  }
}

function changeOwner(path: string, owner: Owner): void {
  try {
    if (!sameOwner(ownerOfFile(path), owner)) chownSync(path, owner.uid, owner.gid)
  } catch (error) {
    throw fail(
      'VIR_ERR_SYSTEM_ERROR',
      `cannot change the owner of '${path}' to '${formatOwner(owner)}': ${messageOf(error)}`,
      error,
    )
  }
}
