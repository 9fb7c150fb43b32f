/** Definitions that are refused: with a code and a sentence, and as if they had never been given. */
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { test, type TestContext } from 'node:test'
import { VIR_DOMAIN_DEFINE_VALIDATE } from '../../src/index.js'
import { diskXml, plainXml, testRoot, virError, type TestRoot } from '../support/domain.js'
import { requires } from '../support/requires.js'

async function isRefused(root: TestRoot, xml: string, refusal: ReturnType<typeof virError>, flags = 0): Promise<void> {
  await assert.rejects(root.conn.domainDefineXML(xml, flags), refusal)
  await assert.rejects(root.conn.domainCreateXML(xml), refusal)
  assert.deepEqual(await root.conn.listAllDomains(), [])
  assert.deepEqual(
    readdirSync(join(root.folder, 'root/etc/qemu')).filter((name) => name !== 'autostart'),
    [],
  )
  assert.deepEqual(readdirSync(join(root.folder, 'root/run/qemu')), [])
}

const plain = plainXml({ name: 'plain', devices: '' })

const refusals: Record<string, [xml: string, refusal: ReturnType<typeof virError>]> = {
  'no XML at all': ['virtual machine, please', virError('VIR_ERR_XML_DETAIL', /./)],
  'XML that breaks off': [plain.slice(0, 200), virError('VIR_ERR_XML_DETAIL', /./)],
  'another document': ['<network><name>x</name></network>', virError('VIR_ERR_XML_ERROR', /network.*domain/)],
  'a domain without a name': [plain.replace('<name>plain</name>', ''), virError('VIR_ERR_NO_NAME', /name/)],
  'a name that would leave the folder': [
    plain.replace('>plain<', '>../plain<'),
    virError('VIR_ERR_XML_ERROR', /'\.\.\/plain'.*'\/'/),
  ],
  'a UUID that is none': [
    plain.replace(/<uuid>.*<\/uuid>/, '<uuid>1234</uuid>'),
    virError('VIR_ERR_XML_ERROR', /uuid/i),
  ],
  'no memory': [
    plain.replace(/<memory unit='KiB'>\d+/, "<memory unit='KiB'>0"),
    virError('VIR_ERR_XML_ERROR', /memory/),
  ],
  'more XML than any domain needs': [
    plain.replace('</domain>', `<description>${'x'.repeat(17 << 20)}</description></domain>`),
    virError('VIR_ERR_OVERFLOW', /the XML is \d+ bytes long, more than the allowed \d+/),
  ],
  'elements nested without end': [
    plain.replace('</domain>', `<metadata>${'<a>'.repeat(5000)}${'</a>'.repeat(5000)}</metadata></domain>`),
    virError('VIR_ERR_XML_DETAIL', /./),
  ],
  'entities that multiply': [
    `<!DOCTYPE domain [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>${plain.replace('>plain<', '>&c;<')}`,
    virError('VIR_ERR_XML_ERROR', /./),
  ],
  'an emulator that is missing': [
    plain.replace('<devices>', '<devices><emulator>/nosuch/qemu-system-x86_64</emulator>'),
    virError('VIR_ERR_SYSTEM_ERROR', /'\/nosuch\/qemu-system-x86_64'/),
  ],
  'an emulator that is none': [
    plain.replace('<devices>', '<devices><emulator>/bin/true</emulator>'),
    virError('VIR_ERR_INTERNAL_ERROR', /'\/bin\/true'/),
  ],
  'a machine that is unknown': [
    plain.replace("machine='q35'", "machine='pdp-11'"),
    virError('VIR_ERR_CONFIG_UNSUPPORTED', /pdp-11/),
  ],
  'an architecture that the emulator is not': [
    plain.replace("arch='x86_64'", "arch='vax'"),
    virError('VIR_ERR_CONFIG_UNSUPPORTED', /vax/),
  ],
  'a hypervisor that is not QEMU': [
    plain.replace("type='qemu'", "type='xen'"),
    virError('VIR_ERR_CONFIG_UNSUPPORTED', /xen/),
  ],
  'devices that we cannot give': [
    plain.replace(
      '<devices>',
      "<devices><hostdev mode='subsystem' type='pci'><source><address domain='0' bus='1' slot='0' function='0'/></source></hostdev>",
    ),
    virError('VIR_ERR_CONFIG_UNSUPPORTED', /hostdev/),
  ],
  'CPU tuning': [
    plain.replace('<devices>', '<cputune><shares>1</shares></cputune><devices>'),
    virError('VIR_ERR_CONFIG_UNSUPPORTED', /cputune/),
  ],
  'two disks with one name': [
    plainXml({ name: 'twice', devices: diskXml('vda', '/a.qcow2') + diskXml('vda', '/b.qcow2') }),
    virError('VIR_ERR_XML_ERROR', /vda/),
  ],
  'a disk without a source': [
    plain.replace('<devices>', "<devices><disk type='file' device='disk'><target dev='vda' bus='virtio'/></disk>"),
    virError('VIR_ERR_NO_SOURCE', /'vda' has no source/),
  ],
  'a disk on a bus that is unknown': [
    plainXml({ name: 'bus', devices: diskXml('vda', '/a.qcow2', { bus: 'tape' }) }),
    virError('VIR_ERR_XML_ERROR', /tape/),
  ],
  'a disk with an image of unknown format': [
    plainXml({ name: 'format', devices: diskXml('vda', '/a.img', { format: 'tape' }) }),
    virError('VIR_ERR_XML_ERROR', /tape/),
  ],
}

for (const [what, [xml, refusal]] of Object.entries(refusals)) {
  test(`refused: ${what}`, async (t: TestContext) => {
    if (!requires(t, 'program:qemu-system-x86_64')) return
    await isRefused(await testRoot(t), xml, refusal)
  })
}

test('kvm where it does not work is refused, at the latest when the domain starts', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const capabilities = await root.conn.getCapabilities()
  if (/<domain type=.kvm./.test(capabilities)) {
    t.skip('needs a host without working KVM')
    return
  }
  const refusal = virError('VIR_ERR_CONFIG_UNSUPPORTED', /'kvm' does not work on this host \(.+\); type 'qemu' does/)
  const start = async (): Promise<void> => {
    const dom = await root.conn.domainDefineXML(plainXml({ name: 'accelerated', devices: '', type: 'kvm' }))
    await dom.create()
  }
  await assert.rejects(start(), refusal)
})

test("what libvirt's schema does not allow is refused only where that is asked for", async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64', 'file:/usr/share/libvirt/schemas/domain.rng')) return
  const root = await testRoot(t)
  const xml = plainXml({ name: 'odd', devices: '' }).replace('<devices>', '<novelty/><devices>')
  const refusal = virError('VIR_ERR_XML_INVALID_SCHEMA', /novelty|schema/)
  await assert.rejects(root.conn.domainDefineXML(xml, VIR_DOMAIN_DEFINE_VALIDATE), refusal)
  assert.deepEqual(await root.conn.listAllDomains(), [])
  const dom = await root.conn.domainDefineXML(xml)
  assert.match(await dom.getXMLDesc(0), /<novelty\/>/)
})

test('a name or UUID of another domain is refused, and that one stays as it is', async (t) => {
  if (!requires(t, 'program:qemu-system-x86_64')) return
  const root = await testRoot(t)
  const first = plainXml({ name: 'first', devices: '' })
  const dom = await root.conn.domainDefineXML(first)
  const before = await dom.getXMLDesc(0)
  const taken = virError('VIR_ERR_OPERATION_FAILED', /already/)
  await assert.rejects(root.conn.domainDefineXML(plainXml({ name: 'first', devices: '' })), taken)
  await assert.rejects(root.conn.domainDefineXML(first.replace('>first<', '>second<')), taken)
  assert.equal(await dom.getXMLDesc(0), before)
  assert.equal((await root.conn.listAllDomains()).length, 1)
})
