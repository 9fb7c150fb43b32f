/**
 * What a definition has to know about the QEMU binary that will run it. The driver's capabilities object satisfies this.
 */
export interface MachineCaps {
  /** versioned: 'pc-q35-7.2' */
  name: string
  /** 'q35' */
  alias?: string
  isDefault?: boolean
  /** most CPUs that the machine takes */
  maxCpus?: number
  /** CPU model that QEMU uses when none is asked for: 'qemu64' */
  defaultCpu?: string
}

export interface DefinitionCaps {
  /** path of the binary, for definitions that name none */
  emulator: string
  machines: readonly MachineCaps[]
  /** what can be `<domain type=…>` here: 'qemu', 'kvm' */
  virtTypes: readonly string[]
  /** whether the driver sets the host CPUs that `<vcpu cpuset>` names */
  pinsVcpus?: boolean
  /** directory where the variable store of a pflash loader goes when the definition names no file */
  nvramDir?: string
  /** whether the binary knows a `-device`: 'virtio-scsi-pci' */
  has(device: string): boolean
}
