/** Flags of virDomainStreamDisk; exactly one of ONE, START, STOP is given. */

/** stream one unit at `offset` */
export const VIR_STREAM_DISK_ONE = 1
/** stream the whole device in the background */
export const VIR_STREAM_DISK_START = 2
/** stop a whole-device stream; what was copied stays */
export const VIR_STREAM_DISK_STOP = 4
/** the proposal's other name of VIR_STREAM_DISK_STOP */
export const VIR_STREAM_DISK_CANCEL = VIR_STREAM_DISK_STOP

/** a flag of abortJob: the destination, where the guest is, is lost for good; what the guest wrote there is given up */
export const VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST = 0x4000_0000

/** a flag of migration: the guest moves first and its disks are streamed to the destination afterwards */
export const VIR_MIGRATE_STREAM_DISKS = 0x4000_0000
