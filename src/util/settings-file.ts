/** Settings in JSON, checked against a schema. */
import { readFileSync } from 'node:fs'
import type { ErrorObject } from 'ajv'
import { errnoOf, failFrom, messageOf, wordsOf } from '../error.js'

const fail = failFrom('VIR_FROM_CONF')

/**
 * What the file says; undefined when it is not there. VIR_ERR_CONF_SYNTAX for what is no JSON or not as `schema` wants it,
 * VIR_ERR_SYSTEM_ERROR when it can't be read.
 */
export async function readSettingsFile<Settings>(path: string, schema: URL): Promise<Settings | undefined> {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot read '${path}': ${wordsOf(error)}`, error)
  }
  let settings: unknown
  try {
    settings = JSON.parse(text)
  } catch (error) {
    throw fail('VIR_ERR_CONF_SYNTAX', `'${path}' is not JSON: ${messageOf(error)}`, error)
  }
  // loaded by those who need it
  const { Ajv } = await import('ajv')
  const validate = new Ajv({ allErrors: true, verbose: true }).compile<Settings>(
    JSON.parse(readFileSync(schema, 'utf8')) as object,
  )
  if (validate(settings)) return settings
  const wrong = [
    ...new Set((validate.errors ?? []).filter(({ keyword }) => !/^(const|oneOf)$/.test(keyword)).map(sentence)),
  ]
  throw fail('VIR_ERR_CONF_SYNTAX', `'${path}': ${wrong.join('; ')}`)
}

function sentence({ keyword, instancePath, params, message, data }: ErrorObject): string {
  const path = instancePath.split('/').slice(1)
  if (keyword === 'additionalProperties')
    return `there is no setting '${nameOf([...path, String(params['additionalProperty'])])}'`
  const words = [
    message ?? 'is wrong',
    ...(keyword === 'enum' ? [(params['allowedValues'] as string[]).join(', ')] : []),
  ]
  const found = typeof data === 'object' ? '' : `, not '${typeof data === 'string' ? data : JSON.stringify(data)}'`
  return `${path.length === 0 ? 'it' : `setting '${nameOf(path)}'`} ${words.join(': ')}${found}`
}

/** 'streams.maxStreams'; of a list the list itself */
const nameOf = (path: readonly string[]): string => path.filter((step) => !/^\d+$/.test(step)).join('.')
