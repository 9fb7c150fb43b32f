import { isIPv6 } from 'node:net'
import type { DomainDef, InterfaceDef } from '../conf/domain-def.js'
import { failFrom } from '../error.js'
import { bootIndexes } from './command-disk.js'
import {
  addressProps,
  aliasOf,
  bool,
  device,
  netdev,
  virtioDriver,
  virtioProps,
  type CommandCaps,
  type Props,
} from './command-props.js'

const fail = failFrom('VIR_FROM_QEMU')

/** Descriptors of tap devices (one for each queue) by the alias of their interface. */
export type TapFds = Readonly<Record<string, readonly number[]>>

/** Host ends and devices of all interfaces. */
export function interfacesCommand(def: DomainDef, caps: CommandCaps, tapFds: TapFds): string[] {
  const boot = bootIndexes(def)
  return def.interfaces.flatMap((net) => {
    const alias = aliasOf(net, `interface '${net.mac}'`)
    const host = hostProps(net, tapFds[alias])
    return [
      ...netdev(caps, { ...host, id: `host${alias}` }),
      ...device(caps, interfaceDevice(def, net, boot.get(alias))),
    ]
  })
}

function hostProps(net: InterfaceDef, fds: readonly number[] | undefined): Props & { type: string } {
  if (fds !== undefined && fds.length > 0) {
    const list = fds.join(':')
    return fds.length === 1 ? { type: 'tap', fd: list } : { type: 'tap', fds: list }
  }
  switch (net.type) {
    case 'user':
      return { type: 'user', ...userProps(net) }
    case 'internal':
      return { type: 'user', restrict: true }
    case 'network':
    case 'bridge':
    case 'ethernet':
      return { type: 'tap', ifname: tapName(net), script: 'no', downscript: 'no' }
    case 'network':
    case 'bridge':
      if (net.target?.dev === undefined)
        throw fail('VIR_ERR_INTERNAL_ERROR', `no tap device was made for interface '${net.mac}'`)
      return { type: 'tap', ifname: net.target.dev, script: 'no', downscript: 'no' }
    case 'direct':
    case 'vhostuser':
    case 'udp':
    case 'mcast':
    case 'server':
    case 'client':
    case 'hostdev':
    case 'vdpa':
      throw fail('VIR_ERR_CONFIG_UNSUPPORTED', `interfaces of type '${net.type}' are not supported`)
  }
}

/** The tap device that the host's end is: made beforehand, QEMU may not run the scripts that would do it. */
function tapName(net: InterfaceDef): string {
  if (net.target?.dev !== undefined) return net.target.dev
  if (net.type !== 'ethernet') throw fail('VIR_ERR_INTERNAL_ERROR', `interface '${net.mac}' has no tap device`)
  throw fail('VIR_ERR_CONFIG_UNSUPPORTED', "an interface of type 'ethernet' needs <target dev>")
}

function userProps(net: InterfaceDef): Props {
  if (net.backend?.type === 'passt') throw fail('VIR_ERR_CONFIG_UNSUPPORTED', "backend 'passt' is not supported")
  const props: Props = {}
  for (const { address, family, prefix } of net.ips) {
    if (family === 'ipv6' || isIPv6(address)) {
      props['ipv6-prefix'] = address
      props['ipv6-prefixlen'] = prefix
    } else {
      props['net'] = prefix === undefined ? address : `${address}/${prefix}`
    }
  }
  return props
}

/** The guest's side of an interface as `device_add` takes it. */
export function interfaceDevice(
  def: DomainDef,
  net: InterfaceDef,
  bootIndex: number | undefined,
): Props & { driver: string } {
  const alias = aliasOf(net, `interface '${net.mac}'`)
  const model = net.model ?? 'rtl8139'
  const isVirtio = model.startsWith('virtio')
  return {
    driver: isVirtio ? virtioDriver('virtio-net', model) : model,
    ...(isVirtio ? virtioNetProps(net) : {}),
    netdev: `host${alias}`,
    id: alias,
    mac: net.mac,
    bootindex: bootIndex,
    ...addressProps(def, net.address),
    ...romProps(net),
  }
}

function virtioNetProps({ driver, mtu }: InterfaceDef): Props {
  const queues = driver?.queues ?? 1
  const tx: Record<string, string> = { iothread: 'bh', timer: 'timer' }
  return {
    ...virtioProps(driver?.virtio),
    tx: driver?.txmode === undefined ? undefined : tx[driver.txmode],
    ioeventfd: bool(driver?.ioeventfd),
    event_idx: bool(driver?.eventIdx),
    mq: queues > 1 ? true : undefined,
    vectors: queues > 1 ? 2 * queues + 2 : undefined,
    rx_queue_size: driver?.rxQueueSize,
    tx_queue_size: driver?.txQueueSize,
    host_mtu: mtu,
  }
}

function romProps({ rom }: InterfaceDef): Props {
  if (rom?.enabled === 'no') return { romfile: '' }
  const bar = rom?.bar === undefined ? undefined : rom.bar === 'on' ? 1 : 0
  return { rombar: bar, romfile: rom?.file }
}
