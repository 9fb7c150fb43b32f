/** virDomainQemuMonitorCommandFlags (libvirt-qemu.h) */
export const VIR_DOMAIN_QEMU_MONITOR_COMMAND_DEFAULT = 0
export const VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP = 1
