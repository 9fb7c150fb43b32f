import type { GraphicsDef, VideoDef } from './domain-def.js'
import type { Field } from './values.js'
import { anyText, oneOf, uint, whole, yes } from './values.js'

export const graphicsTypes = oneOf('vnc', 'spice', 'sdl', 'rdp', 'desktop', 'egl-headless', 'dbus')

const websocket: Field<Pick<GraphicsDef, 'websocket'>>[] = [['websocket', 'websocket', whole(-1, 65535)]]
const vnc: Field<Pick<GraphicsDef, 'sharePolicy'>>[] = [
  ['sharePolicy', 'sharePolicy', oneOf('allow-exclusive', 'force-shared', 'ignore')],
]
const keymap: Field<Pick<GraphicsDef, 'keymap'>>[] = [['keymap', 'keymap', anyText]]
const auth: Field<Pick<GraphicsDef, 'passwd' | 'passwdValidTo' | 'connected'>>[] = [
  ['passwd', 'passwd', anyText],
  ['passwdValidTo', 'passwdValidTo', anyText],
  ['connected', 'connected', oneOf('fail', 'disconnect', 'keep')],
]
const common: Field<Pick<GraphicsDef, 'keymap' | 'passwd' | 'passwdValidTo' | 'connected'>>[] = [...keymap, ...auth]

export const graphicsFields = { vnc, websocket, keymap, auth, common }

export const videoModels = [
  ...[
    'default',
    'vga',
    'cirrus',
    'vmvga',
    'xen',
    'vbox',
    'qxl',
    'parallels',
    'virtio',
    'gop',
    'none',
    'bochs',
    'ramfb',
  ],
]
export const videoFields: Field<Pick<VideoDef, 'ram' | 'vram' | 'vgamem' | 'heads' | 'primary'>>[] = [
  ['ram', 'ram', uint],
  ['vram', 'vram', uint],
  ['vgamem', 'vgamem', uint],
  ['heads', 'heads', uint],
  ['primary', 'primary', yes],
]
