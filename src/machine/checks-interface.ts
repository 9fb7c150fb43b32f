import type { DomainDef, InterfaceDef } from '../conf/domain-def.js'
import { failFrom } from '../error.js'

const fail = failFrom('VIR_FROM_QEMU')

/** Types that reach the network; the others are known and cannot be had. */
const TYPES = ['user', 'bridge', 'network', 'ethernet', 'internal']
const TAP_TYPES = ['bridge', 'network', 'ethernet']

/** What a network interface must be like (virDomainNetDefValidate, qemuValidateDomainDeviceDefNetwork). */
export function checkInterfaces(def: DomainDef): void {
  for (const net of def.interfaces) {
    const refuse: Refuse = (what) => {
      throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `interface '${net.mac}': ${what}`)
    }
    if (!TYPES.includes(net.type)) refuse(`type '${net.type}' is not supported`)
    if (net.address && net.address.type !== 'pci') refuse(`an address of type '${net.address.type}' is not supported`)
    checkBackend(net, refuse)
    checkDriver(net, refuse)
    checkIps(net, refuse)
    if (net.mtu !== undefined && !TAP_TYPES.includes(net.type)) refuse(`an MTU is not supported for type '${net.type}'`)
    if (net.target?.managed === 'no' && net.type !== 'ethernet')
      refuse(`an unmanaged target is not supported for type '${net.type}'`)
  }
}

type Refuse = (what: string) => never

function checkBackend({ backend, type, script }: InterfaceDef, refuse: Refuse): void {
  if (backend?.type === 'passt') refuse("backend 'passt' is not supported")
  if (backend?.tap !== undefined && !TAP_TYPES.includes(type))
    refuse(`a tap device of one's own is not supported for type '${type}'`)
  if (script !== undefined && type !== 'ethernet') refuse(`a script is not supported for type '${type}'`)
}

function checkDriver({ driver, model, type }: InterfaceDef, refuse: Refuse): void {
  if (!driver) return
  const isVirtio = model?.startsWith('virtio') === true
  if (driver.virtio && !isVirtio) refuse('virtio options are only for virtio models')
  if ((driver.queues ?? 1) > 1 && !TAP_TYPES.includes(type)) refuse(`multiqueue is not supported for type '${type}'`)
  for (const [name, size] of [
    ['rx_queue_size', driver.rxQueueSize],
    ['tx_queue_size', driver.txQueueSize],
  ] as const) {
    if (isVirtio && size !== undefined && (size & (size - 1)) !== 0) refuse(`${name} must be a power of two`)
  }
}

/** QEMU's own network has one address of each family. */
function checkIps({ ips, type }: InterfaceDef, refuse: Refuse): void {
  if (ips.length > 0 && type !== 'user') refuse(`addresses of the guest are not supported for type '${type}'`)
  for (const family of ['ipv4', 'ipv6'] as const) {
    const own = ips.filter((ip) => (ip.family ?? 'ipv4') === family)
    if (own.length > 1) refuse(`there can be only one ${family} address`)
    const prefix = own[0]?.prefix
    if (!prefix) continue
    if (family === 'ipv4' && (prefix < 4 || prefix > 27)) refuse('an ipv4 prefix must be in range [4,27]')
    if (family === 'ipv6' && prefix !== 64) refuse(`an ipv6 prefix must be 64, not ${prefix}`)
  }
}
