/** Definitions come and go; a run can be saved and gone on with. */
import { readFileSync, writeFileSync } from 'node:fs'
import type { DomainDef } from '../conf/domain-def.js'
import { formatDomainXml } from '../conf/format.js'
import { parseDomainXml } from '../conf/parse.js'
import * as c from '../constants.gen.js'
import type { HypervisorOps } from '../driver.js'
import { wordsOf } from '../error.js'
import { startDomain, stopDomain } from './lifecycle.js'
import { fail, TestDomain } from './world.js'
import type { Saved, World } from './world.js'

/** The domain that a definition is about: name and UUID must both be new, or both of the same domain. */
function match(world: World, { name, uuid }: DomainDef): TestDomain | undefined {
  const known = world.find(uuid)
  if (known !== undefined && known.name !== name)
    throw fail('VIR_ERR_OPERATION_FAILED', `domain '${known.name}' is already defined with uuid ${uuid}`)
  const namesake = world.domains.find((domain) => domain.name === name)
  if (namesake !== undefined && namesake !== known)
    throw fail('VIR_ERR_OPERATION_FAILED', `domain '${name}' already exists with uuid ${namesake.uuid}`)
  return known
}

function readDefinition(xml: string): DomainDef {
  const def = parseDomainXml(xml)
  delete def.id
  return def
}

export function define(world: World, xml: string): TestDomain {
  const def = readDefinition(xml)
  const known = match(world, def)
  const domain = known ?? new TestDomain(def.name, def.uuid)
  const detail = domain.config === undefined ? c.VIR_DOMAIN_EVENT_DEFINED_ADDED : c.VIR_DOMAIN_EVENT_DEFINED_UPDATED
  domain.config = def
  world.add(domain)
  world.emitLifecycle(domain.ref, c.VIR_DOMAIN_EVENT_DEFINED, detail)
  return domain
}

/** Runs `def` as a domain that is gone when it stops, unless it is defined too. */
function run(world: World, def: DomainDef, how: { paused: boolean; restored?: boolean }): TestDomain {
  const known = match(world, def)
  if (known?.live !== undefined) throw fail('VIR_ERR_OPERATION_INVALID', `domain '${def.name}' is already active`)
  const domain = known ?? new TestDomain(def.name, def.uuid)
  world.add(domain)
  startDomain(world, domain, def, how)
  return domain
}

function undefine(world: World, domain: TestDomain, flags: number): void {
  if (domain.config === undefined) throw fail('VIR_ERR_OPERATION_INVALID', 'cannot undefine transient domain')
  if (domain.managedSave !== undefined && (flags & c.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE) === 0)
    throw fail('VIR_ERR_OPERATION_INVALID', 'Refusing to undefine while domain managed save image exists')
  domain.managedSave = undefined
  domain.config = undefined
  domain.autostart = false
  if (domain.live === undefined) world.remove(domain)
  world.emitLifecycle(domain.ref, c.VIR_DOMAIN_EVENT_UNDEFINED, c.VIR_DOMAIN_EVENT_UNDEFINED_REMOVED)
}

/** What a save of the domain holds; the domain has no stream then. */
function savedState(domain: TestDomain, flags: number): Saved {
  const live = domain.requireLive()
  if (live.pulls.size > 0) throw fail('VIR_ERR_OPERATION_INVALID', 'domain has active block job')
  const wasRunning = domain.state.state === c.VIR_DOMAIN_RUNNING
  const running = (flags & c.VIR_DOMAIN_SAVE_RUNNING) !== 0 || (wasRunning && (flags & c.VIR_DOMAIN_SAVE_PAUSED) === 0)
  return { def: live.def, running }
}

function endSaved(world: World, domain: TestDomain): void {
  const live = domain.requireLive()
  stopDomain(world, domain, live, c.VIR_DOMAIN_SHUTOFF_SAVED, c.VIR_DOMAIN_EVENT_STOPPED_SAVED)
}

function writeSaved(path: string, { def, running }: Saved): void {
  try {
    writeFileSync(path, JSON.stringify({ running, xml: formatDomainXml(def, { secure: true, inactive: true }) }))
  } catch (error) {
    throw fail('VIR_ERR_OPERATION_FAILED', `cannot write '${path}': ${wordsOf(error)}`, error)
  }
}

function readSaved(path: string): { running: boolean; xml: string } {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as { running: boolean; xml: string }
  } catch (error) {
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot read a saved domain from '${path}': ${wordsOf(error)}`, error)
  }
}

function restore(world: World, path: string, xml: string | undefined, flags: number): TestDomain {
  const saved = readSaved(path)
  const forced = (flags & (c.VIR_DOMAIN_SAVE_RUNNING | c.VIR_DOMAIN_SAVE_PAUSED)) !== 0
  const running = forced ? (flags & c.VIR_DOMAIN_SAVE_RUNNING) !== 0 : saved.running
  return run(world, readDefinition(xml ?? saved.xml), { paused: !running, restored: true })
}

type DefineOps = Pick<
  HypervisorOps,
  | 'domainDefineXML'
  | 'domainCreateXML'
  | 'domainUndefine'
  | 'domainSave'
  | 'domainRestore'
  | 'domainManagedSave'
  | 'domainHasManagedSaveImage'
  | 'domainManagedSaveRemove'
>

/* eslint-disable @typescript-eslint/require-await -- operations are async, and nothing here has to wait */
export function defineOps(world: World): DefineOps {
  return {
    domainDefineXML: async (xml) => define(world, xml).ref,
    domainCreateXML: async (xml, flags) =>
      run(world, readDefinition(xml), { paused: (flags & c.VIR_DOMAIN_START_PAUSED) !== 0 }).ref,
    domainUndefine: async (ref, flags) => undefine(world, world.require(ref), flags),
    async domainSave(ref, to, xml, flags) {
      const domain = world.require(ref)
      const saved = savedState(domain, flags)
      writeSaved(to, xml === undefined ? saved : { ...saved, def: readDefinition(xml) })
      endSaved(world, domain)
    },
    domainRestore: async (from, xml, flags) => restore(world, from, xml, flags).ref,
    async domainManagedSave(ref, flags) {
      const domain = world.require(ref)
      const saved = savedState(domain, flags)
      if (domain.config === undefined)
        throw fail('VIR_ERR_OPERATION_INVALID', 'cannot do managed save for transient domain')
      domain.managedSave = saved
      endSaved(world, domain)
    },
    domainHasManagedSaveImage: async (ref) => world.require(ref).managedSave !== undefined,
    async domainManagedSaveRemove(ref) {
      world.require(ref).managedSave = undefined
    },
  }
}
