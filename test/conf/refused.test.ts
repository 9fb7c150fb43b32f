/** What is refused: each with libvirt's code, and a sentence that names what is wrong. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseDomainXml } from '../../src/conf/parse.js'
import { VirError, type VirErrorCode } from '../../src/error.js'
import { domainXml } from './support.js'

type Row = [what: string, xml: string, code: VirErrorCode, says: RegExp]

const disk = (inside: string, attributes = "type='file' device='disk'"): string =>
  domainXml({ devices: `<disk ${attributes}>${inside}</disk>` })
const vda = "<target dev='vda' bus='virtio'/>"
const file = "<source file='/a.img'/>"
const net = (inside: string, type = 'user'): string =>
  domainXml({ devices: `<interface type='${type}'>${inside}</interface>` })
const device = (devices: string): string => domainXml({ devices })
const bare = (inside: string): string => `<domain type='kvm'>${inside}</domain>`
const twoDisks = (first: string, second: string): string =>
  device(`<disk>${first}<source file='/a'/></disk><disk>${second}<source file='/b'/></disk>`)

const wholeDomain: Row[] = [
  ['text that is no XML', 'hello', 'VIR_ERR_XML_DETAIL', /not well-formed: line 1/],
  ['nothing', '', 'VIR_ERR_XML_DETAIL', /not well-formed/],
  [
    'a tag that is never closed',
    '<domain type="kvm">\n<name>\n</domain>',
    'VIR_ERR_XML_DETAIL',
    /line 3: Opening and ending tag mismatch/,
  ],
  ['another root', '<network/>', 'VIR_ERR_XML_ERROR', /root element is 'network', not 'domain'/],
  ['a root of a foreign namespace', "<domain xmlns='urn:x' type='kvm'/>", 'VIR_ERR_XML_ERROR', /root element/],
  ['no type', '<domain><name>a</name></domain>', 'VIR_ERR_XML_ERROR', /'domain' needs the attribute 'type'/],
  [
    'an unknown type',
    "<domain type='warp'><name>a</name></domain>",
    'VIR_ERR_XML_ERROR',
    /'type' of element 'domain' can't be 'warp'/,
  ],
  ['no name', bare('<memory>1</memory><os><type>hvm</type></os>'), 'VIR_ERR_NO_NAME', /needs an element 'name'/],
  ['a name with a slash', bare('<name>a/b</name>'), 'VIR_ERR_XML_ERROR', /'a\/b'/],
  ['a title of two lines', domainXml({ top: '<title>a\nb</title>' }), 'VIR_ERR_XML_ERROR', /title/],
  ['a UUID that is none', domainXml({ top: '<uuid>1234</uuid>' }), 'VIR_ERR_XML_ERROR', /'uuid' can't hold '1234'/],
  ['no memory', bare('<name>a</name><os><type>hvm</type></os>'), 'VIR_ERR_XML_ERROR', /'memory'/],
  ['negative memory', bare('<name>a</name><memory>-5</memory>'), 'VIR_ERR_XML_ERROR', /'memory' can't hold '-5'/],
  [
    'memory in a unit that is none',
    bare("<name>a</name><memory unit='parsec'>5</memory>"),
    'VIR_ERR_INVALID_ARG',
    /unit 'parsec'/,
  ],
  [
    'more memory than there can be',
    bare("<name>a</name><memory unit='EiB'>99</memory>"),
    'VIR_ERR_OVERFLOW',
    /'99 EiB'/,
  ],
  [
    'a current memory above the maximum',
    domainXml({ top: "<currentMemory unit='GiB'>1</currentMemory>" }),
    'VIR_ERR_XML_ERROR',
    /current memory '1048576k'/,
  ],
  ['no OS', bare('<name>a</name><memory>65536</memory>'), 'VIR_ERR_XML_ERROR', /'type' in its element 'os'/],
  ['an unknown OS', domainXml({ os: '<os><type>bios9</type></os>' }), 'VIR_ERR_CONFIG_UNSUPPORTED', /OS type 'bios9'/],
  ['no CPUs', domainXml({ top: '<vcpu>0</vcpu>' }), 'VIR_ERR_XML_ERROR', /'0' virtual CPUs/],
  [
    'more current CPUs than there are',
    domainXml({ top: "<vcpu current='3'>2</vcpu>" }),
    'VIR_ERR_XML_ERROR',
    /'3' of them/,
  ],
  ['CPUs that are no number', domainXml({ top: '<vcpu>two</vcpu>' }), 'VIR_ERR_XML_ERROR', /'vcpu' can't hold 'two'/],
  [
    'a cpuset that is none',
    domainXml({ top: "<vcpu cpuset='1--2'>2</vcpu>" }),
    'VIR_ERR_XML_ERROR',
    /'cpuset'.*'1--2'/,
  ],
  [
    'NUMA cells with a gap',
    domainXml({ top: "<cpu><numa><cell id='0' memory='1'/><cell id='2' memory='1'/></numa></cpu>" }),
    'VIR_ERR_XML_ERROR',
    /ids of 2 NUMA cells/,
  ],
  [
    'a CPU feature twice',
    domainXml({ top: "<cpu mode='host-model'><feature name='x'/><feature name='x'/></cpu>" }),
    'VIR_ERR_XML_ERROR',
    /'x' is given more than once/,
  ],
  [
    'a clock offset that is none',
    domainXml({ top: "<clock offset='mars'/>" }),
    'VIR_ERR_XML_ERROR',
    /'offset' of element 'clock' can't be 'mars'/,
  ],
  ['a time zone that is not said', domainXml({ top: "<clock offset='timezone'/>" }), 'VIR_ERR_XML_ERROR', /'timezone'/],
  [
    'an action that is none',
    domainXml({ top: '<on_crash>panic</on_crash>' }),
    'VIR_ERR_XML_ERROR',
    /'on_crash' can't hold 'panic'/,
  ],
  [
    'two I/O threads of one id',
    domainXml({ top: "<iothreadids><iothread id='1'/><iothread id='1'/></iothreadids>" }),
    'VIR_ERR_XML_ERROR',
    /I\/O thread/,
  ],
  [
    'an unknown Hyper-V feature',
    domainXml({ top: "<features><hyperv><warp state='on'/></hyperv></features>" }),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /'warp'/,
  ],
  [
    'a boot menu that waits too long',
    domainXml({ os: "<os><type>hvm</type><bootmenu enable='yes' timeout='65536'/></os>" }),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /'65536'/,
  ],
  [
    'a loader without a file',
    domainXml({ os: "<os><type>hvm</type><loader readonly='yes'/></os>" }),
    'VIR_ERR_XML_DETAIL',
    /'loader' names no file/,
  ],
  [
    'a chosen firmware with a path',
    domainXml({ os: "<os firmware='efi'><type>hvm</type><loader>/x</loader></os>" }),
    'VIR_ERR_XML_DETAIL',
    /'path'/,
  ],
  [
    'an argument for QEMU without a value',
    domainXml({
      attributes: " xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'",
      top: '<qemu:commandline><qemu:arg/></qemu:commandline>',
    }),
    'VIR_ERR_INTERNAL_ERROR',
    /'qemu:arg'/,
  ],
]

const disks: Row[] = [
  ['a disk without a target', disk(file), 'VIR_ERR_NO_TARGET', /target/],
  ['a hard disk without a source', disk(vda), 'VIR_ERR_NO_SOURCE', /'vda' has no source/],
  ['a target that is no disk', disk(`${file}<target dev='eth0'/>`), 'VIR_ERR_XML_ERROR', /'eth0'/],
  ['a target that is a path', disk(`${file}<target dev='vd../../x'/>`), 'VIR_ERR_XML_ERROR', /'vd..\/..\/x'/],
  ['a partition as the target', disk(`${file}<target dev='vda1'/>`), 'VIR_ERR_CONFIG_UNSUPPORTED', /'vda1'/],
  ['one target twice', twoDisks(vda, vda), 'VIR_ERR_XML_ERROR', /target 'vda' is given to more than one disk/],
  [
    'a type that is none',
    disk(file + vda, "type='tape'"),
    'VIR_ERR_XML_ERROR',
    /'type' of element 'disk' can't be 'tape'/,
  ],
  ['a device that is none', disk(file + vda, "device='zip'"), 'VIR_ERR_XML_ERROR', /'zip'/],
  [
    'a bus that is none',
    disk(`${file}<target dev='vda' bus='mca'/>`),
    'VIR_ERR_XML_ERROR',
    /'bus' of element 'target' can't be 'mca'/,
  ],
  [
    'a format that is none',
    disk(`<driver type='zip'/>${file}${vda}`),
    'VIR_ERR_XML_ERROR',
    /'type' of element 'driver' can't be 'zip'/,
  ],
  [
    'a block device with a file as its source',
    disk(file + vda, "type='block'"),
    'VIR_ERR_XML_ERROR',
    /type 'block' needs the attribute 'dev'/,
  ],
  [
    'a file with a device as its source',
    disk(`<source dev='/dev/sda'/>${vda}`),
    'VIR_ERR_XML_ERROR',
    /type 'file' needs the attribute 'file'/,
  ],
  [
    'a cache mode that is none',
    disk(`<driver cache='fast'/>${file}${vda}`),
    'VIR_ERR_XML_ERROR',
    /'cache' of element 'driver' can't be 'fast'/,
  ],
  [
    'an I/O thread number that is none',
    disk(`<driver iothread='-1'/>${file}${vda}`),
    'VIR_ERR_XML_ERROR',
    /'iothread'.*'-1'/,
  ],
  [
    'a switch that is neither on nor off',
    disk(`<driver copy_on_read='maybe'/>${file}${vda}`),
    'VIR_ERR_XML_ERROR',
    /'copy_on_read'.*'maybe'/,
  ],
  [
    'queues of an IDE disk',
    disk(`<driver queues='2'/>${file}<target dev='hda'/>`),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /'queues'/,
  ],
  [
    'a PCI address of a SCSI disk',
    disk(`${file}<target dev='sda'/><address type='pci' slot='1'/>`),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /'sda'.*'pci'/,
  ],
  ['an address of no type', disk(`${file}${vda}<address slot='1'/>`), 'VIR_ERR_XML_ERROR', /'type'/],
  [
    'an address of an unknown type',
    disk(`${file}${vda}<address type='isdn'/>`),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /'isdn'/,
  ],
  [
    'a PCI slot that is too high',
    disk(`${file}${vda}<address type='pci' slot='0x20'/>`),
    'VIR_ERR_XML_ERROR',
    /'slot' of element 'address' can't be '0x20'/,
  ],
  [
    'two disks in one place',
    twoDisks(`${vda}<address type='pci' slot='5'/>`, "<target dev='vdb'/><address type='pci' slot='0x5'/>"),
    'VIR_ERR_XML_ERROR',
    /pci 0:0:5.0/,
  ],
  [
    'two disks on one unit',
    twoDisks(
      "<target dev='sda'/><address type='drive' unit='1'/>",
      "<target dev='sdb'/><address type='drive' unit='1'/>",
    ),
    'VIR_ERR_XML_ERROR',
    /unit 1/,
  ],
  [
    'one alias twice',
    twoDisks(`${vda}<alias name='ua-a'/>`, "<target dev='vdb'/><alias name='ua-a'/>"),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /alias 'ua-a'/,
  ],
  [
    'a boot order twice',
    twoDisks(`${vda}<boot order='1'/>`, "<target dev='vdb'/><boot order='1'/>"),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /boot order '1'/,
  ],
  [
    'boot order 0',
    disk(`${file}${vda}<boot order='0'/>`),
    'VIR_ERR_XML_ERROR',
    /'order' of element 'boot' can't be '0'/,
  ],
  [
    'boot orders of devices and of the OS',
    domainXml({
      os: "<os><type>hvm</type><boot dev='hd'/></os>",
      devices: `<disk>${file}${vda}<boot order='1'/></disk>`,
    }),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /can't be used together/,
  ],
  [
    'limits that exclude each other',
    disk(`${file}${vda}<iotune><total_bytes_sec>1</total_bytes_sec><read_bytes_sec>1</read_bytes_sec></iotune>`),
    'VIR_ERR_XML_ERROR',
    /'total_bytes_sec'/,
  ],
  ['a hard disk with a tray', disk(`${file}<target dev='vda' tray='open'/>`), 'VIR_ERR_CONFIG_UNSUPPORTED', /tray/],
  ['a hard disk as a floppy', disk(`${file}<target dev='vda'/>`, "device='floppy'"), 'VIR_ERR_XML_ERROR', /'floppy'/],
  ['a WWN that is none', disk(`${file}${vda}<wwn>12</wwn>`), 'VIR_ERR_XML_ERROR', /'12'/],
  [
    'a vendor that is too long',
    disk(`${file}${vda}<vendor>123456789</vendor>`),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /'123456789'/,
  ],
  [
    'a negative cache size',
    disk(`<driver type='qcow2'><metadata_cache><max_size>-1</max_size></metadata_cache></driver>${file}${vda}`),
    'VIR_ERR_XML_ERROR',
    /'max_size' can't hold '-1'/,
  ],
]

const nbd = (inside: string, attributes = "protocol='nbd'"): string =>
  disk(`<source ${attributes}>${inside}</source>${vda}`, "type='network'")
const images: Row[] = [
  [
    'a protocol that is none',
    nbd('', "protocol='gopher' name='x'"),
    'VIR_ERR_XML_ERROR',
    /'protocol' of element 'source' can't be 'gopher'/,
  ],
  ['a network disk without a protocol', nbd('', "name='x'"), 'VIR_ERR_XML_ERROR', /'protocol'/],
  [
    'a web image without a name',
    nbd("<host name='h'/>", "protocol='http'"),
    'VIR_ERR_XML_ERROR',
    /'http' needs the attribute 'name'/,
  ],
  ['a host without a name', nbd("<host port='1'/>"), 'VIR_ERR_XML_ERROR', /'host' needs the attribute 'name'/],
  ['a unix host without a socket', nbd("<host transport='unix'/>"), 'VIR_ERR_XML_ERROR', /'socket'/],
  ['a TCP host with a socket', nbd("<host name='h' socket='/s'/>"), 'VIR_ERR_XML_ERROR', /'\/s'/],
  [
    'a port that is too high',
    nbd("<host name='h' port='65536'/>"),
    'VIR_ERR_XML_ERROR',
    /'port' of element 'host' can't be '65536'/,
  ],
  [
    'one cookie twice',
    nbd(
      "<host name='h'/><cookies><cookie name='a'>1</cookie><cookie name='a'>2</cookie></cookies>",
      "protocol='http' name='x'",
    ),
    'VIR_ERR_XML_ERROR',
    /cookie 'a'/,
  ],
  [
    'a cookie with a separator',
    nbd("<host name='h'/><cookies><cookie name='a'>1;b=2</cookie></cookies>", "protocol='http' name='x'"),
    'VIR_ERR_XML_ERROR',
    /cookie 'a'/,
  ],
  [
    'a timeout of nothing',
    nbd("<host name='h'/><timeout seconds='0'/>", "protocol='https' name='x'"),
    'VIR_ERR_XML_ERROR',
    /'seconds'.*'0'/,
  ],
  [
    'a backing image without a format',
    disk(`${file}<backingStore type='file'><source file='/b'/></backingStore>${vda}`),
    'VIR_ERR_XML_ERROR',
    /'backingStore' needs an element 'format'/,
  ],
  [
    'a backing image without a source',
    disk(`${file}<backingStore type='file'><format type='raw'/></backingStore>${vda}`),
    'VIR_ERR_XML_ERROR',
    /needs an element 'source'/,
  ],
  [
    'a backing image that is none',
    disk(`${file}<backingStore type='file'><format type='raw'/><source/></backingStore>${vda}`),
    'VIR_ERR_XML_ERROR',
    /names no image/,
  ],
  [
    'a slice without an end',
    disk(`<source file='/a'><slices><slice type='storage' offset='1'/></slices></source>${vda}`),
    'VIR_ERR_XML_ERROR',
    /'slice' needs the attribute 'size'/,
  ],
]

const devices: Row[] = [
  [
    'a MAC address that is none',
    net("<mac address='52:54'/>"),
    'VIR_ERR_XML_ERROR',
    /'address' of element 'mac' can't be '52:54'/,
  ],
  ['a MAC address of many', net("<mac address='01:00:5e:00:00:01'/>"), 'VIR_ERR_XML_ERROR', /'01:00:5e:00:00:01'/],
  [
    'an interface type that is none',
    net('', 'token-ring'),
    'VIR_ERR_XML_ERROR',
    /'type' of element 'interface' can't be 'token-ring'/,
  ],
  ['a bridge without a bridge', net('', 'bridge'), 'VIR_ERR_XML_ERROR', /'bridge' needs an element 'source'/],
  [
    'a network without a name',
    net('<source/>', 'network'),
    'VIR_ERR_XML_ERROR',
    /'source' needs the attribute 'network'/,
  ],
  ['a model with odd characters', net("<model type='a,b=c'/>"), 'VIR_ERR_INVALID_ARG', /'a,b=c'/],
  [
    'an IP address that is none',
    net("<ip address='1.2.3'/>"),
    'VIR_ERR_XML_ERROR',
    /'address' of element 'ip' can't be '1.2.3'/,
  ],
  ['an IPv6 address as IPv4', net("<ip address='::1'/>"), 'VIR_ERR_XML_ERROR', /'::1'/],
  ['a disabled ROM with a file', net("<rom enabled='no' file='/r'/>"), 'VIR_ERR_CONFIG_UNSUPPORTED', /ROM/],
  [
    'queues below nothing',
    net("<driver queues='-5'/>"),
    'VIR_ERR_XML_ERROR',
    /'queues' of element 'driver' can't be '-5'/,
  ],
  ['a controller type that is none', device("<controller type='mfm'/>"), 'VIR_ERR_XML_ERROR', /'mfm'/],
  [
    'a controller model that is none',
    device("<controller type='scsi' model='fast'/>"),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /'fast'/,
  ],
  [
    'one controller twice',
    device("<controller type='scsi' index='0'/><controller type='scsi' index='0'/>"),
    'VIR_ERR_XML_ERROR',
    /'scsi' with the index '0'/,
  ],
  [
    'a negative index',
    device("<controller type='pci' index='-1'/>"),
    'VIR_ERR_XML_ERROR',
    /'index' of element 'controller' can't be '-1'/,
  ],
  [
    'two models of a PCI controller',
    device("<controller type='pci'><model name='pxb'/><model name='pxb'/></controller>"),
    'VIR_ERR_XML_ERROR',
    /at most one element 'model'/,
  ],
  ['a serial port of an unknown kind', device("<serial type='morse'/>"), 'VIR_ERR_CONFIG_UNSUPPORTED', /'morse'/],
  [
    'a serial port on a file without a path',
    device("<serial type='file'><source/></serial>"),
    'VIR_ERR_XML_ERROR',
    /'path'/,
  ],
  ['a serial port on a file without a source', device("<serial type='file'/>"), 'VIR_ERR_XML_ERROR', /'source'/],
  ['a serial port on a socket without a path', device("<serial type='unix'/>"), 'VIR_ERR_XML_ERROR', /'path'/],
  [
    'two sources of a serial port',
    device("<serial type='pty'><source path='a'/><source path='b'/></serial>"),
    'VIR_ERR_XML_ERROR',
    /more than 1 of element 'source'/,
  ],
  [
    'a serial port over TCP without a port',
    device("<serial type='tcp'><source host='h'/></serial>"),
    'VIR_ERR_XML_ERROR',
    /'service'/,
  ],
  [
    'a reconnect after no time',
    device("<serial type='tcp'><source host='h' service='1'><reconnect enabled='yes' timeout='0'/></source></serial>"),
    'VIR_ERR_XML_ERROR',
    /'timeout'.*'0'/,
  ],
  [
    'a reconnect of who listens',
    device(
      "<serial type='tcp'><source mode='bind' host='h' service='1'><reconnect enabled='yes' timeout='1'/></source></serial>",
    ),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /reconnect/,
  ],
  [
    'a serial target that is none',
    device("<serial type='pty'><target type='abacus'/></serial>"),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /'abacus'/,
  ],
  ['a channel without a target', device("<channel type='pty'/>"), 'VIR_ERR_XML_ERROR', /channel needs a target/],
  [
    'a Spice agent on something else',
    device("<channel type='spicevmc'><target type='guestfwd' address='1.1.1.1' port='1'/></channel>"),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /spicevmc/,
  ],
  ['an input that is none', device("<input type='joystick'/>"), 'VIR_ERR_XML_ERROR', /'joystick'/],
  ['a PS/2 tablet', device("<input type='tablet' bus='ps2'/>"), 'VIR_ERR_INTERNAL_ERROR', /'tablet'/],
  ['an event device without a path', device("<input type='evdev'/>"), 'VIR_ERR_XML_ERROR', /evdev/],
  ['graphics without a type', device('<graphics/>'), 'VIR_ERR_XML_ERROR', /'graphics' needs the attribute 'type'/],
  [
    'a VNC port that is too high',
    device("<graphics type='vnc' port='70000'/>"),
    'VIR_ERR_XML_ERROR',
    /'port'.*'70000'/,
  ],
  [
    'two listen addresses that differ',
    device("<graphics type='vnc' listen='a'><listen type='address' address='b'/></graphics>"),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /'a'.*'b'/,
  ],
  [
    'a socket to listen on by address',
    device("<graphics type='vnc'><listen type='address' socket='/s'/></graphics>"),
    'VIR_ERR_XML_ERROR',
    /'socket'/,
  ],
  ['a video model that is none', device("<video><model type='cga'/></video>"), 'VIR_ERR_XML_ERROR', /'cga'/],
  [
    'two primary video devices',
    device("<video><model type='vga' primary='yes'/></video><video><model type='qxl' primary='yes'/></video>"),
    'VIR_ERR_CONFIG_UNSUPPORTED',
    /primary/,
  ],
  ['an RNG without a backend', device("<rng model='virtio'/>"), 'VIR_ERR_XML_ERROR', /'backend'/],
  [
    'an RNG with two backends',
    device("<rng model='virtio'><backend model='random'/><backend model='random'/></rng>"),
    'VIR_ERR_XML_ERROR',
    /more than one/,
  ],
  [
    'an RNG that gives nothing',
    device("<rng model='virtio'><rate bytes='0'/><backend model='random'/></rng>"),
    'VIR_ERR_XML_ERROR',
    /'bytes'/,
  ],
  [
    'two memory balloons',
    device("<memballoon model='none'/><memballoon model='none'/>"),
    'VIR_ERR_XML_ERROR',
    /memballoon/,
  ],
  ['a watchdog that is none', device("<watchdog model='rex'/>"), 'VIR_ERR_XML_ERROR', /'rex'/],
]

for (const [what, xml, code, says] of [...wholeDomain, ...disks, ...images, ...devices]) {
  test(`${what} is refused with ${code}`, () => {
    assert.throws(
      () => parseDomainXml(xml),
      (error) => {
        assert.ok(error instanceof VirError, String(error))
        assert.equal(error.domain, 'VIR_FROM_DOMAIN')
        assert.match(error.message, says)
        assert.equal(error.code, code)
        return true
      },
    )
  })
}
