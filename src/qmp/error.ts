/** A command that QEMU answered with an error: its class and its own words. */
export class QmpError extends Error {
  override readonly name = 'QmpError'
  readonly command: string
  /** 'GenericError', 'CommandNotFound', 'DeviceNotActive', 'DeviceNotFound', 'KVMMissingCap' */
  readonly class: string

  constructor(command: string, errorClass: string, description: string) {
    super(description)
    this.command = command
    this.class = errorClass
  }
}

/** The connection ended, or was never fit for use; every waiter gets it. */
export class QmpClosedError extends Error {
  override readonly name = 'QmpClosedError'
}

/** No answer within the deadline that the caller chose. The command may still be carried out. */
export class QmpTimeoutError extends Error {
  override readonly name = 'QmpTimeoutError'
  readonly command: string

  constructor(command: string, timeout: number) {
    super(`no answer to '${command}' within ${timeout} ms`)
    this.command = command
  }
}
