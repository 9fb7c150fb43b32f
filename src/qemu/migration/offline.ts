/** VIR_MIGRATE_OFFLINE: the definition of a domain goes to another host, nothing else does. */
import { parseDomainXml } from '../../conf/parse.js'
import { formatDomainXml } from '../../conf/format.js'
import * as c from '../../constants.gen.js'
import type { DomainRef, MigrateParams } from '../../driver.js'
import { failFrom } from '../../error.js'
import { type MigrationCookie, newId, newKey, readCookie, thisHost, writeCookie } from '../../migration/cookie.js'
import { checkAbi } from '../../machine/abi.js'
import { define, match, readDefinition, undefine } from '../domain/define.js'
import type { Qemu } from '../core/qemu.js'
import type { Vm } from '../core/vm.js'
import { requireAtHome } from '../core/vm-job.js'

const fail = failFrom('VIR_FROM_QEMU')

/** Under the domain's job: the definition as it is kept, also of one that runs (which goes on as it does). */
export function beginOffline(qemu: Qemu, vm: Vm, { persistXML, destinationXML }: MigrateParams): MigrationOffer {
  requireAtHome(qemu, vm)
  const config = vm.requireConfig()
  const own = formatDomainXml(config, { inactive: true, secure: true, migratable: true })
  return {
    xml: persistXML ?? destinationXML ?? own,
    cookie: writeCookie({
      ...{ version: 1, id: newId(), key: newKey(), host: thisHost(), name: vm.name, uuid: vm.uuid },
      abi: formatDomainXml(config, { inactive: true, migratable: true }),
    }),
  }
}

interface MigrationOffer {
  xml: string
  cookie: string
}

/** Whether it can be had here; nothing has changed yet. */
export async function prepareOffline(
  qemu: Qemu,
  { destinationName }: MigrateParams,
  { cookie: text, xml }: MigrationOffer,
): Promise<{ cookie: string; uri: string }> {
  const { id, key, abi } = await readCookie(text)
  const def = await readDefinition(qemu, xml, false)
  if (abi !== undefined) checkAbi(parseDomainXml(abi), def)
  if (destinationName !== undefined) def.name = destinationName
  refuseActive(match(qemu, def))
  const persistentXml = formatDomainXml(def, { inactive: true, secure: true })
  return { cookie: writeCookie({ version: 1, id, key, host: thisHost(), persistentXml }), uri: '' }
}

function refuseActive(vm: Vm | undefined): void {
  if (vm?.live !== undefined || vm?.offline !== undefined || vm?.remains !== undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `domain '${vm.name}' is already active`)
}

/** It is defined here; one that was, and does not run, is replaced, as libvirt does it. */
export async function finishOffline(qemu: Qemu, { persistentXml }: MigrationCookie): Promise<DomainRef> {
  if (persistentXml === undefined)
    throw fail('VIR_ERR_INVALID_ARG', 'the cookie of an offline migration lacks the definition')
  const { uuid } = parseDomainXml(persistentXml)
  refuseActive(qemu.find(uuid))
  return define(qemu, persistentXml, 0)
}

/** Under the domain's job: it is there. */
export function confirmOffline(qemu: Qemu, vm: Vm, flags: number): Promise<void> {
  if ((flags & c.VIR_MIGRATE_UNDEFINE_SOURCE) !== 0 && vm.config !== undefined)
    undefine(qemu, vm, c.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | c.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
  return Promise.resolve()
}
