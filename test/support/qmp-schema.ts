/**
 * Is a command one that this QEMU takes? A checker made from what QEMU itself answers to `query-qmp-schema`: the
 * introspected types become JSON schemas, checked by ajv.
 */
import { Ajv, type AnySchemaObject, type ErrorObject, type ValidateFunction } from 'ajv'
import type { SchemaInfo } from '../../src/machine/capabilities-schema.js'

export class QmpSchema {
  readonly #commands: ReadonlyMap<string, string>
  readonly #events: ReadonlyMap<string, string>
  readonly #schema: AnySchemaObject
  readonly #validators = new Map<string, ValidateFunction>()
  // discriminated unions are spelled out by hand: ajv's own keyword does not know of a base object's members
  readonly #ajv = new Ajv({ allErrors: true, strict: false })

  /** `entities`: the answer of query-qmp-schema. */
  constructor(entities: readonly SchemaInfo[]) {
    const argumentTypes = (metaType: 'command' | 'event'): Map<string, string> =>
      new Map(
        entities.flatMap((e) => (e['meta-type'] === metaType && 'arg-type' in e ? [[e.name, e['arg-type']]] : [])),
      )
    this.#commands = argumentTypes('command')
    this.#events = argumentTypes('event')
    const types = new Map(entities.map((entity) => [entity.name, entity]))
    const definitions = entities.flatMap((entity) => {
      const schema = typeSchema(entity, types)
      return schema === undefined ? [] : [[entity.name, schema] as const]
    })
    this.#schema = { $id: 'qmp', definitions: Object.fromEntries(definitions) }
    this.#ajv.addSchema(this.#schema)
  }

  /** What is wrong with a command, a sentence for each fault; none when this QEMU takes it. */
  checkCommand(name: string, args: object = {}): string[] {
    const type = this.#commands.get(name)
    if (type === undefined) return [`there is no command '${name}'`]
    return this.#check(type, toldArguments(name, args))
  }

  /** What is wrong with an event's data. */
  checkEvent(name: string, data: object = {}): string[] {
    const type = this.#events.get(name)
    return type === undefined ? [`there is no event '${name}'`] : this.#check(type, data)
  }

  #check(type: string, value: object): string[] {
    let validate = this.#validators.get(type)
    if (validate === undefined) {
      validate = this.#ajv.compile({ $ref: reference(type) })
      this.#validators.set(type, validate)
    }
    if (validate(value)) return []
    // `if` only says again that one of its branches failed
    return (validate.errors ?? []).filter(({ keyword }) => keyword !== 'if').map(sentence)
  }
}

/** Commands that take more than the schema tells (`'gen': false` in QEMU's qdev.json): the arguments that it does tell. */
const openCommands = new Map([['device_add', ['driver', 'bus', 'id']]])

function toldArguments(command: string, args: object): object {
  const told = openCommands.get(command)
  return told ? Object.fromEntries(Object.entries(args).filter(([name]) => told.includes(name))) : args
}

const reference = (type: string): string => `qmp#/definitions/${encodeURIComponent(type)}`
const referTo = (type: string): AnySchemaObject => ({ $ref: reference(type) })

function sentence({ instancePath, message, params }: ErrorObject): string {
  return `${instancePath === '' ? 'arguments' : instancePath} ${message ?? ''} ${JSON.stringify(params)}`.trim()
}

const builtins: Record<string, AnySchemaObject> = {
  string: { type: 'string' },
  number: { type: 'number' },
  int: { type: 'integer' },
  boolean: { type: 'boolean' },
  null: { type: 'null' },
  object: { type: 'object' },
  array: { type: 'array' },
  value: {},
}

type ObjectInfo = Extract<SchemaInfo, { 'meta-type': 'object' }>

/** One introspected type as a JSON schema; commands and events are no types. */
function typeSchema(entity: SchemaInfo, types: ReadonlyMap<string, SchemaInfo>): AnySchemaObject | undefined {
  switch (entity['meta-type']) {
    case 'builtin':
      return builtins[entity['json-type']] ?? {}
    case 'enum':
      return { enum: entity.values }
    case 'array':
      return { type: 'array', items: referTo(entity['element-type']) }
    case 'alternate':
      return { anyOf: entity.members.map(({ type }) => referTo(type)) }
    case 'object':
      return objectSchema(entity, types)
    case 'command':
    case 'event':
      return undefined
  }
}

/** A union is its base and, chosen by the value of the tag, the members of one variant, which may be a union itself. */
function objectSchema({ members, tag, variants }: ObjectInfo, types: ReadonlyMap<string, SchemaInfo>): AnySchemaObject {
  if (tag === undefined || variants === undefined) return closedObject(members)
  const cases = variants.map((variant) => {
    const type = types.get(variant.type)
    const whole = type?.['meta-type'] === 'object' ? { ...type, members: [...members, ...type.members] } : undefined
    return {
      if: hasValue(tag, { const: variant.case }),
      then: whole ? objectSchema(whole, types) : closedObject(members),
    }
  })
  const others = { not: { enum: variants.map((variant) => variant.case) } }
  return {
    type: 'object',
    required: [tag],
    allOf: [...cases, { if: hasValue(tag, others), then: closedObject(members) }],
  }
}

const hasValue = (member: string, schema: AnySchemaObject): AnySchemaObject => ({
  properties: { [member]: schema },
  required: [member],
})

function closedObject(members: ObjectInfo['members']): AnySchemaObject {
  return {
    type: 'object',
    properties: Object.fromEntries(members.map(({ name, type }) => [name, referTo(type)])),
    required: members.filter((member) => !('default' in member)).map(({ name }) => name),
    additionalProperties: false,
  }
}
