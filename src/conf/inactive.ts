import type { ChardevDef, DomainDef, GraphicsDef, InterfaceDef, StorageSource } from './domain-def.js'

import { without } from './values.js'

/**
 * The configuration without what only a running domain has (libvirt's VIR_DOMAIN_DEF_PARSE_INACTIVE): id, aliases that are
 * not the user's ('ua-…'), indexes of images, paths of pseudo terminals, generated names of taps, given-out ports.
 */
export function inactiveDef(def: DomainDef): DomainDef {
  const { memballoon } = def
  return {
    ...without(def, 'id'),
    disks: def.disks.map((disk) => ({
      ...without(withoutAlias(disk), 'tray', 'mirror'),
      ...(disk.source && { source: withoutIndex(disk.source) }),
    })),
    controllers: def.controllers.map(withoutAlias),
    interfaces: def.interfaces.map((each) => withoutTap(withoutAlias(each))),
    serials: def.serials.map(withoutPty),
    consoles: def.consoles.map(withoutPty),
    channels: def.channels.map(withoutPty),
    inputs: def.inputs.map(withoutAlias),
    graphics: def.graphics.map(withoutPort),
    videos: def.videos.map(withoutAlias),
    rngs: def.rngs.map(withoutAlias),
    ...(memballoon && { memballoon: withoutAlias(memballoon) }),
    watchdogs: def.watchdogs.map(withoutAlias),
    panics: def.panics.map(withoutAlias),
    seclabels: def.seclabels.filter(({ implicit }) => implicit !== true).map(withoutDynamicLabel),
  }
}

const userAlias = /^ua-[\w-]*$/

function withoutAlias<T extends { alias?: string }>(device: T): T {
  if (device.alias === undefined || userAlias.test(device.alias)) return device
  const copy = { ...device }
  delete copy.alias
  return copy
}

function withoutIndex(source: StorageSource): StorageSource {
  const copy = { ...source }
  delete copy.index
  if (copy.backingStore) copy.backingStore = withoutIndex(copy.backingStore)
  return copy
}

/** libvirt's own names of taps; a name that the user chose stays. */
const generatedTap = /^(vnet|macvtap|macvlan)\d*/

function withoutTap(net: InterfaceDef): InterfaceDef {
  const { target } = net
  if (target?.dev === undefined || target.managed === 'no' || !generatedTap.test(target.dev)) return net
  return target.managed === undefined ? without(net, 'target') : { ...net, target: without(target, 'dev') }
}

function withoutPty(chardev: ChardevDef): ChardevDef {
  const stateless = without(withoutAlias(chardev), 'state')
  return chardev.source.type === 'pty' ? { ...stateless, source: { type: 'pty' } } : stateless
}

function withoutPort(graphics: GraphicsDef): GraphicsDef {
  return graphics.autoport === true ? without(graphics, 'port') : graphics
}

function withoutDynamicLabel(seclabel: DomainDef['seclabels'][number]): DomainDef['seclabels'][number] {
  return seclabel.type === 'dynamic' ? without(seclabel, 'label', 'imagelabel') : without(seclabel, 'imagelabel')
}
