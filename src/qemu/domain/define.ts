/** Definitions come and go. */
import { existsSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import type { DomainDef } from '../../conf/domain-def.js'
import { parseDomainXml } from '../../conf/parse.js'
import { validateDomainXml } from '../../conf/validate.js'
import * as c from '../../constants.gen.js'
import type { DomainRef, HypervisorOps } from '../../driver.js'
import { failFrom } from '../../error.js'
import { checkBootStreams } from '../streams/boot-streams.js'
import { checkDomainName, deleteConfig, saveConfig } from '../core/config.js'
import { prepareDefinition } from '../../machine/definition.js'
import { emitLifecycle } from '../core/emit.js'
import { checkFlags } from '../core/flags.js'
import { discardManagedSave, hasManagedSave } from '../core/managed-save.js'
import type { Qemu } from '../core/qemu.js'
import { startVm, type StartOptions } from './start.js'
import { checkSupported } from '../../machine/supported.js'
import { requireAtHome } from '../core/vm-job.js'
import { Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** XML of a user, made whole: defaults and addresses filled in, refused when it asks for what we can't do. */
export async function readDefinition(qemu: Qemu, xml: string, validate: boolean): Promise<DomainDef> {
  if (validate) validateDomainXml(xml)
  const def = parseDomainXml(xml)
  delete def.id
  checkDomainName(def.name)
  const caps = await qemu.capabilities.get(def.emulator)
  prepareDefinition(def, caps)
  checkSupported(def, caps)
  checkBootStreams(def)
  return def
}

/**
 * The domain that a definition is about: name and UUID must both be new, or both of the same domain. VIR_ERR_INVALID_CONN where
 * the root was let go of while it was read: what came into it now would be nobody's.
 */
export function match(qemu: Qemu, def: DomainDef): Vm | undefined {
  if (qemu.closing) throw fail('VIR_ERR_INVALID_CONN', 'the connection is closed')
  const known = qemu.find(def.uuid)
  if (known !== undefined && known.name !== def.name) {
    const text = `domain '${known.name}' is already defined with uuid ${def.uuid}`
    throw fail('VIR_ERR_OPERATION_FAILED', text)
  }
  const namesake = qemu.findByName(def.name)
  if (namesake !== undefined && namesake !== known)
    throw fail('VIR_ERR_OPERATION_FAILED', `domain '${def.name}' already exists with uuid ${namesake.uuid}`)
  return known
}

/** After the wait for the domain's job: nobody may have taken its name or UUID since `match`, or closed the root. */
export function requireStill(qemu: Qemu, def: DomainDef, vm: Vm): void {
  const now = match(qemu, def)
  if (now !== undefined && now !== vm)
    throw fail('VIR_ERR_OPERATION_FAILED', `domain '${def.name}' was defined anew meanwhile`)
}

/** virDomainDefineXMLFlags */
export async function define(qemu: Qemu, xml: string, flags: number): Promise<DomainRef> {
  checkFlags('domainDefineXML', flags)
  const def = await readDefinition(qemu, xml, (flags & c.VIR_DOMAIN_DEFINE_VALIDATE) !== 0)
  const known = match(qemu, def)
  if (known === undefined) {
    const vm = new Vm(def.name, def.uuid)
    saveConfig(qemu.root, def)
    vm.config = def
    qemu.add(vm)
    emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_DEFINED, c.VIR_DOMAIN_EVENT_DEFINED_ADDED)
    return vm.ref
  }
  await known.jobs.run('modify', () => {
    requireStill(qemu, def, known)
    saveConfig(qemu.root, def)
    const detail = known.config === undefined ? c.VIR_DOMAIN_EVENT_DEFINED_ADDED : c.VIR_DOMAIN_EVENT_DEFINED_UPDATED
    known.config = def
    qemu.add(known)
    emitLifecycle(qemu, known, c.VIR_DOMAIN_EVENT_DEFINED, detail)
    return Promise.resolve()
  })
  return known.ref
}

/** virDomainCreateXML: a domain that exists as long as it runs, or one run of a persistent one with another definition. */
export async function createTransient(qemu: Qemu, xml: string, flags: number): Promise<DomainRef> {
  checkFlags('domainCreateXML', flags)
  const def = await readDefinition(qemu, xml, (flags & c.VIR_DOMAIN_START_VALIDATE) !== 0)
  return startAs(qemu, def, { paused: (flags & c.VIR_DOMAIN_START_PAUSED) !== 0 })
}

/** Starts the domain that `def` is about, one that is there or a new one, as one of its jobs. */
export async function startAs(qemu: Qemu, def: DomainDef, options: StartOptions): Promise<DomainRef> {
  const vm = match(qemu, def) ?? new Vm(def.name, def.uuid)
  if (vm.live !== undefined) throw fail('VIR_ERR_OPERATION_INVALID', `domain '${def.name}' is already active`)
  // at once: who comes next with the same name finds this one
  qemu.add(vm)
  await vm.jobs.run('create', async () => {
    if (vm.live !== undefined) throw fail('VIR_ERR_OPERATION_INVALID', `domain '${def.name}' is already active`)
    requireStill(qemu, def, vm)
    // it is gone again when the call before this one could not start it
    qemu.add(vm)
    try {
      await startVm(qemu, vm, def, options)
    } catch (error) {
      qemu.forgetIfNothing(vm)
      throw error
    }
  })
  return vm.ref
}

export function undefine(qemu: Qemu, vm: Vm, flags: number): void {
  const config = vm.config
  if (config === undefined) throw fail('VIR_ERR_OPERATION_INVALID', 'cannot undefine transient domain')
  if (vm.offline !== undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `cannot undefine domain '${vm.name}' while a disk of it is streamed`)
  const saved = hasManagedSave(qemu, vm)
  if (saved && (flags & c.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE) === 0)
    throw fail('VIR_ERR_OPERATION_INVALID', 'Refusing to undefine while domain managed save image exists')
  // may refuse, so nothing is removed before it
  removeVariableStore(qemu, config, flags)
  if (saved) discardManagedSave(qemu, vm)
  deleteConfig(qemu.root, vm.name)
  vm.config = undefined
  vm.autostart = false
  qemu.forgetIfNothing(vm)
  emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_UNDEFINED, c.VIR_DOMAIN_EVENT_UNDEFINED_REMOVED)
}

function removeVariableStore(qemu: Qemu, config: DomainDef, flags: number): void {
  const chosen = config.os.firmware === 'efi' ? join(qemu.root.nvramDir, `${config.name}_VARS.fd`) : undefined
  const store = config.os.nvram?.path ?? chosen
  if (store === undefined || !existsSync(store) || (flags & c.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM) !== 0) return
  if ((flags & c.VIR_DOMAIN_UNDEFINE_NVRAM) === 0)
    throw fail('VIR_ERR_OPERATION_INVALID', 'cannot undefine domain with nvram')
  rmSync(store, { force: true })
}

export function defineOps(qemu: Qemu): Pick<HypervisorOps, 'domainDefineXML' | 'domainUndefine'> {
  return {
    domainDefineXML: (xml, flags) => define(qemu, xml, flags),
    async domainUndefine(ref, flags) {
      checkFlags('domainUndefine', flags)
      const vm = qemu.require(ref)
      await vm.jobs.run('undefine', () => {
        requireAtHome(qemu, vm)
        undefine(qemu, vm, flags)
        return Promise.resolve()
      })
    },
  }
}
