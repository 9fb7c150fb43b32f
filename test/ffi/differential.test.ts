/** The same definitions and the same wrong calls, by real libvirt and by our QEMU driver. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { readXml } from '../../src/conf/xml.js'
import type { XmlElement } from '../../src/conf/xml.js'
import * as c from '../../src/index.js'
import { Connect, VirError } from '../../src/index.js'
import type { Domain } from '../../src/index.js'
import { testRoot } from '../support/domain.js'
import { overlay, patternImage } from '../support/images.js'
import { daemonFor } from './support.js'

const MiB = 1024 * 1024
const uuid = '6f0f6c1e-52f0-4a39-9b3c-0a4fd0d5b7a1'

const definitions: Readonly<Record<string, (image: string) => string>> = {
  'a small one': () => `<memory unit='MiB'>64</memory><os><type arch='x86_64' machine='q35'>hvm</type></os>`,
  'disks on every bus': (image) => `<memory unit='MiB'>64</memory><vcpu>2</vcpu>
    <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os><features><acpi/></features>
    <devices>
      <disk type='file' device='disk'><driver name='qemu' type='qcow2' cache='none'/><source file='${image}'/>
        <target dev='vda' bus='virtio'/><serial>one</serial></disk>
      <disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>
      <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='/images/b.raw'/>
        <target dev='sdb' bus='scsi'/></disk>
      <controller type='scsi' model='virtio-scsi'/>
    </devices>`,
  'a guest as people have them': () => `<title>one</title><memory unit='GiB'>1</memory><vcpu>2</vcpu>
    <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type></os>
    <features><acpi/><apic/></features><cpu mode='maximum'/><clock offset='utc'><timer name='rtc' tickpolicy='catchup'/></clock>
    <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
    <devices>
      <serial type='pty'/><console type='pty'/>
      <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
      <interface type='user'><mac address='52:54:00:11:22:33'/><model type='virtio'/></interface>
      <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
      <memballoon model='virtio'/>
    </devices>`,
  'the older machine': (image) => `<memory unit='MiB'>128</memory>
    <os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os>
    <devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='${image}'/>
      <target dev='hda' bus='ide'/></disk></devices>`,
}

const domainXml = (body: string): string =>
  `<domain type='qemu'><name>differential</name><uuid>${uuid}</uuid>${body}</domain>`

/** Which of the elements of one name: controllers are listed in the order of their making, which means nothing. */
function keyOf({ name, attributes }: XmlElement, nth: number): string {
  if (name !== 'controller') return `${name}[${nth}]`
  const of = (wanted: string): string => attributes.find((one) => one.name === wanted)?.value ?? ''
  return `${name}[${of('type')} ${of('index')}]`
}

/** Every element and attribute of a document by its path. */
function flatten(element: XmlElement, path: string, into: Map<string, string>): Map<string, string> {
  into.set(path, element.children.flatMap((child) => (child.kind === 'text' ? child.value.trim() : '')).join(''))
  for (const { name, value } of element.attributes) into.set(`${path}@${name}`, value)
  const counts = new Map<string, number>()
  for (const child of element.children) {
    if (child.kind !== 'element') continue
    const nth = counts.get(child.name) ?? 0
    counts.set(child.name, nth + 1)
    flatten(child, `${path}/${keyOf(child, nth)}`, into)
  }
  return into
}

/** Where the two differ: path, what libvirt has, what we have. */
function differences(real: string, own: string): string[] {
  const [theirs, ours] = [real, own].map((xml) => flatten(readXml(xml), '', new Map()))
  const paths = new Set([...(theirs?.keys() ?? []), ...(ours?.keys() ?? [])])
  return [...paths].flatMap((path) => {
    const [there, here] = [theirs?.get(path), ours?.get(path)]
    return there === here ? [] : [`${path}: libvirt '${there ?? 'nothing'}', virstream '${here ?? 'nothing'}'`]
  })
}

/** Differences that are meant, with the reason. */
const meant: readonly RegExp[] = [
  // sound that goes nowhere, which libvirt adds to every definition, QEMU is not told of
  /^\/devices\[0\]\/audio\[0\].*virstream 'nothing'$/,
]

test('a definition comes back from both element by element alike', async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const own = await testRoot(t)
  const real = await Connect.open(daemon.uri)
  t.after(() => real.close())
  const base = await patternImage(daemon.folder, MiB)
  const image = await overlay(daemon.folder, base.path)
  const found: string[] = []
  for (const [what, body] of Object.entries(definitions)) {
    const both = await Promise.all([real, own.conn].map((conn) => conn.domainDefineXML(domainXml(body(image)))))
    for (const flags of [0, c.VIR_DOMAIN_XML_INACTIVE]) {
      const [theirs = '', ours = ''] = await Promise.all(both.map((dom) => dom.getXMLDesc(flags)))
      const left = differences(theirs, ours).filter((line) => !meant.some((one) => one.test(line)))
      found.push(...left.map((line) => `${what}, flags ${flags}: ${line}`))
    }
    await Promise.all(both.map((dom) => dom.undefine()))
  }
  assert.deepEqual(found, [])
})

const wrongCalls: Readonly<Record<string, (conn: Connect, dom: Domain, folder: string) => Promise<unknown>>> = {
  'a name that is not there': (conn) => conn.domainLookupByName('no such'),
  'a UUID that is not there': (conn) => conn.domainLookupByUUIDString('01234567-89ab-4cde-8f01-23456789abcd'),
  'an id that is not there': (conn) => conn.domainLookupByID(4711),
  'a document that is cut off': (conn) => conn.domainDefineXML('<domain'),
  'another root': (conn) => conn.domainDefineXML('<network/>'),
  'no name': (conn) => conn.domainDefineXML("<domain type='qemu'/>"),
  'no type': (conn) => conn.domainDefineXML('<domain><name>a</name></domain>'),
  'an unknown type': (conn) => conn.domainDefineXML("<domain type='nope'><name>a</name></domain>"),
  'no memory': (conn) => conn.domainDefineXML("<domain type='qemu'><name>a</name><os><type>hvm</type></os></domain>"),
  'no os': (conn) => conn.domainDefineXML("<domain type='qemu'><name>a</name><memory>65536</memory></domain>"),
  'an unknown machine': (conn) =>
    conn.domainDefineXML(
      "<domain type='qemu'><name>a</name><memory>65536</memory><os><type arch='x86_64' machine='nope'>hvm</type></os></domain>",
    ),
  'an unknown flag of the XML': (conn) => conn.domainDefineXML('<domain/>', 1 << 20),
  'the name of another UUID': (conn, dom) =>
    conn.domainDefineXML(
      domainXml(definitions['a small one']?.('') ?? '').replace(dom.uuid, dom.uuid.replace('6', '7')),
    ),
  'suspend of what is off': (_conn, dom) => dom.suspend(),
  'resume of what is off': (_conn, dom) => dom.resume(),
  'shutdown of what is off': (_conn, dom) => dom.shutdown(),
  'reboot of what is off': (_conn, dom) => dom.reboot(),
  'reset of what is off': (_conn, dom) => dom.reset(),
  'destroy of what is off': (_conn, dom) => dom.destroy(),
  'save of what is off': (_conn, dom, folder) => dom.save(`${folder}/saved`),
  'managed save of what is off': (_conn, dom) => dom.managedSave(),
  'restore from nothing': (conn) => conn.domainRestore('/nonexistent/file'),
  'restore from something else': (conn) => conn.domainRestore('/etc/hostname'),
  'statistics of what is off': (_conn, dom) => dom.blockStats('vda'),
  'the size of a disk that is not there': (_conn, dom) => dom.blockInfo('vdz'),
  'a pull on a disk that is not there': (_conn, dom) => dom.blockPull('vdz'),
  'an abort on what is off': (_conn, dom) => dom.blockJobAbort('vda'),
  'a console of what is off': (_conn, dom) => dom.openConsole(),
  'a monitor command to what is off': (_conn, dom) => dom.qemuMonitorCommand('{"execute":"query-status"}'),
}

/** Where the codes differ on purpose: libvirt's, ours. docs/libvirt.md says why. */
const otherCodes: Readonly<Record<string, readonly [string, string]>> = {
  'no type': ['VIR_ERR_INTERNAL_ERROR', 'VIR_ERR_XML_ERROR'],
  'an unknown type': ['VIR_ERR_CONFIG_UNSUPPORTED', 'VIR_ERR_XML_ERROR'],
  'an unknown machine': ['VIR_ERR_XML_ERROR', 'VIR_ERR_CONFIG_UNSUPPORTED'],
}

test('the same wrong call has the same code from both', async (t) => {
  const daemon = await daemonFor(t)
  if (daemon === undefined) return
  const own = await testRoot(t)
  const real = await Connect.open(daemon.uri)
  t.after(() => real.close())
  const base = await patternImage(daemon.folder, MiB)
  const image = await overlay(daemon.folder, base.path)
  const xml = domainXml(definitions['disks on every bus']?.(image) ?? '')
  const codeOf = async (conn: Connect, dom: Domain, what: string): Promise<string> =>
    Promise.resolve(wrongCalls[what]?.(conn, dom, daemon.folder)).then(
      () => 'accepted',
      (error: unknown) => (error instanceof VirError ? error.code : String(error)),
    )
  const found: string[] = []
  const [theirDom, ourDom] = await Promise.all([real.domainDefineXML(xml), own.conn.domainDefineXML(xml)])
  for (const what of Object.keys(wrongCalls)) {
    const [theirs, ours] = [await codeOf(real, theirDom, what), await codeOf(own.conn, ourDom, what)]
    const [wantTheirs, wantOurs] = otherCodes[what] ?? [ours, theirs]
    if (theirs !== wantTheirs || ours !== wantOurs) found.push(`${what}: libvirt ${theirs}, virstream ${ours}`)
  }
  await Promise.all([theirDom.undefine(), ourDom.undefine()])
  assert.deepEqual(found, [])
})
