/** Questions to what `query-qmp-schema` answers. Types have numbers for names there, so everything is found from a command on. */

/** SchemaInfo of QEMU's introspect.json, what we read of it. */
export type SchemaInfo =
  | { 'meta-type': 'builtin'; name: string; 'json-type': string }
  | { 'meta-type': 'enum'; name: string; values: string[]; members?: { name: string }[] }
  | { 'meta-type': 'array'; name: string; 'element-type': string }
  | { 'meta-type': 'object'; name: string; members: SchemaMember[]; tag?: string; variants?: SchemaVariant[] }
  | { 'meta-type': 'alternate'; name: string; members: { type: string }[] }
  | {
      'meta-type': 'command'
      name: string
      'arg-type': string
      'ret-type': string
      'allow-oob'?: boolean
      features?: string[]
    }
  | { 'meta-type': 'event'; name: string; 'arg-type': string }
export interface SchemaMember {
  name: string
  type: string
  /** present (null): the member may be left away */
  default?: unknown
}
export interface SchemaVariant {
  case: string
  type: string
}

export class SchemaIndex {
  readonly #entities: ReadonlyMap<string, SchemaInfo>

  constructor(entities: readonly SchemaInfo[]) {
    this.#entities = new Map(entities.map((entity) => [entity.name, entity]))
  }

  hasCommand(name: string): boolean {
    return this.#command(name) !== undefined
  }

  hasEvent(name: string): boolean {
    return this.#entities.get(name)?.['meta-type'] === 'event'
  }

  /** Whether a command takes this argument, by itself or in one of its variants. */
  hasCommandArgument(command: string, argument: string): boolean {
    const type = this.#argumentType(command)
    if (type === undefined) return false
    const variants = (type.variants ?? []).flatMap((variant) => this.#object(variant.type) ?? [])
    return [type, ...variants].some(({ members }) => members.some(({ name }) => name === argument))
  }

  /** A feature flag of a command, e.g. `json-cli` of `device_add`. */
  hasCommandFeature(command: string, feature: string): boolean {
    return this.#command(command)?.features?.includes(feature) ?? false
  }

  /** The values that an enumerated argument of a command can have; none when it is not enumerated. */
  argumentValues(command: string, argument: string): string[] {
    const member = this.#argumentType(command)?.members.find(({ name }) => name === argument)
    const type = member && this.#entities.get(member.type)
    return type?.['meta-type'] === 'enum' ? type.values : []
  }

  #command(name: string): Extract<SchemaInfo, { 'meta-type': 'command' }> | undefined {
    const entity = this.#entities.get(name)
    return entity?.['meta-type'] === 'command' ? entity : undefined
  }

  #argumentType(command: string): Extract<SchemaInfo, { 'meta-type': 'object' }> | undefined {
    return this.#object(this.#command(command)?.['arg-type'] ?? '')
  }

  #object(name: string): Extract<SchemaInfo, { 'meta-type': 'object' }> | undefined {
    const entity = this.#entities.get(name)
    return entity?.['meta-type'] === 'object' ? entity : undefined
  }
}
