import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { DomainDef } from '../../src/conf/domain-def.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import { VirError } from '../../src/error.js'
import { assignAliases, assignSourceIndexes } from '../../src/machine/alias.js'
import { prepareDefinition } from '../../src/machine/definition.js'
import { devicesOf } from '../../src/machine/devices.js'
import { checkSupported } from '../../src/machine/supported.js'
import { requires } from '../support/requires.js'
import { capsWith, commandLines } from './definition-corpus.js'

function supported(xml: string): DomainDef | undefined {
  try {
    const def = parseDomainXml(xml)
    prepareDefinition(def, capsWith())
    checkSupported(def, capsWith())
    return def
  } catch (error) {
    if (!(error instanceof VirError)) throw error
    return undefined
  }
}

test("every device on libvirt's command lines has the alias that we give it", (t) => {
  if (!requires(t, 'env:LIBVIRT_SOURCE')) return
  let compared = 0
  for (const { name, xml, devices } of commandLines()) {
    const def = supported(xml)
    if (!def) continue
    assignAliases(def)
    const ours = new Set(devicesOf(def).map(({ device }) => device.alias))
    const missing = devices.filter(({ id }) => !ours.has(id))
    assert.deepEqual(missing, [], `${name}: libvirt has devices that we do not`)
    compared++
  }
  t.diagnostic(`${compared} definitions compared`)
  assert.ok(compared > 100)
})

test("every image on libvirt's command lines has the number that we give it", (t) => {
  if (!requires(t, 'env:LIBVIRT_SOURCE')) return
  let compared = 0
  for (const { name, xml, devices } of commandLines()) {
    const def = supported(xml)
    if (!def) continue
    assignAliases(def)
    assignSourceIndexes(def)
    for (const { id, drive } of devices) {
      const index = /^libvirt-(\d+)-/.exec(drive ?? '')?.[1]
      if (index === undefined) continue
      assert.equal(def.disks.find(({ alias }) => alias === id)?.source?.index, Number(index), `${name}: ${id}`)
      compared++
    }
  }
  t.diagnostic(`${compared} images compared`)
  assert.ok(compared > 100)
})
