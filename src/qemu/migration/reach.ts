/** Sockets of a migration that a QEMU connects to: it may be another user, or have a label of its own. */
import { Access } from '../access/access.js'
import { openTheWay } from '../access/targets.js'
import type { DomainDef } from '../../conf/domain-def.js'
import { migrationDir } from './record.js'
import type { Qemu } from '../core/qemu.js'

/** Makes listening sockets that whoever runs `def`, which has its labels, may connect to. */
export function listenerFor(qemu: Qemu, def: DomainDef): (path: string, backlog: number) => number {
  const access = new Access(qemu.access, def, (text) => qemu.warn(text))
  return (path, backlog) => access.listen(path, backlog)
}

/** Whoever runs `def` may connect to the socket `path` of the migration `id`; the socket goes with the migration. */
export async function letReach(qemu: Qemu, def: DomainDef, id: string, path: string): Promise<void> {
  if (qemu.access.security.isEmpty) return
  openTheWay(qemu.root.path, migrationDir(qemu.root, id))
  await new Access(qemu.access, def, (text) => qemu.warn(text)).grantRuntime(path)
}
