import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { DomainDef } from '../../src/conf/domain-def.js'
import { formatDomainXml } from '../../src/conf/format.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import { assignAliases, assignSourceIndexes } from '../../src/machine/alias.js'
import { prepareDefinition } from '../../src/machine/definition.js'
import { diskXml, domainXml, testCaps } from './definition-caps.js'

function prepared(devices: string, machine = 'pc'): DomainDef {
  const def = parseDomainXml(domainXml(devices, { machine }))
  prepareDefinition(def, testCaps)
  return def
}

const diskAliases = (def: DomainDef): Record<string, string | undefined> =>
  Object.fromEntries(def.disks.map(({ target, alias }) => [target, alias]))

test('disks are called by their place on a drive bus, and by the position of their name elsewhere', () => {
  const def = prepared(
    ["<controller type='scsi' index='0' model='virtio-scsi'/><controller type='scsi' index='1' model='virtio-scsi'/>"]
      .concat(diskXml('vda', 'virtio'), diskXml('vdb', 'virtio'), diskXml('sda', 'scsi'))
      .concat(diskXml('sdb', 'scsi', "<address type='drive' controller='1' bus='0' target='0' unit='2'/>"))
      .concat(diskXml('sdc', 'sata', "<address type='drive' controller='0' bus='0' target='0' unit='1'/>"))
      .concat(diskXml('sdd', 'usb'), diskXml('hda', 'ide'), diskXml('hdd', 'ide'))
      .join(''),
  )
  assignAliases(def)
  assert.deepEqual(diskAliases(def), {
    vda: 'virtio-disk0',
    vdb: 'virtio-disk1',
    sda: 'scsi0-0-0-0',
    sdb: 'scsi1-0-0-2',
    sdc: 'sata0-0-1',
    sdd: 'usb-disk3',
    hda: 'ide0-0-0',
    hdd: 'ide0-1-1',
  })
})

test('a disk on an lsilogic controller has no target in its alias', () => {
  const def = prepared(diskXml('sdb', 'scsi'))
  assignAliases(def)
  assert.deepEqual(diskAliases(def), { sdb: 'scsi0-0-1' })
})

test('the other devices are counted by kind, and the controllers of the machine have its names', () => {
  const devices =
    "<interface type='user'/><interface type='user'/><serial type='pty'/><rng model='virtio'><backend model='random'/></rng>" +
    "<channel type='unix'><target type='virtio' name='a'/></channel><watchdog model='i6300esb'/><graphics type='vnc'/>"
  const def = prepared(devices, 'q35')
  assignAliases(def)
  assert.deepEqual(
    def.interfaces.map(({ alias }) => alias),
    ['net0', 'net1'],
  )
  const controllers = def.controllers.map(({ alias = '' }) => alias)
  assert.deepEqual(controllers.slice(0, 3), ['usb', 'ide', 'pcie.0'])
  const ports = controllers.filter((alias) => alias.startsWith('pci.'))
  assert.deepEqual(
    ports,
    ports.map((_, nth) => `pci.${nth + 1}`),
  )
  assert.equal(controllers.at(-1), 'virtio-serial0')
  assert.equal(def.serials[0]?.alias, 'serial0')
  assert.equal(def.consoles[0]?.alias, 'serial0')
  assert.equal(def.channels[0]?.alias, 'channel0')
  assert.equal(def.inputs[0]?.alias, 'input0')
  assert.equal(def.videos[0]?.alias, 'video0')
  assert.equal(def.memballoon?.alias, 'balloon0')
  assert.equal(def.rngs[0]?.alias, 'rng0')
  assert.equal(def.watchdogs[0]?.alias, 'watchdog0')
})

test("names of the user's own stay through a run", () => {
  const def = prepared(diskXml('vda', 'virtio', "<alias name='ua-root'/>") + diskXml('vdb', 'virtio'))
  assignAliases(def)
  assert.deepEqual(diskAliases(def), { vda: 'ua-root', vdb: 'virtio-disk1' })
})

test('a name that two devices have is refused', () => {
  const def = prepared(diskXml('vda', 'virtio') + diskXml('vdb', 'virtio'))
  for (const disk of def.disks) disk.alias = 'ua-same'
  assert.throws(() => assignAliases(def), { code: 'VIR_ERR_XML_ERROR', message: /'ua-same'/ })
})

test('images are numbered from the last disk to the first, chains found later follow', () => {
  const empty = "<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/></disk>"
  const chain = "<backingStore type='file'><format type='raw'/><source file='/base'/></backingStore>"
  const qcow = `<disk type='file'><driver name='qemu' type='qcow2'/><source file='/top'/>${chain}<target dev='vdb' bus='virtio'/></disk>`
  const def = prepared(diskXml('vda', 'virtio') + qcow + empty)
  const last = assignSourceIndexes(def)
  const [vda, vdb] = def.disks
  assert.deepEqual([vda?.source?.index, vdb?.source?.index, vdb?.source?.backingStore?.index, last], [4, 2, 3, 4])
  if (vda?.source) vda.source.backingStore = { type: 'file', path: '/found', format: 'raw' }
  assert.equal(assignSourceIndexes(def, last), 5)
  assert.equal(vda?.source?.backingStore?.index, 5)
})

test('the parts of a USB 2 controller share its name and number, and are read again', () => {
  const part = (model: string): string => `<controller type='usb' model='${model}'/>`
  const def = prepared(['ich9-ehci1', 'ich9-uhci1', 'ich9-uhci2', 'ich9-uhci3'].map(part).join(''))
  assignAliases(def)
  const usb = parseDomainXml(formatDomainXml(def)).controllers.filter(({ type }) => type === 'usb')
  assert.deepEqual(
    usb.map(({ index, alias }) => [index, alias]),
    Array(4).fill([0, 'usb']),
  )
})
