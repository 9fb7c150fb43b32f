import type { InterfaceDef } from './domain-def.js'
import type { Field } from './values.js'
import { anyText, oneOf, onOff, text, uint, yesNo } from './values.js'

export const interfaceTypes = oneOf<InterfaceDef['type']>(
  ...([
    'user',
    'ethernet',
    'vhostuser',
    'server',
    'client',
    'mcast',
    'network',
    'bridge',
    'internal',
    'direct',
  ] as const),
  ...(['hostdev', 'udp', 'vdpa'] as const),
)

type Part<K extends keyof InterfaceDef> = NonNullable<InterfaceDef[K]>

const source: Field<Part<'source'>>[] = [
  ['network', 'network', text],
  ['portgroup', 'portgroup', text],
  ['bridge', 'bridge', text],
  ['dev', 'dev', text],
  ['mode', 'mode', text],
]
const target: Field<Part<'target'>>[] = [
  ['dev', 'dev', anyText],
  ['managed', 'managed', yesNo],
]
const backend: Field<Part<'backend'>>[] = [
  ['type', 'type', oneOf('passt', 'default')],
  ['tap', 'tap', text],
  ['vhost', 'vhost', text],
  ['logFile', 'logFile', text],
]
const driver: Field<Omit<Part<'driver'>, 'virtio'>>[] = [
  ['name', 'name', oneOf('qemu', 'vhost')],
  ['txmode', 'txmode', oneOf('iothread', 'timer')],
  ['ioeventfd', 'ioeventfd', onOff],
  ['event_idx', 'eventIdx', onOff],
  ['queues', 'queues', uint],
  ['rx_queue_size', 'rxQueueSize', uint],
  ['tx_queue_size', 'txQueueSize', uint],
]
const rom: Field<Part<'rom'>>[] = [
  ['enabled', 'enabled', yesNo],
  ['bar', 'bar', onOff],
  ['file', 'file', anyText],
]

export const interfaceFields = { source, target, backend, driver, rom }
