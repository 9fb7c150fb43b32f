import assert from 'node:assert/strict'
import { readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import type { DomainDef } from '../../src/conf/domain-def.js'
import { formatDomainXml } from '../../src/conf/format.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import { prepareDefinition } from '../../src/machine/definition.js'
import { checkSupported } from '../../src/machine/supported.js'
import { diskXml, domainXml, testCaps } from './definition-caps.js'

const data = join(import.meta.dirname, '../../../test/data/definition')

function prepared(xml: string): DomainDef {
  const def = parseDomainXml(xml)
  prepareDefinition(def, testCaps)
  return def
}

for (const file of readdirSync(data).filter((name) => name.endsWith('.xml') && !name.endsWith('.out.xml'))) {
  test(`${file} is completed as recorded, and for ever`, () => {
    const expected = join(data, file.replace('.xml', '.out.xml'))
    const def = prepared(readFileSync(join(data, file), 'utf8'))
    checkSupported(def, testCaps)
    const xml = formatDomainXml(def, { inactive: true })
    if (process.env['UPDATE']) writeFileSync(expected, xml)
    assert.equal(xml, readFileSync(expected, 'utf8'))
    assert.equal(formatDomainXml(prepared(xml), { inactive: true }), xml)
  })
}

test('a machine keeps its version when a newer QEMU comes', () => {
  const def = prepared(domainXml('', { machine: 'q35' }))
  assert.equal(def.os.machine, 'pc-q35-7.2')
  prepareDefinition(def, {
    ...testCaps,
    machines: [
      { name: 'pc-q35-7.2', maxCpus: 288 },
      { name: 'pc-q35-9.0', alias: 'q35' },
    ],
  })
  assert.equal(def.os.machine, 'pc-q35-7.2')
})

test('a machine that the binary lacks, or that is no PC, is refused by name', () => {
  const refused = (machine: string): unknown =>
    assert.throws(
      () => prepared(domainXml('', { machine })),
      (error) => error instanceof Error && error.message.includes(`'${machine}'`),
    )
  refused('pc-i440fx-99.0')
  refused('microvm')
  refused('isapc')
})

test('other architectures are refused', () => {
  const xml = domainXml('').replace("machine='pc'", "arch='aarch64' machine='virt'")
  assert.throws(() => prepared(xml), { code: 'VIR_ERR_CONFIG_UNSUPPORTED' })
})

test('an address that two devices get is refused with both their names', () => {
  const conflict =
    diskXml('hdb', 'ide', "<address type='drive' controller='0' bus='0' unit='0'/>") + diskXml('hda', 'ide')
  assert.throws(() => prepared(domainXml(conflict)), {
    code: 'VIR_ERR_XML_ERROR',
    message: /disks 'hda' and 'hdb' have the same address/,
  })
})

test('a place of the chipset cannot be taken', () => {
  const net =
    "<interface type='user'><mac address='52:54:00:00:00:01'/><address type='pci' bus='0' slot='1' function='0'/></interface>"
  assert.throws(() => prepared(domainXml(net)), {
    code: 'VIR_ERR_XML_ERROR',
    message: /0000:00:01\.0 is taken by interface '52:54:00:00:00:01', the ISA bridge cannot have it/,
  })
})

test('the IDE controller of a PC is where the chipset has it', () => {
  const ide = "<controller type='ide' index='0'><address type='pci' bus='0' slot='9' function='0'/></controller>"
  assert.throws(() => prepared(domainXml(ide)), { code: 'VIR_ERR_XML_ERROR', message: /must be 0000:00:01\.1/ })
})

test('30 network cards fit on a PC with a bridge, 40 PCI Express disks on a q35 with ports', () => {
  const nets = Array.from(
    { length: 30 },
    (_, nth) => `<interface type='user'><mac address='52:54:00:00:00:${String(nth + 10)}'/></interface>`,
  )
  const pc = prepared(domainXml(nets.join('')))
  assert.deepEqual(
    pc.controllers.filter(({ type }) => type === 'pci').map(({ model }) => model),
    ['pci-root', 'pci-bridge'],
  )
  const letters = [...Array(26).keys()].map((n) => String.fromCharCode(97 + n))
  const targets = [...letters, ...letters.map((letter) => `a${letter}`)].slice(0, 40).map((name) => `vd${name}`)
  const q35 = prepared(domainXml(targets.map((name) => diskXml(name, 'virtio')).join(''), { machine: 'q35' }))
  const places = q35.disks.map(({ address }) => (address?.type === 'pci' ? address.bus : undefined))
  assert.equal(new Set(places).size, 40)
  assert.equal(q35.controllers.filter(({ model }) => model === 'pcie-root-port').length, 43)
})

test('the first console and the first serial device are one', () => {
  const bySerial = prepared(domainXml("<serial type='file'><source path='/tmp/log'/></serial>"))
  assert.deepEqual(bySerial.consoles, [{ source: { type: 'file', path: '/tmp/log' }, targetType: 'serial', port: 0 }])
  const byConsole = prepared(domainXml("<console type='pty'/>"))
  assert.deepEqual(byConsole.serials, [
    { source: { type: 'pty' }, targetType: 'isa-serial', targetModel: 'isa-serial', port: 0 },
  ])
})

test('a pflash loader gets a variable store under the directory of the driver', () => {
  const xml = domainXml('').replace('hvm</type>', "hvm</type><loader readonly='yes' type='pflash'>/fw/code.fd</loader>")
  assert.equal(prepared(xml).os.nvram?.path, '/state/nvram/guest_VARS.fd')
})

test('USB devices get ports in turn and the given ones are kept', () => {
  const devices =
    "<controller type='usb' model='qemu-xhci' ports='3'/>" +
    "<input type='tablet' bus='usb'><address type='usb' bus='0' port='2'/></input>" +
    diskXml('sda', 'usb') +
    diskXml('sdb', 'usb')
  const def = prepared(domainXml(devices))
  assert.deepEqual(
    def.disks.map(({ address }) => address),
    [
      { type: 'usb', bus: 0, port: '1' },
      { type: 'usb', bus: 0, port: '3' },
    ],
  )
  assert.throws(() => prepared(domainXml(devices + diskXml('sdc', 'usb'))), {
    message: /no USB port is free for disk 'sdc'/,
  })
})
