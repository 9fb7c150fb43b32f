import { controllerFields as fields } from './controller-fields.js'
import type { ControllerDef, InterfaceDef } from './domain-def.js'
import { virtioAttributes, writeDevice } from './format-device.js'
import { interfaceFields } from './interface-fields.js'
import { writeFields } from './values.js'
import type { Out } from './writer.js'
import { element, textElement, unlessEmpty, withResidue } from './writer.js'

/** `<controller>` (virDomainControllerDefFormat). */
export function formatController(controller: ControllerDef): Out {
  const { type, index, model, driver, master, pciModelName, pciTarget, pcihole64 } = controller
  const out = element('controller', { type, index, model, ...writeFields(controller, fields.own) }, [
    pciModelName === undefined ? undefined : element('model', { name: pciModelName }),
    pciTarget === undefined
      ? undefined
      : element('target', writeFields(pciTarget, fields.pciTarget), [textElement('node', pciTarget.node)]),
    pcihole64 === undefined ? undefined : element('pcihole64', { unit: 'KiB' }, String(pcihole64)),
    driver === undefined
      ? undefined
      : unlessEmpty(element('driver', { ...writeFields(driver, fields.driver), ...virtioAttributes(driver.virtio) })),
    ...writeDevice(controller, [master === undefined ? undefined : element('master', { startport: master.startport })]),
  ])
  return withResidue(out, controller.residue)
}

/** `<interface>` (virDomainNetDefFormat). */
export function formatInterface(net: InterfaceDef): Out {
  const { driver } = net
  const out = element('interface', { type: net.type }, [
    element('mac', { address: net.mac }),
    net.source === undefined ? undefined : element('source', writeFields(net.source, interfaceFields.source)),
    ...net.ips.map(({ address, family, prefix }) => element('ip', { address, family, prefix })),
    net.script === undefined ? undefined : element('script', { path: net.script }),
    net.target === undefined
      ? undefined
      : unlessEmpty(element('target', writeFields(net.target, interfaceFields.target))),
    net.model === undefined ? undefined : element('model', { type: net.model }),
    driver === undefined
      ? undefined
      : element('driver', { ...writeFields(driver, interfaceFields.driver), ...virtioAttributes(driver.virtio) }),
    net.backend === undefined ? undefined : element('backend', writeFields(net.backend, interfaceFields.backend)),
    net.link === undefined ? undefined : element('link', { state: net.link }),
    net.mtu === undefined ? undefined : element('mtu', { size: net.mtu }),
    ...writeDevice(net, [
      net.rom === undefined ? undefined : element('rom', writeFields(net.rom, interfaceFields.rom)),
    ]),
  ])
  return withResidue(out, net.residue)
}
