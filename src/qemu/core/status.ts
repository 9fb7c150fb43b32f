import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { DomainDef } from '../../conf/domain-def.js'
import type { DomainState } from '../../driver.js'
import { messageOf } from '../../error.js'
import type { Access } from '../access/access.js'
import type { AccessRecord } from '../access/record.js'
import type { BlockJobRecord } from '../blocks/blockjob.js'
import { type Root, writeFileAtomically } from './root.js'
import type { Replacing, StreamHost, Vm } from './vm.js'

/** What a later process must know about a running domain; one file for each, in its run directory. */
export interface DomainStatus {
  version: 1
  /**
   * 'starting': QEMU may or may not have come up when this was written; 'offline': not QEMU but a storage daemon that
   * streams; 'moving': one whose streams are about to go on elsewhere
   */
  phase: 'starting' | 'running' | 'offline' | 'moving'
  name: string
  uuid: string
  id: number
  pid?: number
  startTime?: string
  state: DomainState
  def: DomainDef
  blockJobs: BlockJobRecord[]
  /** see `Guards` in blocks/block-graph.ts */
  guards: [string, number][]
  /** see `ImageHolder` in vm.ts; absent: none */
  staleHeaders?: string[]
  /** see `ImageHolder` */
  replacing?: Replacing
  /** see `ImageHolder` */
  standIn?: string
  /** the guest was asked to power down, to come up again at once */
  rebooting?: boolean
  /** see `Live` */
  booting?: boolean
  /** see `Live` */
  saving?: { path: string; resume: boolean }
  /** see `Live` */
  halted?: boolean
  /** what is to be taken back when it ends; absent: nothing */
  access?: AccessRecord
}

const file = (runDir: string): string => join(runDir, 'status.json')

export function saveStarting(runDir: string, id: number, vm: Vm, def: DomainDef, access?: Access): void {
  mkdirSync(runDir, { recursive: true, mode: 0o700 })
  const status: DomainStatus = {
    version: 1,
    phase: 'starting',
    name: vm.name,
    uuid: vm.uuid,
    id,
    state: vm.state,
    def,
    blockJobs: [],
    guards: [],
    ...(access?.record && { access: access.record }),
  }
  writeStatus(runDir, status)
}

/** A number of a run directory in `dir` that none has. */
export const freeId = (dir: string): number => Math.max(0, ...readdirSync(dir).map((name) => Number(name) || 0)) + 1

/**
 * No process has the images: the persistent definition and the header of the disk are about to follow `def`. Answers the run
 * directory, which is to be removed when they have; otherwise the next process that opens the root sees to it.
 */
export function saveAtRest(
  { offlineDir }: Root,
  { name, uuid, state }: Vm,
  def: DomainDef,
  replacing: Replacing,
): string {
  const id = freeId(offlineDir)
  const runDir = join(offlineDir, String(id))
  mkdirSync(runDir, { mode: 0o700 })
  const none = { blockJobs: [], guards: [] }
  const staleHeaders = [replacing.target]
  writeStatus(runDir, { version: 1, phase: 'offline', name, uuid, id, state, def, ...none, staleHeaders, replacing })
  return runDir
}

const phaseOf = (host: StreamHost): DomainStatus['phase'] => {
  if (host.mode === 'full') return 'running'
  return host.moving === true ? 'moving' : 'offline'
}

export function saveStatus(vm: Vm, host: StreamHost): void {
  const { id, pid, startTime, def, guards } = host
  const { name, uuid, state } = vm
  const blockJobs = host.blockJobs.records()
  const rebooting = host.mode === 'full' && host.rebooting === true
  const status: DomainStatus = {
    version: 1,
    phase: phaseOf(host),
    name,
    uuid,
    id,
    pid,
    startTime,
    state,
    def,
    blockJobs,
    guards: [...guards],
    ...(host.staleHeaders.size > 0 && { staleHeaders: [...host.staleHeaders] }),
    ...(host.replacing && { replacing: host.replacing }),
    ...(host.standIn !== undefined && { standIn: host.standIn }),
    rebooting,
    ...(host.mode === 'full' && host.booting === true && { booting: true }),
    ...(host.mode === 'full' && host.saving && { saving: host.saving }),
    ...(host.mode === 'full' && host.halted === true && { halted: true }),
    ...(host.access.record && { access: host.access.record }),
  }
  writeStatus(host.runDir, status)
}

/** Where what was done is done, written down or not: the next thing that is written says it all. */
export function saveStatusOrSay(vm: Vm, live: StreamHost, warn: (text: string) => void): void {
  try {
    saveStatus(vm, live)
  } catch (error) {
    warn(messageOf(error))
  }
}

export function writeStatus(runDir: string, status: DomainStatus): void {
  writeFileAtomically(file(runDir), JSON.stringify(status))
}

/** The status first: what is left when we are killed in the middle is a directory in which nothing can run. */
export function removeRunDir(runDir: string): void {
  rmSync(file(runDir), { force: true })
  rmSync(runDir, { recursive: true, force: true })
}

/** Enough of one to tell what ran, and where; what we wrote is whole, see `writeFileAtomically`. */
function isStatus(status: Partial<DomainStatus> | null): status is DomainStatus {
  return (
    status?.version === 1 &&
    ['starting', 'running', 'offline', 'moving'].includes(status.phase ?? '') &&
    typeof status.uuid === 'string' &&
    typeof status.name === 'string' &&
    Number.isSafeInteger(status.id) &&
    Array.isArray(status.def?.disks) &&
    Array.isArray(status.def.interfaces) &&
    Array.isArray(status.blockJobs) &&
    Array.isArray(status.guards)
  )
}

/** The ids of all run directories, also of those whose status cannot be read: a QEMU may run in them still. */
export function idsInUse(root: Root): number[] {
  return readdirSync(root.statusDir)
    .filter((name) => /^[1-9][0-9]{0,9}$/.test(name))
    .map(Number)
}

/**
 * Every status in `dir`: of a domain that ran (or was streamed) when it was last written. What cannot be read is reported
 * and left where it is; a directory without any is what a killed process had not yet filled, or not yet removed.
 */
export function loadStatuses(dir: string, warn: (text: string) => void): { status: DomainStatus; runDir: string }[] {
  const found = []
  for (const name of readdirSync(dir)) {
    const runDir = join(dir, name)
    if (!existsSync(file(runDir))) {
      if (/^[1-9][0-9]*$/.test(name)) removeRunDir(runDir)
      continue
    }
    try {
      const status = JSON.parse(readFileSync(file(runDir), 'utf8')) as Partial<DomainStatus> | null
      if (!isStatus(status)) throw new Error('not a status of this version')
      found.push({ status, runDir })
    } catch (error) {
      warn(`cannot read '${file(runDir)}', what runs there is left alone: ${messageOf(error)}`)
    }
  }
  return found
}
