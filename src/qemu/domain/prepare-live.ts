/** From a definition to what only a running domain has. */
import type { DomainDef } from '../../conf/domain-def.js'
import { failFrom } from '../../error.js'
import { resolveBackingChain } from '../../storage/chain.js'
import { assignAliases, assignSourceIndexes } from '../../machine/alias.js'
import { settleBaseTimeouts } from '../streams/base-timeout.js'
import type { QemuCapabilities } from '../../machine/capabilities.js'
import { prepareDefinition } from '../../machine/definition.js'
import { chooseFirmware } from '../../machine/firmware.js'
import type { Qemu } from '../core/qemu.js'
import { checkLinks } from '../streams/checks.js'

const fail = failFrom('VIR_FROM_QEMU')

/** Whole backing chains, aliases, indexes; what the host lacks is found out here. */
export async function prepareLive(qemu: Qemu, def: DomainDef, caps: QemuCapabilities): Promise<void> {
  trustHeaders(qemu, def)
  chooseFirmware(def)
  prepareDefinition(def, caps)
  if (def.virtType === 'kvm' && !(await caps.kvmWorks()))
    throw fail(
      'VIR_ERR_CONFIG_UNSUPPORTED',
      `domain type 'kvm' does not work on this host (${await caps.kvmReason()}); type 'qemu' does`,
    )
  for (const disk of def.disks) {
    if (disk.source === undefined) continue
    try {
      await resolveBackingChain(disk.source)
      // QEMU would try for some seconds, and then not say which server it was
      await checkLinks(disk)
    } catch (error) {
      if (disk.source.startupPolicy !== 'optional' || disk.device === 'disk') throw error
      delete disk.source
    }
  }
  settleBaseTimeouts(def, qemu.baseTimeout)
  assignAliases(def)
  assignSourceIndexes(def)
}

/** A definition may say that an image has no backing image, or another one, while its header names the source still. */
function trustHeaders(qemu: Qemu, def: DomainDef): void {
  const made = new Set([...qemu.incoming.values()].flatMap(({ record }) => record.made ?? []))
  for (const { source } of def.disks) if (source?.type === 'file' && made.has(source.path)) delete source.backingStore
}
