import type { GraphicsDef, InputDef, MemballoonDef, PanicDef, RngDef, VideoDef, WatchdogDef } from './domain-def.js'
import { formatChardevSource } from './format-chardev.js'
import { virtioAttributes, writeDevice } from './format-device.js'
import { graphicsFields, videoFields } from './graphics-fields.js'
import { writeFields } from './values.js'
import type { Out } from './writer.js'
import { element, unlessEmpty, withResidue } from './writer.js'

export function formatInput(input: InputDef): Out {
  const { type, bus, model, evdev } = input
  const source = evdev === undefined ? undefined : element('source', type === 'evdev' ? { dev: evdev } : { evdev })
  return withResidue(element('input', { type, bus, model }, [source, ...writeDevice(input)]), input.residue)
}

/** `<graphics>` (virDomainGraphicsDefFormat); the password only if `secure`. */
export function formatGraphics(graphics: GraphicsDef, secure: boolean): Out {
  const { type } = graphics
  const first = graphics.listens[0]
  const onSocket = first?.type === 'socket'
  const listen = first?.type === 'address' || first?.type === 'network' ? first.address : undefined
  const ports = onSocket || first?.type === 'none' || first === undefined ? {} : portAttributes(graphics)
  const auth = writeFields(graphics, graphicsFields.auth)
  const out = element(
    'graphics',
    {
      type,
      ...(onSocket && type === 'vnc' && { socket: first.socket }),
      ...ports,
      listen,
      ...writeFields(graphics, graphicsFields.keymap),
      ...(graphics.sharePolicy !== undefined && { sharePolicy: graphics.sharePolicy }),
      ...(secure ? auth : { connected: auth['connected'] }),
    },
    graphics.listens.map((each) => element('listen', { ...each })),
  )
  return withResidue(out, graphics.residue)
}

function portAttributes({ type, port, autoport, websocket }: GraphicsDef): Record<string, string | number | undefined> {
  return {
    port: port ?? (type === 'vnc' && autoport === true ? -1 : undefined),
    autoport: autoport === undefined ? undefined : autoport ? 'yes' : 'no',
    websocket,
  }
}

export function formatVideo(video: VideoDef): Out {
  const { accel3d, resolution } = video
  const model = element(
    'model',
    { type: video.model === 'default' ? undefined : video.model, ...writeFields(video, videoFields) },
    [
      accel3d === undefined ? undefined : element('acceleration', { accel3d }),
      resolution === undefined ? undefined : element('resolution', { x: resolution.x, y: resolution.y }),
    ],
  )
  return withResidue(element('video', {}, [unlessEmpty(model), ...writeDevice(video)]), video.residue)
}

function formatVirtioDriver(device: RngDef | MemballoonDef): Out | undefined {
  return unlessEmpty(element('driver', virtioAttributes(device.virtio)))
}

export function formatRng(rng: RngDef): Out {
  const { rate, backend } = rng
  const out = element('rng', { model: rng.model }, [
    rate === undefined ? undefined : element('rate', { bytes: rate.bytes, period: rate.period }),
    formatBackend(backend),
    formatVirtioDriver(rng),
    ...writeDevice(rng),
  ])
  return withResidue(out, rng.residue)
}

function formatBackend(backend: RngDef['backend']): Out {
  switch (backend.model) {
    case 'random':
      return element('backend', { model: 'random' }, backend.path)
    case 'egd':
      return element('backend', { model: 'egd', type: backend.source.type }, formatChardevSource(backend.source))
    case 'builtin':
      return element('backend', { model: 'builtin' })
  }
}

export function formatMemballoon(balloon: MemballoonDef): Out {
  const { model, autodeflate, freePageReporting, statsPeriod } = balloon
  const out = element('memballoon', { model, autodeflate, freePageReporting }, [
    statsPeriod === undefined ? undefined : element('stats', { period: statsPeriod }),
    ...writeDevice(balloon),
    formatVirtioDriver(balloon),
  ])
  return withResidue(out, balloon.residue)
}

export function formatWatchdog(watchdog: WatchdogDef): Out {
  const { model, action } = watchdog
  return withResidue(element('watchdog', { model, action }, writeDevice(watchdog)), watchdog.residue)
}

export function formatPanic(panic: PanicDef): Out {
  return withResidue(element('panic', { model: panic.model }, writeDevice(panic)), panic.residue)
}
