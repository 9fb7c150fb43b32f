/** What the devices other than disks must be like for QEMU (qemuValidateDomainDeviceDef). */
import type {
  ChardevDef,
  ChardevSource,
  DomainDef,
  GraphicsDef,
  InputDef,
  PanicDef,
  VideoDef,
  WatchdogDef,
} from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { checkControllers } from './checks-controller.js'
import { checkInterfaces } from './checks-interface.js'
import type { DefinitionCaps } from './definition-caps.js'
import { isQ35 } from './machine.js'

const fail = failFrom('VIR_FROM_QEMU')
const unsupported = (message: string): Error => fail('VIR_ERR_CONFIG_UNSUPPORTED', message)

export function checkDevices(def: DomainDef, caps: DefinitionCaps): void {
  checkControllers(def, caps)
  checkInterfaces(def)
  def.serials.forEach(checkSerial)
  def.consoles.forEach(checkConsole)
  def.channels.forEach(checkChannel)
  for (const input of def.inputs) checkInput(input, caps)
  checkGraphics(def)
  checkVideos(def, caps)
  def.watchdogs.forEach((watchdog) => checkWatchdog(def, watchdog))
  def.panics.forEach((panic) => checkPanic(def, panic))
  for (const rng of def.rngs) {
    checkVirtioModel('random number generator', rng.model)
    if (rng.backend.model === 'egd') checkSource('random number generator', rng.backend.source)
  }
  const balloon = def.memballoon?.model ?? 'none'
  if (balloon !== 'none') checkVirtioModel('memory balloon', balloon)
}

function checkVirtioModel(what: string, model: string): void {
  if (!['virtio', 'virtio-transitional', 'virtio-non-transitional'].includes(model))
    throw unsupported(`${what} of model '${model}' is not supported`)
}

// --- character devices -----------------------------------------------------------------------------------------

/** What each target of a serial device implies: its model and the kind of its address. */
const SERIAL_TARGETS: Record<string, { model: string; address: string }> = {
  'isa-serial': { model: 'isa-serial', address: 'isa' },
  'usb-serial': { model: 'usb-serial', address: 'usb' },
  'pci-serial': { model: 'pci-serial', address: 'pci' },
  'isa-debug': { model: 'isa-debugcon', address: 'isa' },
}

function checkSerial({ source, targetType = '', targetModel, address }: ChardevDef): void {
  const target = SERIAL_TARGETS[targetType]
  if (!target) throw unsupported(`serial target type '${targetType}' is not supported on this machine`)
  if (targetModel !== target.model)
    throw unsupported(
      `serial target type '${targetType}' needs target model '${target.model}', not '${targetModel ?? ''}'`,
    )
  if (address && address.type !== target.address)
    throw unsupported(`serial target type '${targetType}' needs an address of type '${target.address}'`)
  checkSource('serial device', source)
}

function checkConsole({ source, targetType = '', address }: ChardevDef): void {
  if (targetType !== 'serial' && targetType !== 'virtio')
    throw unsupported(`console target type '${targetType}' is not supported`)
  if (targetType === 'virtio' && address && address.type !== 'virtio-serial')
    throw unsupported("a virtio console needs an address of type 'virtio-serial'")
  checkSource('console', source)
}

function checkChannel({ source, targetType = '', address, name }: ChardevDef): void {
  if (targetType !== 'virtio') throw unsupported(`channels of type '${targetType}' are not supported`)
  if (address && address.type !== 'virtio-serial')
    throw unsupported(`channel '${name ?? ''}' needs an address of type 'virtio-serial'`)
  checkSource(`channel '${name ?? ''}'`, source)
}

function checkSource(owner: string, source: ChardevSource): void {
  if (source.type === 'spicevmc' || source.type === 'spiceport' || source.type === 'stdio')
    throw unsupported(`${owner}: character devices of type '${source.type}' are not supported`)
  if (source.type !== 'unix' && source.type !== 'tcp') return
  if (source.type === 'tcp' && (source.tls === 'yes' || source.protocol === 'tls' || source.protocol === 'telnets'))
    throw unsupported(`${owner}: TLS is not supported for character devices`)
  if (source.reconnect?.enabled !== 'yes') return
  if (source.mode === 'bind') throw unsupported(`${owner}: reconnect is possible only in mode 'connect'`)
  if (source.reconnect.timeout === 0)
    throw fail('VIR_ERR_INVALID_ARG', `${owner}: the timeout of reconnect cannot be 0`)
}

// --- input, graphics, video ------------------------------------------------------------------------------------

function checkInput({ type, bus, model, evdev }: InputDef, caps: DefinitionCaps): void {
  const refuse = (why: string): never => {
    throw unsupported(`input device '${type}' ${why}`)
  }
  const pointsOrTypes = type === 'mouse' || type === 'keyboard' || type === 'tablet'
  if (bus === 'xen') refuse("is not supported on bus 'xen'")
  if (bus === 'ps2' && type !== 'mouse' && type !== 'keyboard') refuse("is not supported on bus 'ps2'")
  if (type === 'passthrough' && bus !== 'virtio') refuse("needs bus 'virtio'")
  if (type === 'evdev' && bus !== undefined) refuse('is on no bus')
  if (pointsOrTypes && evdev !== undefined) refuse("has no source, only 'passthrough' and 'evdev' have")
  if (!pointsOrTypes && evdev === undefined) refuse('needs a source')
  if (model !== undefined && bus !== 'virtio') refuse(`of model '${model}' needs bus 'virtio'`)
  if (model === 'virtio-transitional' || model === 'virtio-non-transitional') refuse(`has no model '${model}'`)
  if (bus === 'virtio' && pointsOrTypes && !caps.has(`virtio-${type}-pci`)) refuse("is not supported on bus 'virtio'")
}

function checkGraphics({ graphics }: DomainDef): void {
  const [first, second] = graphics
  if (first && second && first.type === second.type)
    throw unsupported(`there can be only one graphics device of type '${first.type}'`)
  graphics.forEach(checkOneGraphics)
}

function checkOneGraphics({ type, passwd, listens, port }: GraphicsDef): void {
  if (type !== 'vnc') throw unsupported(`graphics of type '${type}' is not supported`)
  if (passwd !== undefined && passwd.length > 8)
    throw unsupported(`a VNC password has at most 8 characters, not ${passwd.length}`)
  if (listens.length > 1) throw unsupported('a VNC server listens in one place only')
  const [listen] = listens
  if (listen?.type === 'network') throw unsupported(`listening on network '${listen.network ?? ''}' is not supported`)
  if (port !== undefined && port > 0 && port < 5900) throw unsupported('a VNC port must be in range [5900,65535]')
}

/** Models that can also be a second card. */
const SECONDARY_MODELS = ['qxl', 'virtio']
const VIDEO_DEVICES: Record<string, string> = {
  vga: 'VGA',
  cirrus: 'cirrus-vga',
  vmvga: 'vmware-svga',
  bochs: 'bochs-display',
  ramfb: 'ramfb',
  virtio: 'virtio-gpu-pci',
  qxl: 'qxl',
}

function checkVideos({ videos }: DomainDef, caps: DefinitionCaps): void {
  if (videos.length > 1 && videos.some(({ model }) => model === 'none'))
    throw unsupported("a video device of model 'none' must be the only one")
  for (const video of videos) checkVideo(video, caps)
}

function checkVideo(video: VideoDef, caps: DefinitionCaps): void {
  const { model, primary, heads = 1, ram, vgamem, vram, accel3d, resolution, address } = video
  const refuse = (why: string): never => {
    throw unsupported(`video model '${model}' ${why}`)
  }
  if (model === 'none') return
  const device = VIDEO_DEVICES[model]
  if (device === undefined || !caps.has(device)) refuse('is not supported')
  const many = SECONDARY_MODELS.includes(model)
  if (!many && !primary) refuse('can only be the primary one')
  if (!many && heads !== 1) refuse("does not support several 'heads'")
  if (model !== 'qxl' && (ram ?? vgamem) !== undefined) refuse('has no ram or vgamem, only qxl has')
  if (vgamem !== undefined && (vgamem < 1024 || 2 ** Math.round(Math.log2(vgamem)) !== vgamem))
    refuse('needs a vgamem that is a power of two of at least 1024 KiB')
  if ((model === 'vga' || model === 'vmvga') && vram !== undefined && vram < 1024)
    refuse('needs a vram of at least 1024 KiB')
  if (accel3d === 'yes' && (model !== 'virtio' || !caps.has('virtio-vga-gl')))
    refuse('does not support 3D acceleration')
  if (resolution && !['vga', 'qxl', 'virtio', 'bochs'].includes(model)) refuse('does not support a resolution')
  if (resolution && (resolution.x === 0 || resolution.y === 0)) refuse('needs a resolution greater than 0')
  if (model === 'ramfb' && address) refuse('has no address')
}

// --- the rest --------------------------------------------------------------------------------------------------

function checkWatchdog(def: DomainDef, { model, address }: WatchdogDef): void {
  if (model === 'diag288') throw unsupported(`watchdog model '${model}' is not supported on this machine`)
  if (model === 'itco' && !isQ35(def)) throw unsupported("watchdog model 'itco' is part of machine 'q35' only")
  if (model === 'i6300esb' && address && address.type !== 'pci')
    throw unsupported("watchdog model 'i6300esb' needs an address of type 'pci'")
  if (model !== 'i6300esb' && address) throw unsupported(`watchdog model '${model}' cannot have an address`)
}

function checkPanic({ panics }: DomainDef, { model = 'isa', address }: PanicDef): void {
  if (panics.filter((other) => other.model === model).length > 1)
    throw fail('VIR_ERR_XML_ERROR', `there are several panic devices of model '${model}'`)
  if (model === 'hyperv' && address) throw unsupported("panic model 'hyperv' cannot have an address")
  if (model !== 'isa' && model !== 'hyperv') throw unsupported(`panic model '${model}' is not supported`)
  if (address && address.type !== 'isa') throw unsupported("panic model 'isa' needs an address of type 'isa'")
}
