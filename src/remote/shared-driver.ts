import type { DriverHost, HypervisorDriver, HypervisorOps } from '../driver.js'
import { failFrom } from '../error.js'

const fail = failFrom('VIR_FROM_REMOTE')

type DriverEvent = Parameters<DriverHost['emit']>[0]

/**
 * A driver that is opened once and used by many connections: each has listeners of its own, all have the same domains.
 * `driver` is what `Connect.open` gets.
 */
export class SharedDriver {
  readonly uri: URL
  readonly driver: HypervisorDriver
  readonly #hosts = new Set<DriverHost>()
  #operations: Partial<HypervisorOps> = {}

  private constructor(uri: URL) {
    this.uri = uri
    this.driver = {
      name: 'shared',
      uriSchemes: [uri.protocol.slice(0, -1)],
      open: (_uri, host) => {
        this.#hosts.add(host)
        const leave = (): Promise<void> => {
          this.#hosts.delete(host)
          return Promise.resolve()
        }
        return Promise.resolve({ ...this.#operations, connectClose: leave })
      },
    }
  }

  /** Opens `uri` by `driver`. VIR_ERR_NO_CONNECT when that is not its own. */
  static async open(driver: HypervisorDriver, uri: URL, host: Omit<DriverHost, 'emit'>): Promise<SharedDriver> {
    const shared = new SharedDriver(uri)
    const operations = await driver.open(uri, { ...host, emit: (event) => shared.#emit(event) })
    if (operations === undefined)
      throw fail('VIR_ERR_NO_CONNECT', `driver '${driver.name}' does not take '${uri.href}'`)
    shared.#operations = operations
    return shared
  }

  get operations(): Partial<HypervisorOps> {
    return this.#operations
  }

  async close(): Promise<void> {
    await this.#operations.connectClose?.()
  }

  #emit(event: DriverEvent): void {
    for (const host of this.#hosts) host.emit(event)
  }
}
