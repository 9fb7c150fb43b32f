/** The capabilities of every binary that was asked for, each found out once; and the host's as XML. */
import { failFrom } from '../error.js'
import { capabilitiesXml, domainCapabilitiesXml } from './capabilities-xml.js'
import { QemuCapabilities, type CapabilitiesOptions } from './capabilities.js'

const fail = failFrom('VIR_FROM_QEMU')

/** The binary of domains that name none: where distributions put it. */
export const defaultEmulator = '/usr/bin/qemu-system-x86_64'

export class CapabilitiesCache {
  readonly #options: CapabilitiesOptions & { emulator: string }
  readonly #known = new Map<string, Promise<QemuCapabilities>>()

  constructor(options: CapabilitiesOptions & { emulator?: string }) {
    this.#options = { emulator: defaultEmulator, ...options }
  }

  /**
   * The capabilities of a binary, of the default one without. A binary that was replaced meanwhile is asked again.
   * VIR_ERR_SYSTEM_ERROR when there is none such, VIR_ERR_INTERNAL_ERROR when it does not answer.
   */
  async get(emulator = this.#options.emulator): Promise<QemuCapabilities> {
    const known = this.#known.get(emulator)
    if (known !== undefined && (await (await known).isCurrent())) return known
    const latest = this.#known.get(emulator)
    return latest === undefined || latest === known ? this.#load(emulator) : latest
  }

  #load(emulator: string): Promise<QemuCapabilities> {
    const loading = QemuCapabilities.load(emulator, this.#options)
    this.#known.set(emulator, loading)
    loading.catch(() => {
      if (this.#known.get(emulator) === loading) this.#known.delete(emulator)
    })
    return loading
  }

  /** `virsh capabilities`. */
  async capabilitiesXml(secmodels: readonly string[] = []): Promise<string> {
    return capabilitiesXml(await this.get(), secmodels)
  }

  /** `virsh domcapabilities`. VIR_ERR_INVALID_ARG for an architecture, machine or type that the binary does not have. */
  async domainCapabilitiesXml(emulator?: string, arch?: string, machine?: string, virtType?: string): Promise<string> {
    const caps = await this.get(emulator)
    if (arch !== undefined && arch !== caps.arch) {
      throw fail(
        'VIR_ERR_INVALID_ARG',
        `architecture from emulator '${caps.arch}' doesn't match given architecture '${arch}'`,
      )
    }
    return domainCapabilitiesXml(caps, machine, virtType)
  }
}
