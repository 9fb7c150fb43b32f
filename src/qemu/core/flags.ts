import * as c from '../../constants.gen.js'
import { failFrom } from '../../error.js'

const fail = failFrom('VIR_FROM_QEMU')

/** The flags of each operation that this driver heeds; api has refused those that libvirt does not know at all. */
const SUPPORTED = {
  domainCreate: c.VIR_DOMAIN_START_PAUSED | c.VIR_DOMAIN_START_FORCE_BOOT | c.VIR_DOMAIN_START_BYPASS_CACHE,
  domainCreateXML: c.VIR_DOMAIN_START_PAUSED | c.VIR_DOMAIN_START_VALIDATE | c.VIR_DOMAIN_START_BYPASS_CACHE,
  domainDefineXML: c.VIR_DOMAIN_DEFINE_VALIDATE,
  domainDestroy: c.VIR_DOMAIN_DESTROY_GRACEFUL,
  domainShutdown: c.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN,
  domainReboot: c.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN,
  domainUndefine:
    c.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE |
    c.VIR_DOMAIN_UNDEFINE_NVRAM |
    c.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM |
    c.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA |
    c.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA,
  domainSave: c.VIR_DOMAIN_SAVE_RUNNING | c.VIR_DOMAIN_SAVE_PAUSED | c.VIR_DOMAIN_SAVE_BYPASS_CACHE,
  domainBlockRebase: c.VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES,
} as const

/** VIR_ERR_INVALID_ARG for a flag that would be ignored. */
export function checkFlags(operation: keyof typeof SUPPORTED, flags: number): void {
  const unsupported = (flags & ~SUPPORTED[operation]) >>> 0
  if (unsupported !== 0)
    throw fail('VIR_ERR_INVALID_ARG', `unsupported flags (0x${unsupported.toString(16)}) in function ${operation}`)
}
