import type { DiskDef, DomainDef, StorageSource } from '../conf/domain-def.js'
import { VIR_DOMAIN_SHUTOFF, VIR_DOMAIN_SHUTOFF_UNKNOWN } from '../constants.gen.js'
import type { DomainRef, DomainState, DriverHost } from '../driver.js'
import { failFrom } from '../error.js'
import { Copied } from './copied.js'
import type { Pull } from './pull.js'

export const fail = failFrom('VIR_FROM_TEST')

/** What exists only while a domain runs. */
export interface Live {
  readonly id: number
  readonly def: DomainDef
  /** when it started (performance.now) */
  readonly since: number
  /** by target dev */
  readonly pulls: Map<string, Pull>
  /** the guest was told to go down (or to come up again) and does so as soon as its CPUs run */
  wanted?: 'shutdown' | 'reboot'
  timer?: NodeJS.Timeout
}

/** A saved running domain. */
export interface Saved {
  def: DomainDef
  running: boolean
}

/** One domain: its persistent definition, its running self, or both. */
export class TestDomain {
  readonly name: string
  readonly uuid: string
  config: DomainDef | undefined
  live: Live | undefined
  managedSave: Saved | undefined
  /** by path of the image: what of it has been copied from its backing images */
  readonly #copied = new Map<string, Copied>()
  autostart = false
  state: DomainState = { state: VIR_DOMAIN_SHUTOFF, reason: VIR_DOMAIN_SHUTOFF_UNKNOWN }

  constructor(name: string, uuid: string) {
    this.name = name
    this.uuid = uuid
  }

  get ref(): DomainRef {
    return { name: this.name, uuid: this.uuid, id: this.live?.id ?? -1 }
  }

  /** The live definition while it runs. */
  get def(): DomainDef {
    const def = this.live?.def ?? this.config
    if (def === undefined) throw noDomain(`uuid '${this.uuid}' (${this.name})`)
    return def
  }

  copiedOf(disk: DiskDef): Copied {
    const path = sourcePath(disk.source)
    const copied = this.#copied.get(path) ?? new Copied()
    this.#copied.set(path, copied)
    return copied
  }

  requireLive(): Live {
    if (this.live === undefined) throw fail('VIR_ERR_OPERATION_INVALID', 'domain is not running')
    return this.live
  }
}

export function noDomain(what: string): Error {
  return fail('VIR_ERR_NO_DOMAIN', `no domain with matching ${what}`)
}

/** All the domains of one connection. */
export class World {
  readonly host: DriverHost
  readonly #domains = new Map<string, TestDomain>()
  #lastId = 0

  constructor(host: DriverHost) {
    this.host = host
  }

  get domains(): TestDomain[] {
    return [...this.#domains.values()]
  }
  add(domain: TestDomain): void {
    this.#domains.set(domain.uuid, domain)
  }
  remove(domain: TestDomain): void {
    this.#domains.delete(domain.uuid)
  }
  find(uuid: string): TestDomain | undefined {
    return this.#domains.get(uuid)
  }
  require({ uuid, name }: DomainRef): TestDomain {
    const domain = this.find(uuid)
    if (domain === undefined) throw noDomain(`uuid '${uuid}' (${name})`)
    return domain
  }
  nextId(): number {
    this.#lastId += 1
    return this.#lastId
  }

  emitLifecycle(ref: DomainRef, event: number, detail: number): void {
    this.host.emit({ kind: 'lifecycle', domain: ref, event, detail })
  }

  /** Nothing of it goes on. */
  close(): void {
    for (const { live } of this.domains) {
      clearTimeout(live?.timer)
      for (const pull of live?.pulls.values() ?? []) pull.freeze()
    }
  }
}

export function sourcePath(source: StorageSource | undefined): string {
  return (source?.type === 'network' ? source.name : source?.path) ?? ''
}

/** By target dev, alias or source path. */
export function findDisk(def: DomainDef, name: string): DiskDef {
  const disk =
    def.disks.find(({ target }) => target === name) ??
    def.disks.find(({ alias, source }) => alias === name || (source !== undefined && sourcePath(source) === name))
  if (disk === undefined)
    throw fail('VIR_ERR_INVALID_ARG', `invalid path '${name}': disk '${name}' not found in domain`)
  return disk
}
