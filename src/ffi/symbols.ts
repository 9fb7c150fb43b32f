/**
 * The functions of libvirt that are used, with their signatures: the one place where a function is declared. `int` ones
 * fail with a negative number, those that answer an address with 0.
 */

/** How an argument is given: see `Values`. */
export type Kind = 'text' | 'address' | 'bytes' | 'int' | 'uint' | 'ulong'

export interface Values {
  /** const char *; null: NULL */
  text: string | null
  /** a handle, a callback, an opaque number */
  address: bigint | null
  /** memory that is read and written; null: NULL */
  bytes: Uint8Array | null
  int: number
  uint: number
  /** unsigned long and long long, up to 2 ** 53 */
  ulong: number
}

export interface Signature<
  Answer extends 'int' | 'address' = 'int' | 'address',
  Args extends readonly Kind[] = readonly Kind[],
> {
  library: 'libvirt.so.0' | 'libvirt-qemu.so.0'
  answers: Answer
  args: Args
}

const int = <const Args extends readonly Kind[]>(...args: Args): Signature<'int', Args> => ({
  library: 'libvirt.so.0',
  answers: 'int',
  args,
})
const address = <const Args extends readonly Kind[]>(...args: Args): Signature<'address', Args> => ({
  library: 'libvirt.so.0',
  answers: 'address',
  args,
})

/** The phases of a migration: exported for libvirt's own client library, and in none of its headers. Blocking as well. */
export const unlisted = {
  virDomainMigrateBegin3Params: address('address', 'bytes', 'int', 'bytes', 'bytes', 'uint'),
  virDomainMigratePerform3Params: int('address', 'text', 'bytes', 'int', 'text', 'int', 'bytes', 'bytes', 'uint'),
  virDomainMigrateConfirm3Params: int('address', 'bytes', 'int', 'text', 'int', 'uint', 'int'),
} as const satisfies Record<string, Signature>

/** What may wait for a server, another thread or a disk: called on threads of our own. */
export const blocking = {
  ...unlisted,
  virInitialize: int(),
  virConnectOpenAuth: address('text', 'bytes', 'uint'),
  virConnectClose: int('address'),
  virConnectSetKeepAlive: int('address', 'int', 'uint'),
  virConnectIsAlive: int('address'),
  virConnectRegisterCloseCallback: int('address', 'address', 'address', 'address'),
  virConnectUnregisterCloseCallback: int('address', 'address'),
  virConnectDomainEventRegisterAny: int('address', 'address', 'int', 'address', 'address', 'address'),
  virConnectDomainEventDeregisterAny: int('address', 'int'),
  virConnectGetType: address('address'),
  virConnectGetHostname: address('address'),
  virConnectGetVersion: int('address', 'bytes'),
  virConnectGetLibVersion: int('address', 'bytes'),
  virConnectGetCapabilities: address('address'),
  virConnectGetDomainCapabilities: address('address', 'text', 'text', 'text', 'text', 'uint'),
  virConnectListAllDomains: int('address', 'bytes', 'uint'),

  virDomainLookupByName: address('address', 'text'),
  virDomainLookupByUUIDString: address('address', 'text'),
  virDomainLookupByID: address('address', 'int'),
  virDomainDefineXMLFlags: address('address', 'text', 'uint'),
  virDomainCreateXML: address('address', 'text', 'uint'),
  virDomainRestoreFlags: int('address', 'text', 'text', 'uint'),
  virDomainSaveImageGetXMLDesc: address('address', 'text', 'uint'),

  virDomainCreateWithFlags: int('address', 'uint'),
  virDomainDestroyFlags: int('address', 'uint'),
  virDomainShutdownFlags: int('address', 'uint'),
  virDomainReboot: int('address', 'uint'),
  virDomainReset: int('address', 'uint'),
  virDomainSuspend: int('address'),
  virDomainResume: int('address'),
  virDomainUndefineFlags: int('address', 'uint'),
  virDomainSaveFlags: int('address', 'text', 'text', 'uint'),
  virDomainManagedSave: int('address', 'uint'),
  virDomainHasManagedSaveImage: int('address', 'uint'),
  virDomainManagedSaveRemove: int('address', 'uint'),
  virDomainSetAutostart: int('address', 'int'),
  virDomainGetAutostart: int('address', 'bytes'),
  virDomainGetXMLDesc: address('address', 'uint'),
  virDomainGetState: int('address', 'bytes', 'bytes', 'uint'),
  virDomainGetInfo: int('address', 'bytes'),
  virDomainIsActive: int('address'),
  virDomainIsPersistent: int('address'),
  virDomainListGetStats: int('bytes', 'uint', 'bytes', 'uint'),

  virDomainGetBlockInfo: int('address', 'text', 'bytes', 'uint'),
  virDomainBlockStatsFlags: int('address', 'text', 'bytes', 'bytes', 'uint'),
  virDomainBlockResize: int('address', 'text', 'ulong', 'uint'),
  virDomainBlockPull: int('address', 'text', 'ulong', 'uint'),
  virDomainBlockRebase: int('address', 'text', 'text', 'ulong', 'uint'),
  virDomainBlockCommit: int('address', 'text', 'text', 'text', 'ulong', 'uint'),
  virDomainGetBlockJobInfo: int('address', 'text', 'bytes', 'uint'),
  virDomainBlockJobAbort: int('address', 'text', 'uint'),
  virDomainBlockJobSetSpeed: int('address', 'text', 'ulong', 'uint'),
  virDomainAttachDeviceFlags: int('address', 'text', 'uint'),
  virDomainDetachDeviceFlags: int('address', 'text', 'uint'),
  virDomainUpdateDeviceFlags: int('address', 'text', 'uint'),
  virDomainMigrateStartPostCopy: int('address', 'uint'),
  virDomainMigrateSetMaxDowntime: int('address', 'ulong', 'uint'),
  virDomainMigrateGetMaxDowntime: int('address', 'bytes', 'uint'),
  virDomainMigrateSetMaxSpeed: int('address', 'ulong', 'uint'),
  virDomainMigrateGetMaxSpeed: int('address', 'bytes', 'uint'),
  virDomainMigrateSetCompressionCache: int('address', 'ulong', 'uint'),
  virDomainMigrateGetCompressionCache: int('address', 'bytes', 'uint'),
  virDomainAbortJob: int('address'),
  virDomainAbortJobFlags: int('address', 'uint'),
  virDomainGetJobStats: int('address', 'bytes', 'bytes', 'bytes', 'uint'),

  virDomainOpenConsole: int('address', 'text', 'address', 'uint'),
  virDomainQemuMonitorCommand: { ...int('address', 'text', 'bytes', 'uint'), library: 'libvirt-qemu.so.0' },
  virDomainQemuMonitorCommandWithFiles: {
    ...int('address', 'text', 'uint', 'bytes', 'bytes', 'bytes', 'bytes', 'uint'),
    library: 'libvirt-qemu.so.0',
  },

  // what these give back may be the last that holds a connection open
  virDomainFree: int('address'),
  virStreamAbort: int('address'),
  virStreamFinish: int('address'),
  virStreamFree: int('address'),
} as const satisfies Record<string, Signature>

/** What answers at once from memory of this process: called directly. */
export const immediate = {
  virEventRegisterImpl: int('address', 'address', 'address', 'address', 'address', 'address'),
  virSetErrorFunc: int('address', 'address'),
  virGetLastError: address(),
  virFreeError: int('address'),
  virTypedParamsFree: int('address', 'int'),
  virDomainStatsRecordListFree: int('address'),
  virDomainGetName: address('address'),
  virDomainGetUUID: int('address', 'bytes'),
  virDomainGetUUIDString: int('address', 'bytes'),
  virDomainGetID: int('address'),
  virStreamNew: address('address', 'uint'),
  // of a stream that does not block
  virStreamRecv: int('address', 'bytes', 'ulong'),
  virStreamSend: int('address', 'bytes', 'ulong'),
  virStreamEventAddCallback: int('address', 'int', 'address', 'address', 'address'),
  virStreamEventUpdateCallback: int('address', 'int'),
  virStreamEventRemoveCallback: int('address'),
} as const satisfies Record<string, Signature>

export type Blocking = typeof blocking
export type Immediate = typeof immediate
export type ArgsOf<Args extends readonly Kind[]> = { -readonly [I in keyof Args]: Values[Args[I]] }
export type AnswerOf<S extends Signature> = S['answers'] extends 'int' ? number : bigint
