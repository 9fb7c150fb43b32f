/** What is made of XML that does not say everything, or says it in other words. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { DiskDef } from '../../src/conf/domain-def.js'
import { formatDomainXml } from '../../src/conf/format.js'
import { inactiveDef } from '../../src/conf/inactive.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import { domainXml } from './support.js'

const memory = (text: string, unit?: string): number =>
  parseDomainXml(
    `<domain type='kvm'><name>a</name><memory${unit === undefined ? '' : ` unit='${unit}'`}>${text}</memory><os><type>hvm</type></os></domain>`,
  ).memory

function disk(inside: string, attributes = ''): DiskDef {
  const [found] = parseDomainXml(domainXml({ devices: `<disk ${attributes}>${inside}</disk>` })).disks
  assert.ok(found)
  return found
}
const targetOnly = (target: string): string => `<source file='/a'/><target dev='${target}'/>`

test('memory is KiB whatever its unit, rounded up', () => {
  const rows: [string, string | undefined, number][] = [
    ['2048', undefined, 2048],
    ['1', 'b', 1],
    ['1025', 'bytes', 2],
    ['1', 'KB', 1],
    ['1000', 'KB', 977],
    ['7', 'k', 7],
    ['7', 'KiB', 7],
    ['1', 'MB', 977],
    ['1', 'M', 1024],
    ['1', 'mib', 1024],
    ['1', 'GB', 976563],
    ['2', 'GiB', 2 * 1024 * 1024],
    ['1', 'T', 1024 ** 3],
    [' 8 ', 'MiB', 8192],
  ]
  for (const [text, unit, kib] of rows) assert.equal(memory(text, unit), kib, `${text} ${unit ?? 'without a unit'}`)
})

test('current memory is the maximum unless it is said, and a little too much of it is cut', () => {
  assert.equal(parseDomainXml(domainXml()).currentMemory, 65536)
  assert.equal(parseDomainXml(domainXml({ top: '<currentMemory>4096</currentMemory>' })).currentMemory, 4096)
  assert.equal(parseDomainXml(domainXml({ top: '<currentMemory>69000</currentMemory>' })).currentMemory, 65536)
})

test('without a size of its own a domain has the memory of its NUMA cells', () => {
  const xml = `<domain type='kvm'><name>a</name><os><type>hvm</type></os>
    <cpu><numa><cell memory='1024'/><cell memory='1' unit='MiB'/></numa></cpu></domain>`
  const def = parseDomainXml(xml)
  assert.equal(def.memory, 2048)
  assert.equal(def.currentMemory, 2048)
  assert.deepEqual(
    def.cpu?.numa.map(({ id }) => id),
    [0, 1],
  )
})

test('the bus of a disk follows from its target and its device', () => {
  const rows = [
    ['vda', '', 'virtio'],
    ['sda', '', 'scsi'],
    ['hda', '', 'ide'],
    ['fda', "device='floppy'", 'fdc'],
    ['sdb', "device='cdrom'", 'scsi'],
  ]
  for (const [target = '', attributes, bus] of rows) assert.equal(disk(targetOnly(target), attributes).bus, bus)
})

test('the format of an image that is not said is raw, of the top image as of an empty drive', () => {
  assert.equal(disk(targetOnly('vda')).source?.format, 'raw')
  assert.equal(disk(`<driver name='qemu'/>${targetOnly('vda')}`).source?.format, 'raw')
  assert.equal(disk(`<driver type='aio'/>${targetOnly('vda')}`).source?.format, 'raw')
  assert.equal(disk("<target dev='hdc'/>", "device='cdrom'").driver.emptyFormat, 'raw')
})

test('a backing chain is open, ended, or goes on', () => {
  const chain = (inside: string): DiskDef => disk(`${inside}${targetOnly('vda')}`)
  assert.equal('backingStore' in (chain('').source ?? {}), false)
  assert.equal(chain('<backingStore/>').source?.backingStore, null)
  const base = "<backingStore type='file'><format type='qcow2'/><source file='/b'/></backingStore>"
  assert.deepEqual(chain(base).source?.backingStore, { type: 'file', path: '/b', format: 'qcow2' })
})

test('a CD-ROM is read-only even if nobody says so', () => {
  assert.equal(disk("<target dev='hdc'/>", "device='cdrom'").readonly, true)
  assert.equal(disk(targetOnly('vda')).readonly, false)
})

test('a UUID and a MAC address that are not said are made up, each time anew', () => {
  const xml = domainXml({ devices: '<interface/>' })
  const [first, second] = [parseDomainXml(xml), parseDomainXml(xml)]
  assert.match(first.uuid, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/)
  assert.match(first.interfaces[0]?.mac ?? '', /^52:54:00(:[0-9a-f]{2}){3}$/)
  assert.notEqual(first.uuid, second.uuid)
  assert.notEqual(first.interfaces[0]?.mac, second.interfaces[0]?.mac)
})

test('controllers without a number get the lowest free one of their type', () => {
  const types = ["type='scsi'", "type='scsi' index='0'", "type='scsi'", "type='usb'", "type='scsi' index='1'"]
  const def = parseDomainXml(domainXml({ devices: types.map((type) => `<controller ${type}/>`).join('') }))
  assert.deepEqual(
    def.controllers.map(({ type, index }) => `${type}${index}`),
    ['scsi2', 'scsi0', 'scsi3', 'usb0', 'scsi1'],
  )
})

test('I/O threads without ids get the lowest free ones', () => {
  const xml = domainXml({ top: "<iothreads>4</iothreads><iothreadids><iothread id='2'/></iothreadids>" })
  assert.deepEqual(
    parseDomainXml(xml).iothreads.map(({ id }) => id),
    [2, 1, 3, 4],
  )
})

test('a unix channel without a path is one that we bind, as an agent channel of virt-install is', () => {
  const xml = domainXml({ devices: "<channel type='unix'><target type='virtio' name='a'/></channel>" })
  assert.deepEqual(parseDomainXml(xml).channels[0]?.source, { type: 'unix', mode: 'bind' })
})

test('a VNC port of -1, or none, is one that is given out', () => {
  const graphics = (attributes: string): unknown => {
    const { port, autoport } =
      parseDomainXml(domainXml({ devices: `<graphics type='vnc' ${attributes}/>` })).graphics[0] ?? {}
    return { port, autoport }
  }
  assert.deepEqual(graphics(''), { port: undefined, autoport: true })
  assert.deepEqual(graphics("port='-1'"), { port: undefined, autoport: true })
  assert.deepEqual(graphics("port='5903'"), { port: 5903, autoport: false })
  assert.deepEqual(graphics("port='5903' autoport='yes'"), { port: 5903, autoport: true })
})

test('elements of other namespaces are not mistaken for our own', () => {
  const def = parseDomainXml(
    domainXml({ attributes: " xmlns:x='urn:x' x:id='9'", top: '<x:title>no</x:title><title>yes</title>' }),
  )
  assert.equal(def.title, 'yes')
  assert.equal(def.id, undefined)
  assert.deepEqual(def.residue, [
    {
      path: '',
      attributes: [
        { name: 'xmlns:x', value: 'urn:x' },
        { name: 'x:id', value: '9' },
      ],
      elements: ["<x:title xmlns:x='urn:x'>no</x:title>"],
    },
  ])
})

test('what is not modelled is residue of the nearest definition, with the way to it', () => {
  const found = disk(
    `<driver type='raw' speed='9'/><source file='/a'><encryption format='luks'/></source><target dev='vda'/><auth username='u'/>`,
    "snapshot='no'",
  )
  assert.deepEqual(found.residue, [
    { path: '', attributes: [{ name: 'snapshot', value: 'no' }], elements: ["<auth username='u'/>"] },
    { path: 'driver', attributes: [{ name: 'speed', value: '9' }] },
  ])
  assert.deepEqual(found.source?.residue, [{ path: '', elements: ["<encryption format='luks'/>"] }])
})

test('metadata is kept to the letter: comments, blanks, CDATA, namespaces from further out', () => {
  const inside = '<m:a xmlns:m="urn:m" b="&lt;&quot;">\n   <!-- why --> <m:c/>\t<![CDATA[<raw>]]></m:a>'
  const def = parseDomainXml(domainXml({ top: `<metadata>\n      ${inside}\n    </metadata>` }))
  assert.deepEqual(def.metadata, [inside])
  const outer = domainXml({ attributes: " xmlns:m='urn:m'", top: '<metadata><m:a/></metadata>' })
  assert.deepEqual(parseDomainXml(outer).metadata, ['<m:a xmlns:m="urn:m"/>'])
})

test('the inactive form keeps aliases and taps of the user, and ports that are not given out', () => {
  const devices = `
    <disk><source file='/a' index='3'/><target dev='vda'/><alias name='ua-root'/></disk>
    <interface type='bridge'><source bridge='b'/><target dev='tap-web'/><alias name='net0'/></interface>
    <interface type='bridge'><source bridge='b'/><target dev='vnet0'/></interface>
    <interface type='ethernet'><target dev='vnet1' managed='no'/></interface>
    <graphics type='vnc' port='5900' autoport='no'/><graphics type='vnc' port='5901' autoport='yes'/>
    <serial type='pty'><source path='/dev/pts/1'/></serial>`
  const def = inactiveDef(parseDomainXml(domainXml({ attributes: " id='4'", devices })))
  assert.equal(def.id, undefined)
  assert.equal(def.disks[0]?.alias, 'ua-root')
  assert.equal(def.disks[0].source?.index, undefined)
  assert.deepEqual(
    def.interfaces.map(({ alias, target }) => [alias, target?.dev]),
    [
      [undefined, 'tap-web'],
      [undefined, undefined],
      [undefined, 'vnet1'],
    ],
  )
  assert.deepEqual(
    def.graphics.map(({ port }) => port),
    [5900, undefined],
  )
  assert.deepEqual(def.serials[0]?.source, { type: 'pty' })
})

test('passwords and cookies are only written where they are asked for', () => {
  const devices = `<graphics type='vnc' passwd='pw1'/>
    <disk type='network'><source protocol='http' name='i'><host name='h'/><cookies><cookie name='c'>pw2</cookie></cookies></source><target dev='vda'/></disk>`
  const def = parseDomainXml(domainXml({ devices }))
  for (const options of [{}, { inactive: true }, { migratable: true }])
    assert.doesNotMatch(formatDomainXml(def, options), /pw[12]/)
  assert.match(formatDomainXml(def, { secure: true }), /pw1/)
  assert.match(formatDomainXml(def, { secure: true }), /pw2/)
})
