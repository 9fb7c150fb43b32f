import assert from 'node:assert/strict'
import { test } from 'node:test'
import { formatDomainXml } from '../../src/conf/format.js'
import { parseDomainXml } from '../../src/conf/parse.js'
import type { VirErrorCode } from '../../src/error.js'
import { prepareDefinition } from '../../src/machine/definition.js'
import { checkSupported } from '../../src/machine/supported.js'
import { diskXml, domainXml, testCaps } from './definition-caps.js'

function check(xml: string, caps = testCaps): string {
  const def = parseDomainXml(xml)
  prepareDefinition(def, caps)
  checkSupported(def, caps)
  return formatDomainXml(def)
}

interface Refused {
  what: string
  xml: string
  says: RegExp
  code?: VirErrorCode
}

const disk = (driver: string, more = '', bus = 'virtio', target = 'vda'): string =>
  domainXml(
    `<disk type='file'><driver name='qemu' ${driver}/><source file='/i'/><target dev='${target}' bus='${bus}'/>${more}</disk>`,
  )
const domainRest = (rest: string): string => domainXml('', { rest })
const q35 = (devices: string): string => domainXml(devices, { machine: 'q35' })
const net = (attributes: string, content = ''): string =>
  domainXml(`<interface ${attributes}><mac address='52:54:00:00:00:01'/>${content}</interface>`)

const refused: Refused[] = [
  // known to libvirt, not to us
  {
    what: 'a host device',
    xml: domainXml(
      "<hostdev mode='subsystem' type='usb'><source><vendor id='0x1'/><product id='0x2'/></source></hostdev>",
    ),
    says: /<hostdev>/,
  },
  {
    what: 'a TPM',
    xml: domainXml("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>"),
    says: /<tpm>/,
  },
  {
    what: 'a shared file system',
    xml: domainXml("<filesystem type='mount'><source dir='/'/><target dir='x'/></filesystem>"),
    says: /<filesystem>/,
  },
  { what: 'a redirected device', xml: domainXml("<redirdev bus='usb' type='spicevmc'/>"), says: /<redirdev>/ },
  { what: 'shared memory', xml: domainXml("<shmem name='x'/>"), says: /<shmem>/ },
  {
    what: 'a memory device',
    xml: domainXml("<memory model='dimm'><target><size>1</size></target></memory>"),
    says: /<memory>/,
  },
  { what: 'vsock', xml: domainXml("<vsock model='virtio'><cid auto='yes'/></vsock>"), says: /<vsock>/ },
  { what: 'sound', xml: domainXml("<sound model='ich9'/>"), says: /<sound>/ },
  { what: 'a smartcard', xml: domainXml("<smartcard mode='host'/>"), says: /<smartcard>/ },
  {
    what: 'launch security',
    xml: domainRest("<launchSecurity type='sev'><policy>1</policy></launchSecurity>"),
    says: /<launchSecurity>/,
  },
  { what: 'CPU tuning', xml: domainRest('<cputune><shares>1</shares></cputune>'), says: /<cputune>/ },
  { what: 'memory tuning', xml: domainRest('<memtune><hard_limit>1</hard_limit></memtune>'), says: /<memtune>/ },
  { what: 'block tuning', xml: domainRest('<blkiotune><weight>500</weight></blkiotune>'), says: /<blkiotune>/ },
  {
    what: 'NUMA tuning',
    xml: domainRest("<numatune><memory mode='strict' nodeset='0'/></numatune>"),
    says: /<numatune>/,
  },
  {
    what: 'a nested KVM feature',
    xml: domainRest("<features><kvm><poll-control state='on'/></kvm></features>"),
    says: /<poll-control>/,
  },
  {
    what: 'encryption',
    xml: disk(
      "type='qcow2'",
      "<encryption format='luks'><secret type='passphrase' uuid='11111111-2222-3333-4444-555555555555'/></encryption>",
    ),
    says: /disk 'vda': encryption/,
  },
  {
    what: 'a throttle group',
    xml: disk("type='raw'", '<iotune><total_iops_sec>1</total_iops_sec><group_name>g</group_name></iotune>'),
    says: /<group_name>/,
  },
  {
    what: 'a disk in a volume',
    xml: domainXml("<disk type='volume'><source pool='p' volume='v'/><target dev='vda' bus='virtio'/></disk>"),
    says: /<disk>/,
  },
  { what: 'spice', xml: domainXml("<graphics type='spice' autoport='yes'/>"), says: /'spice'/ },
  { what: 'a VLAN', xml: net("type='bridge'", "<source bridge='br0'/><vlan><tag id='1'/></vlan>"), says: /<vlan>/ },
  { what: 'a direct interface', xml: net("type='direct'", "<source dev='eth0' mode='bridge'/>"), says: /'direct'/ },
  {
    what: 'an address of another machine',
    xml: domainXml(diskXml('vda', 'virtio', "<address type='ccw' cssid='0xfe' ssid='0x0' devno='0x0'/>")),
    says: /an address of this type/,
  },
  {
    what: 'pinning without a driver that pins',
    xml: domainXml('', { rest: "<vcpu cpuset='0'>1</vcpu>" }),
    says: /cpuset/,
  },
  // contradictions
  {
    what: 'copy-on-read on a read-only disk',
    xml: disk("type='qcow2' copy_on_read='on'", '<readonly/>'),
    says: /copy_on_read is not compatible with a read-only disk/,
  },
  {
    what: 'copy-on-read on a raw image',
    xml: disk("type='raw' copy_on_read='on'"),
    says: /copy_on_read needs an image with a backing image/,
  },
  {
    what: 'native I/O with a cache',
    xml: disk("type='raw' io='native' cache='writeback'"),
    says: /io='native' needs cache='none'/,
  },
  {
    what: 'an I/O thread that is not there',
    xml: disk("type='raw' iothread='3'"),
    says: /I\/O thread 3 of disk 'vda' is not defined/,
  },
  {
    what: 'an I/O thread on SATA',
    xml: q35(
      "<disk type='file'><driver name='qemu' type='raw' iothread='1'/><source file='/i'/><target dev='sda' bus='sata'/></disk>",
    ),
    says: /not available on bus 'sata'/,
  },
  {
    what: 'sharing a qcow2 for writing',
    xml: disk("type='qcow2'", '<shareable/>'),
    says: /only be shared for writing in format 'raw'/,
  },
  {
    what: 'a virtio CD-ROM',
    xml: domainXml("<disk type='file' device='cdrom'><target dev='vda' bus='virtio'/></disk>"),
    says: /ejectable/,
  },
  {
    what: 'a read-only SATA disk',
    xml: q35(diskXml('sda', 'sata', '<readonly/>')),
    says: /read-only disks are not supported on bus 'sata'/,
  },
  { what: 'IDE on q35', xml: q35(diskXml('hda', 'ide')), says: /no IDE controller/ },
  {
    what: 'a fifth IDE disk',
    xml: domainXml(diskXml('hde', 'ide')),
    says: /controller of an address on bus 'ide' can be at most 0/,
  },
  {
    what: 'a seventh unit on one SATA controller',
    xml: q35(diskXml('sda', 'sata', "<address type='drive' unit='6'/>")),
    says: /unit of an address on bus 'sata' can be at most 5/,
  },
  { what: 'an unknown format', xml: disk("type='cow'"), says: /storage format 'cow'/ },
  {
    what: 'a raw image on top of another',
    xml: disk("type='raw'", "<backingStore type='file'><format type='raw'/><source file='/b'/></backingStore>"),
    says: /cannot have a backing image/,
  },
  {
    what: 'a serial number that QEMU does not take',
    xml: disk("type='raw'", '<serial>a,b</serial>'),
    says: /serial 'a,b'/,
    code: 'VIR_ERR_XML_ERROR',
  },
  {
    what: 'more CPUs than the machine takes',
    xml: domainXml('', { rest: '<vcpu>256</vcpu>' }),
    says: /at most 255 CPUs, not 256/,
  },
  {
    what: 'a topology of another size',
    xml: domainXml('', { rest: "<vcpu>4</vcpu><cpu><topology sockets='1' cores='2' threads='1'/></cpu>" }),
    says: /makes 2 CPUs, but <vcpu> says 4/,
  },
  {
    what: 'host-passthrough without KVM',
    xml: domainXml('', { rest: "<cpu mode='host-passthrough'/>" }),
    says: /'host-passthrough' needs/,
  },
  { what: 'another hypervisor', xml: domainXml('', { type: 'xen' }), says: /virt type 'xen'/ },
  {
    what: 'UEFI without ACPI',
    xml: domainXml('').replace('hvm</type>', "hvm</type><loader readonly='yes' type='pflash'>/fw</loader>"),
    says: /UEFI needs ACPI/,
  },
  {
    what: 'a companion without its master',
    xml: domainXml("<controller type='usb' index='0' model='ich9-uhci1'/>"),
    says: /no master/,
    code: 'VIR_ERR_XML_DETAIL',
  },
  {
    what: 'USB input without USB',
    xml: domainXml("<controller type='usb' model='none'/><input type='tablet' bus='usb'/>"),
    says: /USB is disabled/,
  },
  {
    what: 'a second ISA VGA',
    xml: domainXml("<video><model type='vga'/></video><video><model type='cirrus'/></video>"),
    says: /'cirrus' can only be the primary one/,
  },
  {
    what: 'a long VNC password',
    xml: domainXml("<graphics type='vnc' passwd='123456789'/>"),
    says: /at most 8 characters, not 9/,
  },
  {
    what: 'the kvmclock with a tick policy',
    xml: domainRest("<clock offset='utc'><timer name='kvmclock' tickpolicy='delay'/></clock>"),
    says: /timer 'kvmclock' does not support a tickpolicy/,
  },
]

for (const { what, xml, says, code = 'VIR_ERR_CONFIG_UNSUPPORTED' } of refused) {
  test(`${what} is refused by name`, () => {
    assert.throws(() => check(xml), { code, message: says })
  })
}

test('what we do not know at all stays untouched', () => {
  const rest =
    "<metadata><app:x xmlns:app='http://example.org/app'>1</app:x></metadata><o:thing xmlns:o='http://example.org/o'><hostdev/></o:thing>"
  const xml = check(domainXml("<novelty mode='a'><inner/></novelty><audio id='1' type='none'/>", { rest }))
  for (const kept of ["<novelty mode='a'>", '<inner/>', "<audio id='1' type='none'/>", '<app:x', '<o:thing'])
    assert.ok(xml.includes(kept), kept)
})

test('a driver that pins takes a set of host CPUs', () => {
  const xml = domainXml('', { rest: "<vcpu cpuset='0-1'>1</vcpu>" })
  assert.match(check(xml, { ...testCaps, pinsVcpus: true }), /cpuset='0-1'/)
})

test('what virt-install writes for a server is taken', () => {
  const devices =
    "<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap' copy_on_read='on'/><source file='/i'/><target dev='vda' bus='virtio'/></disk>" +
    "<interface type='user'><model type='virtio'/></interface><console type='pty'><target type='serial'/></console>" +
    "<channel type='unix'><source mode='bind'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>" +
    "<graphics type='vnc' port='-1'/><input type='tablet' bus='usb'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>"
  check(
    domainXml(devices, {
      machine: 'q35',
      type: 'kvm',
      rest: "<features><acpi/><apic/></features><cpu mode='host-model'/><pm><suspend-to-mem enabled='no'/></pm>",
    }),
  )
})
