/**
 * A guest that has moved ends, however that may be, while its disks are still on their way. They follow without it: a
 * storage daemon pulls them until they are whole. A transient domain stays that long, shut off, and goes then.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { DomainDef } from '../../conf/domain-def.js'
import { storageOf } from './flags.js'
import type { MigrationRecord } from './record.js'
import { beginStreams } from './target-disks.js'
import type { Qemu } from '../core/qemu.js'
import type { Vm } from '../core/vm.js'

/** ms until a daemon that died is replaced */
const RETRY = 2_000

/** What pulls the disks without their guest works with: the definition that came with them, whatever is defined later. */
export function remainsOf(def: DomainDef, record: MigrationRecord): DomainDef {
  const remains = structuredClone(def)
  delete remains.id
  leaveToHeaders(remains, record)
  return remains
}

/** Of the disks that move the images' headers know what they still lack: a definition that says something else is wrong. */
export function leaveToHeaders(def: DomainDef, { disks }: MigrationRecord): void {
  const moving = new Set(disks.map(({ disk }) => disk))
  for (const { source, target } of def.disks) if (moving.has(target)) delete source?.backingStore
}

/** Whoever had the images open is gone: they are pulled all the same. */
export function goOnWithout(qemu: Qemu, vm: Vm, wait = false): void {
  const incoming = [...qemu.incoming.values()].find(
    ({ record }) => record.uuid === vm.uuid && record.phase === 'streaming' && storageOf(record.flags) === 'stream',
  )
  if (incoming === undefined) return
  qemu.inBackground(`the disks of domain '${vm.name}' without its guest`, async () => {
    if (wait) await delay(RETRY, undefined, { ref: false })
    if (qemu.incoming.has(incoming.record.id)) await beginStreams(qemu, incoming)
  })
}
