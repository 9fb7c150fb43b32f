import { failFrom } from '../error.js'
import { controllerFields as fields, controllerModels, controllerTypes } from './controller-fields.js'
import type { ControllerDef } from './domain-def.js'
import { readDevice, readVirtio } from './parse-device.js'
import type { Reader } from './reader.js'
import { needAttr, readAttr, readFields, readKib, readText, uint } from './values.js'

const fail = failFrom('VIR_FROM_DOMAIN')

const uhciPorts: Readonly<Record<string, number>> = { 'ich9-uhci1': 0, 'ich9-uhci2': 2, 'ich9-uhci3': 4 }

/**
 * One `<controller>`, without the number that is still to be given out where the XML says none (-1). Undefined for a type
 * that we do not model.
 */
export function parseController(reader: Reader): ControllerDef | undefined {
  const said = reader.peek('type') ?? 'ide'
  if (said === 'xenbus' || said === 'isa') return undefined
  const type = reader.peek('type') === undefined ? 'ide' : needAttr(reader, 'type', controllerTypes)
  const model = readModel(reader, type)
  const index = readAttr(reader, 'index', uint) ?? -1
  const pcihole64 = reader.child('pcihole64')
  return {
    type,
    index,
    ...(model !== undefined && { model }),
    ...readFields(reader, fields.own),
    ...readDriver(reader),
    ...readMaster(reader, model),
    ...(type === 'pci' && readPci(reader)),
    ...(pcihole64 && { pcihole64: readKib(pcihole64) }),
    ...readDevice(reader),
    ...reader.residue(),
  }
}

function readModel(reader: Reader, type: ControllerDef['type']): string | undefined {
  const model = reader.attr('model')
  if (model === undefined) return undefined
  if (!(controllerModels[type] ?? []).includes(model)) {
    throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `the model '${model}' of a controller of type '${type}' is not known`)
  }
  return model
}

function readDriver(reader: Reader): Pick<ControllerDef, 'driver'> {
  const driver = reader.child('driver')
  if (driver === undefined) return {}
  const read = { ...readFields(driver, fields.driver), ...readVirtio(driver) }
  return Object.keys(read).length > 0 ? { driver: read } : {}
}

/** Companion controllers of ICH9 have a place on the master's ports even if nobody says so. */
function readMaster(reader: Reader, model: string | undefined): Pick<ControllerDef, 'master'> {
  const master = reader.child('master')
  const startport = master ? (readAttr(master, 'startport', uint) ?? 0) : uhciPorts[model ?? '']
  return startport === undefined ? {} : { master: { startport } }
}

function readPci(reader: Reader): Pick<ControllerDef, 'pciModelName' | 'pciTarget'> {
  for (const name of ['model', 'target']) {
    if (reader.children(name).length > 1)
      throw fail('VIR_ERR_XML_ERROR', `a controller has at most one element '${name}'`)
  }
  const [model, target] = [reader.child('model'), reader.child('target')]
  const name = model && readAttr(model, 'name', fields.pciModelName)
  const node = target?.child('node')
  const read = target && { ...readFields(target, fields.pciTarget), ...(node && { node: readText(node, uint) }) }
  return {
    ...(name !== undefined && { pciModelName: name }),
    ...(read && Object.keys(read).length > 0 && { pciTarget: read }),
  }
}

/** The parts of one USB 2 controller: they share a number. */
const usb2Parts = ['ich9-ehci1', 'ich9-uhci1', 'ich9-uhci2', 'ich9-uhci3']

function isUsb2Part({ type, model }: ControllerDef): boolean {
  return type === 'usb' && model !== undefined && usb2Parts.includes(model)
}

/**
 * Gives a number to every controller that has none: a part of a USB 2 controller that of the part listed before it, if that
 * lacks this one, any other the lowest that is free among those of its type (virDomainAssignControllerIndexes).
 */
export function numberControllers(controllers: ControllerDef[]): ControllerDef[] {
  const taken = new Set(controllers.map(({ type, index }) => `${type} ${index}`))
  const parts = new Set(controllers.map(({ index, model }) => `${index} ${model ?? ''}`))
  let before: ControllerDef | undefined
  return controllers.map((controller) => {
    let { index } = controller
    const joins = index === -1 && isUsb2Part(controller) && before !== undefined && isUsb2Part(before)
    if (joins && before && !parts.has(`${before.index} ${controller.model ?? ''}`)) index = before.index
    for (let free = 0; index === -1; free++) if (!taken.has(`${controller.type} ${free}`)) index = free
    taken.add(`${controller.type} ${index}`)
    parts.add(`${index} ${controller.model ?? ''}`)
    const numbered = index === controller.index ? controller : { ...controller, index }
    if (controller.type === 'usb') before = numbered
    return numbered
  })
}
