/** Input, graphics, video, random numbers, balloon, watchdog, panic. */
import type { DomainDef, GraphicsDef, InputDef, RngDef, VideoDef, WatchdogDef } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { chardev } from './command-chardev.js'
import {
  addressProps,
  aliasOf,
  bool,
  device,
  escapeComma,
  object,
  virtioDriver,
  virtioProps,
  type CommandCaps,
  type Props,
} from './command-props.js'

const fail = failFrom('VIR_FROM_QEMU')

// --- input -----------------------------------------------------------------------------------------------------

/** PS/2 devices are part of the machine. */
export function inputsCommand(def: DomainDef, caps: CommandCaps): string[] {
  return def.inputs.filter((input) => input.bus !== 'ps2').flatMap((input) => inputCommand(def, caps, input))
}

function inputCommand(def: DomainDef, caps: CommandCaps, input: InputDef): string[] {
  const { type, bus, evdev } = input
  const id = aliasOf(input, 'input device')
  if (type === 'evdev') return object(caps, { 'qom-type': 'input-linux', id, evdev })
  const address = addressProps(def, input.address)
  if (bus === 'usb' && type !== 'passthrough') {
    return device(caps, { driver: type === 'keyboard' ? 'usb-kbd' : `usb-${type}`, id, ...address })
  }
  if (bus === 'virtio') {
    const base = type === 'passthrough' ? 'virtio-input-host' : `virtio-${type}`
    return device(caps, { driver: virtioDriver(base, input.model), id, evdev, ...address })
  }
  throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `input device '${type}' on bus '${bus ?? ''}' is not supported`)
}

// --- graphics and video ----------------------------------------------------------------------------------------

export interface GraphicsContext {
  caps: CommandCaps
  runDir: string
  /** TCP port for a VNC server that is to get one by itself */
  vncPort?: number
}

/** Where a VNC server with `<listen type='socket'/>` and no path listens. */
export const vncSocketPath = (runDir: string): string => `${runDir}/vnc.sock`

export function graphicsCommand(def: DomainDef, context: GraphicsContext): string[] {
  return def.graphics.flatMap((graphics) => {
    if (graphics.type !== 'vnc') {
      throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `graphics of type '${graphics.type}' are not supported`)
    }
    const keymap = graphics.keymap === undefined ? [] : ['-k', graphics.keymap]
    return ['-vnc', [vncListen(graphics, context), ...vncOptions(graphics)].join(','), ...keymap]
  })
}

function vncOptions({ sharePolicy, passwd }: GraphicsDef): string[] {
  return [...(sharePolicy ? [`share=${sharePolicy}`] : []), ...(passwd === undefined ? [] : ['password=on'])]
}

function vncListen(graphics: GraphicsDef, { runDir, vncPort }: GraphicsContext): string {
  const listen = graphics.listens[0]
  if (listen?.type === 'none') return 'none'
  // by its name, since a path may have a '=' in it
  if (listen?.type === 'socket') return `vnc=unix:${escapeComma(listen.socket ?? vncSocketPath(runDir))}`
  const address = listen?.address ?? vncListenDefault
  const fixed = graphics.port === undefined || graphics.port < 0 ? undefined : graphics.port
  const port = graphics.autoport === true ? (vncPort ?? fixed) : (fixed ?? vncPort)
  if (port === undefined) throw fail('VIR_ERR_INTERNAL_ERROR', 'no port was allocated for the VNC server')
  if (port < 5900 || port > 65535) throw fail('VIR_ERR_CONFIG_UNSUPPORTED', 'vnc port must be in range [5900,65535]')
  const websocket = graphics.websocket === undefined ? '' : `,websocket=${vncWebsocket(graphics.websocket)}`
  return `${escapeComma(address.includes(':') ? `[${address}]` : address)}:${port - 5900}${websocket}`
}

/** Nobody else shall look on unless the definition says so. */
const vncListenDefault = '127.0.0.1'

const vncWebsocket = (port: number): string => (port < 0 ? 'on' : String(port))

export function videosCommand(def: DomainDef, caps: CommandCaps): string[] {
  return def.videos
    .filter((video) => video.model !== 'none')
    .flatMap((video, at) => device(caps, videoProps(def, video, video.primary ?? at === 0)))
}

const mib = (kib: number | undefined): number | undefined => (kib === undefined ? undefined : Math.ceil(kib / 1024))
const bytes = (kib: number | undefined): number | undefined => (kib === undefined ? undefined : kib * 1024)

function videoProps(def: DomainDef, video: VideoDef, primary: boolean): Props & { driver: string } {
  const id = aliasOf(video, 'video device')
  const resolution = { xres: video.resolution?.x, yres: video.resolution?.y }
  return { ...videoModel(video, primary), id, ...resolution, ...addressProps(def, video.address) }
}

function videoModel(video: VideoDef, primary: boolean): Props & { driver: string } {
  const { vram, heads } = video
  const gl = video.accel3d === 'yes' ? '-gl' : ''
  switch (video.model) {
    case 'vga':
      return { driver: primary ? 'VGA' : 'secondary-vga', vgamem_mb: mib(vram) }
    case 'cirrus':
      return { driver: 'cirrus-vga' }
    case 'vmvga':
      return { driver: 'vmware-svga', vgamem_mb: mib(vram) }
    case 'bochs':
      return { driver: 'bochs-display', vgamem: bytes(vram) }
    case 'ramfb':
      return { driver: 'ramfb' }
    case 'virtio':
      return { driver: primary ? `virtio-vga${gl}` : `virtio-gpu${gl}-pci`, max_outputs: heads }
    case 'qxl': {
      const memory = {
        ram_size: bytes(video.ram),
        vram_size: bytes(vram),
        vram64_size_mb: 0,
        vgamem_mb: mib(video.vgamem),
      }
      return { driver: primary ? 'qxl-vga' : 'qxl', max_outputs: heads, ...memory }
    }
    default:
      throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `video model '${video.model}' is not supported`)
  }
}

// --- random numbers --------------------------------------------------------------------------------------------

export function rngsCommand(def: DomainDef, caps: CommandCaps, runDir: string): string[] {
  return def.rngs.flatMap((rng) => {
    const id = aliasOf(rng, 'RNG device')
    const isEgd = rng.backend.model === 'egd'
    return [
      ...(rng.backend.model === 'egd' ? chardev(`char${id}`, rng.backend.source, runDir, id) : []),
      ...object(caps, { 'qom-type': `rng-${rng.backend.model}`, id: `obj${id}`, ...rngBackend(rng, isEgd, id) }),
      ...device(caps, rngProps(def, rng, id)),
    ]
  })
}

function rngBackend({ backend }: RngDef, isEgd: boolean, id: string): Props {
  if (isEgd) return { chardev: `char${id}` }
  return backend.model === 'random' ? { filename: backend.path } : {}
}

function rngProps(def: DomainDef, rng: RngDef, id: string): Props & { driver: string } {
  return {
    driver: virtioDriver('virtio-rng', rng.model),
    ...virtioProps(rng.virtio),
    rng: `obj${id}`,
    id,
    'max-bytes': rng.rate?.bytes,
    period: rng.rate === undefined ? undefined : (rng.rate.period ?? 1000),
    ...addressProps(def, rng.address),
  }
}

// --- balloon, watchdogs, panic ---------------------------------------------------------------------------------

export function memballoonCommand(def: DomainDef, caps: CommandCaps): string[] {
  const { memballoon } = def
  if (memballoon === undefined || memballoon.model === 'none') return []
  return device(caps, {
    driver: virtioDriver('virtio-balloon', memballoon.model),
    ...virtioProps(memballoon.virtio),
    id: aliasOf(memballoon, 'memory balloon'),
    'deflate-on-oom': bool(memballoon.autodeflate),
    'free-page-reporting': bool(memballoon.freePageReporting),
    ...addressProps(def, memballoon.address),
  })
}

/** QEMU has one action for all watchdogs. It cannot dump: it pauses then, and the driver sees the WATCHDOG event. */
export function watchdogsCommand(def: DomainDef, caps: CommandCaps): string[] {
  const [first] = def.watchdogs
  if (first === undefined) return []
  if (def.watchdogs.some(({ action }) => action !== first.action)) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', 'all watchdogs of a domain must have the same action')
  }
  const devices = def.watchdogs.flatMap((watchdog) => watchdogDevice(def, caps, watchdog))
  return [...devices, '-watchdog-action', first.action === 'dump' ? 'pause' : first.action]
}

function watchdogDevice(def: DomainDef, caps: CommandCaps, watchdog: WatchdogDef): string[] {
  if (watchdog.model === 'diag288') {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', "watchdog model 'diag288' is not supported on this machine")
  }
  if (watchdog.model === 'itco') return ['-global', 'ICH9-LPC.noreboot=off'] // part of Q35's chipset
  const id = aliasOf(watchdog, 'watchdog')
  return device(caps, { driver: watchdog.model, id, ...addressProps(def, watchdog.address) })
}

/** The Hyper-V model is a CPU feature. */
export function panicsCommand(def: DomainDef, caps: CommandCaps): string[] {
  return def.panics.flatMap(({ model = 'isa', address }) => {
    if (model === 'hyperv') return []
    if (model === 'pvpanic') return device(caps, { driver: 'pvpanic-pci', ...addressProps(def, address) })
    if (model !== 'isa') throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `panic model '${model}' is not supported`)
    const ioport = address?.type === 'isa' && address.iobase !== undefined ? Number(address.iobase) : undefined
    return device(caps, { driver: 'pvpanic', ioport })
  })
}
