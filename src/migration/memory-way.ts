/** The channel that a guest's memory goes over, and what is done to the bytes on the way. */
import { failFrom } from '../error.js'
import type { Channel } from '../tunnel/channel.js'
import type { Through } from '../tunnel/join.js'
import type { Params } from '../tunnel/payloads.js'
import type { ChannelRequest } from '../tunnel/requests.js'
import type { WindowLimits } from '../tunnel/window.js'
import { AUTO, type Transports } from './transports.js'

const fail = failFrom('VIR_FROM_QEMU')

export interface MemoryWay {
  readonly channel: Channel
  /** for joinDuplex, with the channel as the first of the two; undefined: bytes go as they are */
  readonly through: Through | undefined
  /** name of the transport */
  readonly transport: string | undefined
}

/**
 * The source's end. The destination says with the channel whether it has the transport: one that was named must be there
 * (VIR_ERR_OPERATION_UNSUPPORTED), with 'auto' it may be absent, as it is at older versions.
 */
export async function openMemory(
  transports: Transports,
  wanted: string | undefined,
  open: (params: Params) => Promise<Channel>,
): Promise<MemoryWay> {
  const chosen = await transports.choose(wanted)
  const channel = await open(chosen === undefined ? {} : { transports: [chosen.name] })
  const { transport } = channel.reply
  if (chosen !== undefined && transport === chosen.name)
    return {
      channel,
      transport: chosen.name,
      through: {
        toA: chosen.encode({
          get speed() {
            return channel.speed
          },
        }),
      },
    }
  if (chosen === undefined || wanted === AUTO) return { channel, through: undefined, transport: undefined }
  channel.destroy()
  throw fail('VIR_ERR_OPERATION_UNSUPPORTED', `the destination has no transport '${wanted}'`)
}

/** The destination's end. */
export async function acceptMemory(
  transports: Transports,
  request: ChannelRequest,
  windows?: Partial<WindowLimits>,
): Promise<MemoryWay> {
  const chosen = await transports.take(request.params)
  const through = chosen && { toB: chosen.decode() }
  const channel = request.accept(chosen === undefined ? {} : { transport: chosen.name }, windows)
  return { channel, through, transport: chosen?.name }
}
