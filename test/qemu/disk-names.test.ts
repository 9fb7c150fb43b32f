import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { DomainDef } from '../../src/conf/domain-def.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import { assignAliases } from '../../src/machine/alias.js'
import { prepareDefinition } from '../../src/machine/definition.js'
import { findDisk } from '../../src/qemu/blocks/disk-names.js'
import { diskXml, domainXml, testCaps } from '../machine/definition-caps.js'

const nbd =
  "<disk type='network'><driver name='qemu' type='raw'/><source protocol='nbd' name='export'><host name='h' port='10809'/></source>" +
  "<target dev='vdc' bus='virtio'/></disk>"
const shared = (target: string): string => diskXml(target, 'virtio').replace(`/images/${target}`, '/images/shared')
const devices = diskXml('vda', 'virtio') + diskXml('sdd', 'usb') + nbd + shared('vdx') + shared('vdy')

function domain(running: boolean): DomainDef {
  const def = parseDomainXml(domainXml(devices))
  prepareDefinition(def, testCaps)
  if (running) assignAliases(def)
  return def
}

for (const running of [true, false]) {
  const state = running ? 'running' : 'inactive'
  for (const [name, target] of [
    ['vda', 'vda'],
    ['virtio-disk0', 'vda'],
    ['/images/vda', 'vda'],
    ['usb-disk3', 'sdd'],
    ['export', 'vdc'],
  ] as const) {
    test(`in the ${state} domain '${name}' is the disk '${target}'`, () => {
      assert.equal(findDisk(domain(running), name).target, target)
    })
  }
}

test('no name is no disk', () => {
  assert.throws(() => findDisk(domain(true), ''), { code: 'VIR_ERR_INVALID_ARG', message: 'path must not be NULL' })
})

test('an unknown name is told back', () => {
  for (const name of ['vdz', '/images/nowhere', 'virtio-disk9', 'VDA', 'vda ']) {
    assert.throws(() => findDisk(domain(true), name), {
      code: 'VIR_ERR_INVALID_ARG',
      message: `invalid path '${name}': disk '${name}' not found in domain`,
    })
  }
})

test('a path that two disks have names neither', () => {
  assert.throws(() => findDisk(domain(true), '/images/shared'), {
    code: 'VIR_ERR_INVALID_ARG',
    message: /'vdx' and 'vdy', use a target/,
  })
})

test("QEMU's own names are refused, with the name to use instead where it is known", () => {
  for (const name of ['drive-virtio-disk0', '/machine/peripheral/virtio-disk0/virtio-backend']) {
    assert.throws(() => findDisk(domain(true), name), {
      code: 'VIR_ERR_INVALID_ARG',
      message: `invalid path '${name}': that is a name inside QEMU, use 'vda' or 'virtio-disk0'`,
    })
  }
  for (const name of ['libvirt-1-format', 'libvirt-2-storage', 'libvirt-CoR-vda', '#block123']) {
    assert.throws(() => findDisk(domain(true), name), {
      code: 'VIR_ERR_INVALID_ARG',
      message: /a name inside QEMU, use a/,
    })
  }
})
