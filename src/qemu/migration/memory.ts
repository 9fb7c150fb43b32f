/** The memory of a guest on its way between a QEMU and a channel, at either side. */
import { acceptMemory, type MemoryWay } from '../../migration/memory-way.js'
import type { Transports } from '../../migration/transports.js'
import { native } from '../../native.js'
import { descriptorFor } from '../../tunnel/join.js'
import type { ChannelRequest } from '../../tunnel/requests.js'
import type { WindowLimits } from '../../tunnel/window.js'
import { MigrationCommands } from '../monitor/migration-commands.js'
import type { MigrationWatch, Seen } from './watch.js'
import type { Live } from '../core/vm.js'

/** ms that a QEMU has to notice how the other side's memory stands: that the connection is gone, or that all is there */
export const NOTICE = 20_000

/** QEMU gets one end of a pair of sockets, the channel is joined to the other. */
export async function lend(
  { access }: Live,
  { channel, through }: MemoryWay,
  use: (fd: number) => Promise<void>,
): Promise<void> {
  const { fd, joined } = descriptorFor(channel, () => access.makeSocket(() => native.socketpair()), through)
  joined.catch(() => undefined)
  try {
    await use(fd)
  } finally {
    native.close(fd)
  }
}

/** The guest's memory begins to go out over a channel. */
export function sendMemory(live: Live, commands: MigrationCommands, way: MemoryWay): Promise<void> {
  return lend(live, way, (fd) => commands.send(fd))
}

/** The guest's memory comes over a channel that the other side opens; `live` is undefined where nobody waits for it. */
export async function takeMemory(
  request: ChannelRequest,
  live: Live | undefined,
  transports: Transports,
  windows?: Partial<WindowLimits>,
): Promise<MemoryWay['channel'] | undefined> {
  if (live === undefined) {
    request.refuse('nobody waits for memory')
    return undefined
  }
  const way = await acceptMemory(transports, request, windows)
  const { channel } = way
  try {
    await lend(live, way, (fd) => new MigrationCommands(live.monitor).receive(fd))
    return channel
  } catch (error) {
    channel.destroy()
    throw error
  }
}

/**
 * How a migration that has been begun ends, or 'postcopy-active' when its memory follows the guest; `atSwitch` is called
 * while the guest stands still on both sides.
 */
export async function seeThrough(
  commands: MigrationCommands,
  watch: MigrationWatch,
  atSwitch: () => Promise<unknown>,
): Promise<Seen | undefined> {
  const seen = await watch.until(['pre-switchover'])
  if (seen !== 'pre-switchover') return seen
  await atSwitch()
  await commands.continueFrom('pre-switchover')
  return watch.until(['postcopy-active'])
}
