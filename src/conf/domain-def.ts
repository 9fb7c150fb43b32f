/**
 * A domain's configuration as data: what libvirt's domain XML says about the parts that we model. Plain objects, no methods;
 * `parse.ts` makes them from XML, `format.ts` writes them back. An absent property is an absent element or attribute.
 * Sizes are bytes unless the name or the comment says otherwise.
 */

/**
 * What an element held that we do not model: attributes and child elements, kept so that they survive a round trip.
 * `path` leads from the element that owns the residue to where it stands: '' is the element itself, 'driver' its first
 * `<driver>` child, 'source/host[1]' the second `<host>` of its `<source>`. A path alone says that there is such an element.
 */
export interface Residue {
  path: string
  attributes?: { name: string; value: string }[]
  /** serialized child elements, namespace declarations included */
  elements?: string[]
}
interface WithResidue {
  residue?: Residue[]
}

export type OnOff = 'on' | 'off'
export type YesNo = 'yes' | 'no'

export interface DomainDef extends WithResidue {
  /** 'kvm' or 'qemu' */
  virtType: string
  id?: number
  name: string
  uuid: string
  title?: string
  description?: string
  /** serialized `<metadata>` children, each of its own namespace */
  metadata: string[]
  /** maximum memory, KiB */
  memory: number
  /** KiB */
  currentMemory: number
  vcpu: VcpuDef
  iothreads: { id: number }[]
  os: OsDef
  features: FeaturesDef
  cpu?: CpuDef
  clock: ClockDef
  onPoweroff: 'destroy' | 'restart' | 'preserve' | 'rename-restart'
  onReboot: 'destroy' | 'restart' | 'preserve' | 'rename-restart'
  onCrash: 'destroy' | 'restart' | 'preserve' | 'rename-restart' | 'coredump-destroy' | 'coredump-restart'
  pm?: { suspendToMem?: YesNo; suspendToDisk?: YesNo }
  memoryBacking?: { hugepages?: boolean; locked?: boolean; shared?: boolean; source?: 'anonymous' | 'file' | 'memfd' }
  emulator?: string
  disks: DiskDef[]
  controllers: ControllerDef[]
  interfaces: InterfaceDef[]
  /** serial, parallel, console and channel devices, in the order of the XML within each kind */
  serials: ChardevDef[]
  consoles: ChardevDef[]
  channels: ChardevDef[]
  inputs: InputDef[]
  graphics: GraphicsDef[]
  videos: VideoDef[]
  rngs: RngDef[]
  memballoon?: MemballoonDef
  watchdogs: WatchdogDef[]
  panics: PanicDef[]
  seclabels: SeclabelDef[]
  /** `<qemu:commandline>`: words and environment handed to QEMU as they are */
  qemuCommandline?: { args: string[]; env: { name: string; value: string }[] }
}

export interface VcpuDef extends WithResidue {
  max: number
  current?: number
  placement?: 'static' | 'auto'
  cpuset?: string
}

export interface OsDef extends WithResidue {
  /** 'hvm' */
  type: string
  /** 'x86_64' where the XML does not say */
  arch: string
  /** versioned once assigned, e.g. 'pc-q35-7.2'; '' where the XML does not say */
  machine: string
  firmware?: 'efi' | 'bios'
  loader?: { path?: string; readonly?: YesNo; secure?: YesNo; type?: 'rom' | 'pflash'; format?: 'raw' | 'qcow2' }
  nvram?: { path?: string; template?: string; format?: 'raw' | 'qcow2' }
  kernel?: string
  initrd?: string
  cmdline?: string
  dtb?: string
  /** 'hd', 'cdrom', 'network', 'fd' in order; exclusive with boot orders of devices */
  boot: string[]
  bootmenu?: { enable: YesNo; timeout?: number }
  bios?: { useserial?: YesNo; rebootTimeout?: number }
  smbiosMode?: string
}

export interface FeaturesDef extends WithResidue {
  acpi?: boolean
  apic?: boolean | { eoi: OnOff }
  pae?: boolean
  vmport?: OnOff
  smm?: OnOff
  ioapic?: 'qemu' | 'kvm'
  kvmHidden?: OnOff
  pmu?: OnOff
  hyperv?: {
    mode?: 'custom' | 'passthrough'
    features: { name: string; state?: OnOff; attributes: Record<string, string> }[]
  }
}

export interface CpuDef extends WithResidue {
  mode: 'custom' | 'host-model' | 'host-passthrough' | 'maximum'
  match?: 'minimum' | 'exact' | 'strict'
  check?: 'none' | 'partial' | 'full'
  migratable?: OnOff
  model?: { name: string; fallback?: 'allow' | 'forbid'; vendorId?: string }
  vendor?: string
  topology?: { sockets: number; dies?: number; cores: number; threads: number }
  cache?: { level?: number; mode: 'emulate' | 'passthrough' | 'disable' }
  maxphysaddr?: { mode: 'emulate' | 'passthrough'; bits?: number }
  features: { name: string; policy: 'force' | 'require' | 'optional' | 'disable' | 'forbid' }[]
  /** memory in KiB */
  numa: { id: number; cpus?: string; memory: number; memAccess?: string; discard?: YesNo }[]
}

export interface ClockDef extends WithResidue {
  offset: 'utc' | 'localtime' | 'timezone' | 'variable' | 'absolute'
  timezone?: string
  adjustment?: string
  basis?: 'utc' | 'localtime'
  start?: number
  timers: TimerDef[]
}
export interface TimerDef extends WithResidue {
  name: string
  present?: YesNo
  tickpolicy?: 'delay' | 'catchup' | 'merge' | 'discard'
  track?: string
  frequency?: number
  mode?: string
}

// --- addresses -------------------------------------------------------------------------------------------------

/** All zero means: somewhere on a PCI bus, to be assigned (`<address type='pci'/>`). */
export interface PciAddress {
  type: 'pci'
  domain: number
  bus: number
  slot: number
  function: number
  multifunction?: OnOff
}
export interface DriveAddress {
  type: 'drive'
  controller: number
  bus: number
  target: number
  unit: number
}
export interface VirtioSerialAddress {
  type: 'virtio-serial'
  controller: number
  bus: number
  port?: number
}
export interface UsbAddress {
  type: 'usb'
  bus: number
  /** '1' or '1.2' behind a hub */
  port?: string
}
export interface IsaAddress {
  type: 'isa'
  iobase?: string
  irq?: string
}
export type DeviceAddress = PciAddress | DriveAddress | VirtioSerialAddress | UsbAddress | IsaAddress

interface Device extends WithResidue {
  /** `<alias name>`: 'virtio-disk0'; assigned at start, or by the user as 'ua-…' at define */
  alias?: string
  address?: DeviceAddress
  /** `<boot order>` */
  bootOrder?: number
}
/** the virtio options of `<driver>` */
export interface VirtioOptions {
  iommu?: OnOff
  ats?: OnOff
  packed?: OnOff
}

// --- disks -----------------------------------------------------------------------------------------------------

export type DiskBus = 'virtio' | 'scsi' | 'sata' | 'ide' | 'usb' | 'fdc'

export interface DiskDef extends Device {
  device: 'disk' | 'cdrom' | 'floppy' | 'lun'
  /** target dev: 'vda' */
  target: string
  bus: DiskBus
  removable?: OnOff
  tray?: 'open' | 'closed'
  rotationRate?: number
  model?: 'virtio' | 'virtio-transitional' | 'virtio-non-transitional'
  driver: DiskDriverDef
  /** absent: an empty drive */
  source?: StorageSource
  /** of a running domain whose disk is being committed: the image that it is about to have */
  mirror?: { source: StorageSource; ready: boolean }
  readonly: boolean
  shareable: boolean
  transient?: boolean
  serial?: string
  wwn?: string
  vendor?: string
  product?: string
  blockio?: { logicalBlockSize?: number; physicalBlockSize?: number; discardGranularity?: number }
  iotune?: Record<string, number>
  /** seconds until reads of a base that is away fail; only while the domain runs, and not part of the XML */
  baseTimeout?: number
  geometry?: { cyls: number; heads: number; secs: number; trans?: string }
}

export interface DiskDriverDef {
  name?: string
  cache?: 'default' | 'none' | 'writethrough' | 'writeback' | 'directsync' | 'unsafe'
  io?: 'native' | 'threads' | 'io_uring'
  errorPolicy?: 'stop' | 'report' | 'ignore' | 'enospace'
  rerrorPolicy?: 'stop' | 'report' | 'ignore'
  discard?: 'unmap' | 'ignore'
  detectZeroes?: 'off' | 'on' | 'unmap'
  copyOnRead?: OnOff
  iothread?: number
  queues?: number
  queueSize?: number
  eventIdx?: OnOff
  ioeventfd?: OnOff
  virtio?: VirtioOptions
  /** bytes, `<metadata_cache><max_size>` */
  metadataCacheSize?: number
  /** `type` of an empty drive; where there is a source, its `format` says it */
  emptyFormat?: string
}

export type NetworkProtocol = 'nbd' | 'http' | 'https' | 'ftp' | 'ftps'
export interface NetworkHost {
  transport?: 'tcp' | 'unix'
  name?: string
  port?: number
  socket?: string
}

/**
 * One image: of a disk (`<source>` with the format of `<driver type>`) or of its backing chain (`<backingStore>`).
 * Its residue is that of the `<source>` of a disk, and that of the whole `<backingStore>` further down.
 */
export type StorageSource = StorageSourceCommon &
  (
    | { type: 'file'; path: string }
    | { type: 'block'; path: string }
    | {
        type: 'network'
        protocol: NetworkProtocol
        /** export name of NBD, path of HTTP */
        name?: string
        query?: string
        hosts: NetworkHost[]
        ssl?: { verify: YesNo }
        cookies?: { name: string; value: string }[]
        /** `<reconnect delay>`, seconds */
        reconnectDelay?: number
        /** `<timeout seconds>` */
        timeout?: number
        /** bytes, `<readahead size>` */
        readahead?: number
        tls?: YesNo
        tlsHostname?: string
      }
  )
interface StorageSourceCommon extends WithResidue {
  /** 'raw', 'qcow2', 'qed', …; absent only before defaults are filled in */
  format?: string
  /** `<source index>` / `<backingStore index>`, given out while the domain runs */
  index?: number
  startupPolicy?: 'mandatory' | 'requisite' | 'optional'
  /** `<slices><slice type='storage'>` */
  slice?: { offset: number; size: number }
  seclabels?: SeclabelDef[]
  /**
   * absent: not said, the image's own header decides; null: `<backingStore/>`, the chain ends here;
   * otherwise the next image
   */
  backingStore?: StorageSource | null
}

// --- other devices ---------------------------------------------------------------------------------------------

export type ControllerType = 'pci' | 'usb' | 'scsi' | 'ide' | 'sata' | 'fdc' | 'virtio-serial' | 'ccid'
export interface ControllerDef extends Device {
  type: ControllerType
  index: number
  /** 'pcie-root-port', 'qemu-xhci', 'virtio-scsi', … */
  model?: string
  /** `<driver>` of virtio-scsi and virtio-serial */
  driver?: {
    queues?: number
    cmdPerLun?: number
    maxSectors?: number
    iothread?: number
    ioeventfd?: OnOff
    virtio?: VirtioOptions
  }
  ports?: number
  vectors?: number
  /** USB companion controllers */
  master?: { startport: number }
  /** `<model name>` of a PCI controller: 'pcie-root-port', 'i82801b11-bridge', … */
  pciModelName?: string
  pciTarget?: { chassis?: number; chassisNr?: number; port?: number; hotplug?: OnOff; busNr?: number; node?: number }
  /** KiB */
  pcihole64?: number
}

export interface InterfaceDef extends Device {
  type:
    | 'user'
    | 'bridge'
    | 'network'
    | 'ethernet'
    | 'direct'
    | 'vhostuser'
    | 'udp'
    | 'mcast'
    | 'server'
    | 'client'
    | 'internal'
    | 'hostdev'
    | 'vdpa'
  mac: string
  /** bridge name, network name, … */
  source?: { bridge?: string; network?: string; dev?: string; mode?: string; portgroup?: string }
  target?: { dev?: string; managed?: YesNo }
  model?: string
  backend?: { type?: 'passt' | 'default'; tap?: string; vhost?: string; logFile?: string }
  driver?: {
    name?: 'qemu' | 'vhost'
    queues?: number
    rxQueueSize?: number
    txQueueSize?: number
    txmode?: string
    ioeventfd?: OnOff
    eventIdx?: OnOff
    virtio?: VirtioOptions
  }
  ips: { address: string; family?: 'ipv4' | 'ipv6'; prefix?: number }[]
  link?: 'up' | 'down'
  mtu?: number
  script?: string
  rom?: { bar?: OnOff; file?: string; enabled?: YesNo }
}

/** Where the host end of a character device is. */
export type ChardevSource =
  | { type: 'pty'; path?: string }
  | { type: 'null' }
  | { type: 'vc' }
  | { type: 'stdio' }
  | { type: 'file'; path: string; append?: OnOff }
  | { type: 'dev'; path: string }
  | { type: 'pipe'; path: string }
  | { type: 'unix'; mode: 'bind' | 'connect'; path?: string; reconnect?: { enabled: YesNo; timeout?: number } }
  | {
      type: 'tcp'
      mode: 'bind' | 'connect'
      host: string
      service: string
      protocol: 'raw' | 'telnet' | 'telnets' | 'tls'
      tls?: YesNo
      reconnect?: { enabled: YesNo; timeout?: number }
    }
  | { type: 'udp'; bind?: { host?: string; service?: string }; connect: { host?: string; service: string } }
  | { type: 'spicevmc' }
  | { type: 'spiceport'; channel: string }

export interface ChardevDef extends Device {
  source: ChardevSource
  log?: { file: string; append?: OnOff }
  /** serial: 'isa-serial', 'pci-serial', 'usb-serial' …; console: 'serial', 'virtio'; channel: 'virtio', 'guestfwd' */
  targetType?: string
  /** `<target port>` of serial and console */
  port?: number
  /** `<target><model name>` of serial */
  targetModel?: string
  /** `<target name>` of a virtio channel: 'org.qemu.guest_agent.0' */
  name?: string
  /** 'connected' | 'disconnected', live only */
  state?: string
}

export interface InputDef extends Device {
  type: 'mouse' | 'tablet' | 'keyboard' | 'passthrough' | 'evdev'
  bus?: 'ps2' | 'usb' | 'virtio' | 'xen'
  model?: string
  evdev?: string
}

export interface GraphicsListen {
  type: 'address' | 'socket' | 'network' | 'none'
  address?: string
  socket?: string
  network?: string
}
export interface GraphicsDef extends WithResidue {
  type: 'vnc' | 'spice' | 'sdl' | 'rdp' | 'desktop' | 'egl-headless' | 'dbus'
  port?: number
  autoport?: boolean
  websocket?: number
  keymap?: string
  passwd?: string
  passwdValidTo?: string
  connected?: string
  sharePolicy?: 'allow-exclusive' | 'force-shared' | 'ignore'
  listens: GraphicsListen[]
}

export interface VideoDef extends Device {
  model: string
  /** KiB */
  vram?: number
  ram?: number
  vgamem?: number
  heads?: number
  primary?: boolean
  accel3d?: YesNo
  resolution?: { x: number; y: number }
}

export interface RngDef extends Device {
  model: string
  rate?: { bytes: number; period?: number }
  backend: { model: 'random'; path: string } | { model: 'egd'; source: ChardevSource } | { model: 'builtin' }
  virtio?: VirtioOptions
}

export interface MemballoonDef extends Device {
  /** 'virtio', 'virtio-transitional', 'virtio-non-transitional' or 'none' */
  model: string
  autodeflate?: OnOff
  freePageReporting?: OnOff
  /** seconds */
  statsPeriod?: number
  virtio?: VirtioOptions
}

export interface WatchdogDef extends Device {
  model: 'i6300esb' | 'ib700' | 'diag288' | 'itco'
  action: 'reset' | 'shutdown' | 'poweroff' | 'pause' | 'none' | 'dump' | 'inject-nmi'
}

export interface PanicDef extends Device {
  model?: 'isa' | 'hyperv' | 'pvpanic' | 'pseries' | 's390'
}

export interface SeclabelDef {
  type?: 'static' | 'dynamic' | 'none'
  model?: string
  relabel?: YesNo
  label?: string
  imagelabel?: string
  baselabel?: string
  /** made by us at start; not part of the configuration */
  implicit?: boolean
}
