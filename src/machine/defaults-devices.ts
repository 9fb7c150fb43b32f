import type { DiskDef, DomainDef, GraphicsDef, InputDef, VideoDef } from '../conf/domain-def.js'
import type { DefinitionCaps } from './definition-caps.js'

/** KiB of video memory that libvirt gives a model (virDomainVideoDefaultRAM). */
const VIDEO_RAM: Record<string, number> = {
  vga: 16 * 1024,
  cirrus: 16 * 1024,
  vmvga: 16 * 1024,
  bochs: 16 * 1024,
  qxl: 64 * 1024,
}

export function settleDisk(disk: DiskDef): void {
  disk.driver.name ??= 'qemu'
  if (disk.device === 'cdrom') disk.readonly = true
  if (disk.source) disk.source.format ??= 'raw'
}

/** Every PC has a PS/2 mouse and keyboard; a device without a bus gets the usual one of its type. */
export function settleInputs(def: DomainDef): void {
  for (const input of def.inputs) if (input.type !== 'evdev') input.bus ??= usualInputBus(input)
  for (const type of ['mouse', 'keyboard'] as const) {
    if (!def.inputs.some((input) => input.type === type && input.bus === 'ps2')) def.inputs.push({ type, bus: 'ps2' })
  }
}

function usualInputBus({ type }: InputDef): NonNullable<InputDef['bus']> {
  if (type === 'mouse' || type === 'keyboard') return 'ps2'
  return type === 'passthrough' ? 'virtio' : 'usb'
}

export function settleNetworkModels(def: DomainDef, caps: DefinitionCaps): void {
  for (const net of def.interfaces) {
    if (net.model !== undefined) net.model = knownSpelling(net.model)
    else if (net.type !== 'hostdev') net.model = net.type === 'vdpa' ? 'virtio' : defaultNetModel(caps)
  }
}

const NET_MODELS =
  'virtio virtio-transitional virtio-non-transitional e1000 e1000e rtl8139 usb-net vmxnet3 pcnet ne2k_pci'

/** libvirt does not mind how the models that it knows are written. */
function knownSpelling(model: string): string {
  return NET_MODELS.split(' ').find((known) => known === model.toLowerCase()) ?? model
}

/** The card that most guests have a driver for (qemuDomainDefaultNetModel). */
function defaultNetModel(caps: DefinitionCaps): string {
  if (caps.has('rtl8139')) return 'rtl8139'
  if (caps.has('e1000')) return 'e1000'
  return caps.has('virtio-net-pci') ? 'virtio' : 'rtl8139'
}

/** Whoever has a display has a video card; the first is the primary one. */
export function settleVideos(def: DomainDef, caps: DefinitionCaps): void {
  if (def.graphics.length > 0 && def.videos.length === 0) def.videos.push({ model: 'default' })
  const primary = def.videos.findIndex((video) => video.primary)
  if (primary > 0) def.videos.unshift(...def.videos.splice(primary, 1))
  def.videos.forEach((video, nth) => settleVideo(video, nth === 0, caps))
}

function settleVideo(video: VideoDef, first: boolean, caps: DefinitionCaps): void {
  if (!video.model || video.model === 'default') video.model = defaultVideoModel(caps)
  if (video.model === 'none') return
  video.heads ??= 1
  if (first) video.primary = true
  if (video.model === 'qxl') {
    video.vgamem ??= 16 * 1024
    video.ram = roundUpPowerOfTwo(video.ram ?? VIDEO_RAM['qxl'] ?? 0)
  }
  const vram = video.vram ?? VIDEO_RAM[video.model]
  if (vram !== undefined) video.vram = roundUpPowerOfTwo(vram)
}

function defaultVideoModel(caps: DefinitionCaps): string {
  return caps.has('cirrus-vga') || !caps.has('VGA') ? 'cirrus' : 'vga'
}

function roundUpPowerOfTwo(value: number): number {
  return value <= 1 ? value : 2 ** Math.ceil(Math.log2(value))
}

export function settleGraphics(graphics: GraphicsDef): void {
  const listens = graphics.type === 'vnc' || graphics.type === 'spice'
  if (listens && graphics.listens.length === 0) graphics.listens.push({ type: 'address' })
}
