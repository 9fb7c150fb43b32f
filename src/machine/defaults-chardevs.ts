import type { ChardevDef, DomainDef } from '../conf/domain-def.js'
import { failFrom } from '../error.js'

const fail = failFrom('VIR_FROM_QEMU')

const ISA_SERIAL_PORTS = 4

const SERIAL_MODELS: Record<string, string> = {
  'isa-serial': 'isa-serial',
  'usb-serial': 'usb-serial',
  'pci-serial': 'pci-serial',
  'isa-debug': 'isa-debugcon',
}

/** Targets, models and ports of serial devices, consoles and channels, and the console that goes with the first serial. */
export function settleChardevs(def: DomainDef): void {
  numberIsaSerials(def)
  def.serials.forEach((serial) => settleSerial(serial, def.serials))
  for (const channel of def.channels) {
    channel.targetType ??= 'virtio'
    if (channel.source.type === 'unix' && channel.source.path === undefined) channel.source.mode = 'bind'
  }
  for (const console of def.consoles) {
    console.targetType ??= 'serial'
    console.port ??= nextPort(def.consoles)
  }
  pairConsole(def)
}

function settleSerial(serial: ChardevDef, all: ChardevDef[]): void {
  serial.targetType ??= 'isa-serial'
  const model = SERIAL_MODELS[serial.targetType]
  if (model !== undefined) serial.targetModel ??= model
  serial.port ??= nextPort(all)
}

function nextPort(devices: ChardevDef[]): number {
  return Math.max(-1, ...devices.map((device) => device.port ?? -1)) + 1
}

/** ISA ports are few and fixed: each has one user, and who asked for none gets the lowest free one. */
function numberIsaSerials(def: DomainDef): void {
  const isa = def.serials.filter(({ targetType }) => targetType === 'isa-serial')
  const used = new Set<number>()
  for (const { port } of isa) {
    if (port === undefined) continue
    if (used.has(port)) throw fail('VIR_ERR_XML_ERROR', `two serial devices want ISA port ${port}`)
    used.add(port)
  }
  for (const serial of isa) {
    if (serial.port !== undefined) continue
    serial.port = [...Array(ISA_SERIAL_PORTS).keys()].find((port) => !used.has(port)) ?? used.size
    used.add(serial.port)
  }
  if ([...used].some((port) => port >= ISA_SERIAL_PORTS))
    throw fail('VIR_ERR_XML_ERROR', `there are only ${ISA_SERIAL_PORTS} ISA serial ports`)
}

/**
 * The first console is, by an old custom, another name of the first serial device: each brings the other about
 * (virDomainDefAddConsoleCompat).
 */
function pairConsole(def: DomainDef): void {
  if (def.consoles.slice(1).some(({ targetType }) => targetType === 'serial'))
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', 'only the first console can be a serial port')
  const [console] = def.consoles
  const [serial] = def.serials
  if (console?.targetType === 'serial') {
    if (!serial) def.serials.push(serialOf(console))
    syncConsole(def)
  } else if (serial?.targetType === 'isa-serial') {
    def.consoles.unshift({ source: serial.source, targetType: 'serial' })
    syncConsole(def)
  }
}

function serialOf({ residue, alias, ...console }: ChardevDef): ChardevDef {
  return {
    ...structuredClone(console),
    ...(residue ? { residue } : {}),
    ...(alias === undefined ? {} : { alias }),
    targetType: 'isa-serial',
    targetModel: 'isa-serial',
    port: 0,
  }
}

/** Makes the first console show what the first serial device is, after either got a new path or alias. */
export function syncConsole(def: DomainDef): void {
  const [console] = def.consoles
  const [serial] = def.serials
  if (console?.targetType !== 'serial' || !serial) return
  const { source, port, alias, address, log } = structuredClone(serial)
  const residue = console.residue ?? serial.residue?.filter(({ path }) => path.startsWith('source'))
  def.consoles[0] = {
    source,
    targetType: 'serial',
    port: port ?? 0,
    ...(alias === undefined ? {} : { alias }),
    ...(address ? { address } : {}),
    ...(log ? { log } : {}),
    ...(residue?.length ? { residue } : {}),
  }
}
