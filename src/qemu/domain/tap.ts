/** Tap devices for interfaces on a bridge of the host, made and removed by iproute2. Needs CAP_NET_ADMIN. */
import { existsSync, readFileSync } from 'node:fs'
import type { InterfaceDef } from '../../conf/domain-def.js'
import { failFrom, messageOf } from '../../error.js'
import { run } from '../../util/run.js'

const fail = failFrom('VIR_FROM_QEMU')

/** where libvirt keeps the definitions of virtual networks */
const NETWORKS = '/etc/libvirt/qemu/networks'

const linkExists = (name: string): boolean => existsSync(`/sys/class/net/${name}`)
const onBridge = (net: InterfaceDef): boolean => net.type === 'bridge' || net.type === 'network'

/** The bridge that an interface is to be plugged into. A network is one of libvirt's, as far as it exists and is started. */
function bridgeOf(net: InterfaceDef): string {
  const bridge = net.type === 'network' ? bridgeOfNetwork(net.source?.network ?? '') : net.source?.bridge
  if (bridge === undefined || !linkExists(bridge))
    throw fail('VIR_ERR_SYSTEM_ERROR', `bridge '${bridge ?? ''}' of interface '${net.mac}' does not exist`)
  return bridge
}

function bridgeOfNetwork(name: string): string {
  const file = `${NETWORKS}/${name}.xml`
  if (name === '' || name.includes('/') || !existsSync(file))
    throw fail('VIR_ERR_NO_NETWORK', `no network with matching name '${name}'`)
  const bridge = /<bridge\b[^>]*\bname=['"]([^'"]+)['"]/.exec(readFileSync(file, 'utf8'))?.[1]
  if (bridge === undefined || !linkExists(bridge))
    throw fail('VIR_ERR_OPERATION_INVALID', `network '${name}' is not active`)
  return bridge
}

function freeName(): string {
  for (let i = 0; ; i++) if (!linkExists(`vnet${i}`)) return `vnet${i}`
}

/** Makes the tap device of an interface on a bridge and notes its name in `<target dev>`; does nothing for other types. `uid`: who QEMU runs as, if not as we do. */
export async function createTap(net: InterfaceDef, uid?: number): Promise<void> {
  if (!onBridge(net)) return
  const bridge = bridgeOf(net)
  const named = net.target?.dev
  const name = named === undefined || /^vnet\d+$/.test(named) ? freeName() : named
  // the host's end gets the guest's address with another first byte, so that the bridge does not take the guest's for its own
  const address = `fe${net.mac.slice(2)}`
  const owner = uid === undefined ? [] : ['user', String(uid)]
  try {
    await run('ip', ['tuntap', 'add', 'dev', name, 'mode', 'tap', ...owner], { timeout: 10_000 })
    net.target = { ...net.target, dev: name }
    const mtu = net.mtu === undefined ? [] : ['mtu', String(net.mtu)]
    await run('ip', ['link', 'set', name, 'address', address, 'master', bridge, ...mtu, 'up'], { timeout: 10_000 })
  } catch (error) {
    await deleteTap(net)
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot make a tap device on bridge '${bridge}': ${messageOf(error)}`, error)
  }
}

export async function deleteTap(net: InterfaceDef): Promise<void> {
  const name = net.target?.dev
  if (!onBridge(net) || name === undefined || !linkExists(name)) return
  await run('ip', ['link', 'delete', name], { timeout: 10_000 })
}
