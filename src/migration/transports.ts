/** The ways in which a guest's memory may go over a channel: as it is, compressed, or as an application has it. */
import type { MigrationTransport } from '../driver.js'
import { failFrom, messageOf } from '../error.js'
import { BlockStreamReader, BlockWriter } from '../tunnel/block-stream.js'
import type { Params } from '../tunnel/payloads.js'
import { Zstd } from '../tunnel/zstd.js'

const fail = failFrom('VIR_FROM_QEMU')

const ZSTD = 'zstd'
/** memory as it is, which is the default */
const PLAIN = 'plain'
/** compressed where that is worth it, and both sides can */
export const AUTO = 'auto'
/** names that say something already */
const TAKEN: readonly string[] = [ZSTD, PLAIN, AUTO, 'xbzrle', 'virstream', 'qemu', 'tcp', 'tls', 'unix']
/** as the scheme of a URI may begin */
const NAME = /^[a-z][a-z0-9-]{0,31}$/

/** `adaptive`: only while the link is slower than that. */
function zstdTransport(zstd: Zstd, adaptive: boolean): MigrationTransport {
  return {
    name: ZSTD,
    encode: (link) => new BlockWriter({ compressor: zstd.compressor(), ...(adaptive && { link }) }),
    decode: () => new BlockStreamReader(zstd.decompressor()),
  }
}

export class Transports {
  readonly #own = new Map<string, MigrationTransport>()

  /** Those of an application besides ours. VIR_ERR_INVALID_ARG for names that cannot be. */
  constructor(own: readonly MigrationTransport[] = []) {
    for (const transport of own) {
      const { name } = transport
      if (typeof name !== 'string' || !NAME.test(name))
        throw fail('VIR_ERR_INVALID_ARG', `a transport cannot be called '${name}'`)
      if (TAKEN.includes(name) || this.#own.has(name))
        throw fail('VIR_ERR_INVALID_ARG', `there is a transport '${name}' already`)
      this.#own.set(name, transport)
    }
  }

  /** VIR_ERR_ARGUMENT_UNSUPPORTED for one that cannot be had here. */
  async require(name: string | undefined): Promise<void> {
    if (name !== undefined && name !== PLAIN && name !== AUTO) await this.#named(name, false)
  }

  /** What a source would use for `wanted`; undefined: memory goes as it is. VIR_ERR_ARGUMENT_UNSUPPORTED as above. */
  async choose(wanted = PLAIN): Promise<MigrationTransport | undefined> {
    if (wanted === PLAIN) return undefined
    return wanted === AUTO ? this.#named(ZSTD, true).catch(() => undefined) : this.#named(wanted, false)
  }

  /** What a destination takes of that which its source offers with a channel; undefined: memory comes as it is. */
  async take({ transports }: Params): Promise<MigrationTransport | undefined> {
    for (const name of Array.isArray(transports) ? transports : []) {
      const known = typeof name === 'string' ? await this.#named(name, false).catch(() => undefined) : undefined
      if (known !== undefined) return known
    }
    return undefined
  }

  async #named(name: string, adaptive: boolean): Promise<MigrationTransport> {
    const own = this.#own.get(name)
    if (own !== undefined) return own
    const why = name === ZSTD ? await zstdOr(adaptive) : undefined
    if (why !== undefined && typeof why !== 'string') return why
    const reason = why === undefined ? '' : `: ${why}`
    throw fail('VIR_ERR_ARGUMENT_UNSUPPORTED', `there is no transport '${name}' on this host${reason}`)
  }
}

/** Or why there is none. */
async function zstdOr(adaptive: boolean): Promise<MigrationTransport | string> {
  try {
    return zstdTransport(await Zstd.load(), adaptive)
  } catch (error) {
    return messageOf(error)
  }
}
