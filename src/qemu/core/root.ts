import {
  closeSync,
  constants,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
  writeSync,
  ftruncateSync,
} from 'node:fs'
import { isAbsolute, join } from 'node:path'
import { failFrom, messageOf, wordsOf } from '../../error.js'
import { native } from '../../native.js'
import { makeFolder } from '../../util/folders.js'

const fail = failFrom('VIR_FROM_QEMU')

/** sun_path of a unix socket holds 107 bytes and a NUL */
const SOCKET_PATH_MAX = 107
/** the longest path that we make below the root for a socket: `run/qemu/4294967295/nbd.sock` and a little reserve */
const SOCKET_PATH_BELOW = 'run/qemu/4294967295/org.qemu.guest_agent.0'.length + 1

/** Why a root can't be opened: as the cause of the error. */
class RootInUse extends Error {
  override readonly message = 'another process holds the lock of the root'
}

/** Is this the error of a root that another process has open? */
export function isRootInUse(error: unknown): boolean {
  return error instanceof Error && error.cause instanceof RootInUse
}

/**
 * The tree of one `qemu:///embed?root=…`: `etc` (definitions), `run` (what runs now), `lib` (saved states), `log`, `cache`.
 * One process at a time holds it, by a lock on `run/lock` that ends with the process, however that ends.
 */
export class Root {
  readonly path: string
  #lock: number | undefined

  private constructor(path: string) {
    this.path = path
  }

  /** Makes the tree where it is missing and locks it. VIR_ERR_OPERATION_INVALID names the pid of another holder. */
  static open(path: string): Root {
    if (!isAbsolute(path)) throw fail('VIR_ERR_INVALID_ARG', `root must be an absolute path, not '${path}'`)
    if (Buffer.byteLength(path) + SOCKET_PATH_BELOW > SOCKET_PATH_MAX) {
      const most = SOCKET_PATH_MAX - SOCKET_PATH_BELOW
      throw fail(
        'VIR_ERR_INVALID_ARG',
        `root '${path}' is longer than ${most} bytes, unix sockets below it could not be named`,
      )
    }
    const root = new Root(path)
    try {
      for (const dir of [
        root.autostartDir,
        root.statusDir,
        root.offlineDir,
        root.migrationDir,
        root.saveDir,
        root.nvramDir,
        root.overlayDir,
        root.logDir,
        root.cacheDir,
      ])
        makeFolder(dir)
    } catch (error) {
      throw fail('VIR_ERR_SYSTEM_ERROR', `cannot make the tree of root '${path}': ${wordsOf(error)}`, error)
    }
    root.#acquire()
    return root
  }

  get configDir(): string {
    return join(this.path, 'etc/qemu')
  }
  get autostartDir(): string {
    return join(this.configDir, 'autostart')
  }
  get statusDir(): string {
    return join(this.path, 'run/qemu')
  }
  get saveDir(): string {
    return join(this.path, 'lib/qemu/save')
  }
  /** overlays of guests whose disks are block devices, while those are filled */
  get overlayDir(): string {
    return join(this.path, 'lib/overlay')
  }
  get nvramDir(): string {
    return join(this.path, 'lib/qemu/nvram')
  }
  get logDir(): string {
    return join(this.path, 'log/qemu')
  }
  get cacheDir(): string {
    return join(this.path, 'cache/qemu')
  }
  /** one directory for each storage daemon that streams disks of a domain that does not run */
  get offlineDir(): string {
    return join(this.path, 'run/offline')
  }
  /** one directory for each migration, from here or to here */
  get migrationDir(): string {
    return join(this.path, 'run/migration')
  }
  /** private directory of one running domain: sockets and the pid file */
  runDir(id: number): string {
    return join(this.statusDir, String(id))
  }

  #acquire(): void {
    const path = join(this.path, 'run/lock')
    let fd: number
    try {
      fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600)
    } catch (error) {
      throw fail('VIR_ERR_SYSTEM_ERROR', `cannot open '${path}': ${wordsOf(error)}`, error)
    }
    if (!native.lockFile(fd, { type: 'write', start: 0, length: 0 })) {
      closeSync(fd)
      const holder = readFileSync(path, 'utf8').trim()
      throw fail(
        'VIR_ERR_OPERATION_INVALID',
        `root '${this.path}' is in use by process '${holder === '' ? 'unknown' : holder}'`,
        new RootInUse(),
      )
    }
    this.#lock = fd
    try {
      ftruncateSync(fd)
      writeSync(fd, `${process.pid}\n`)
    } catch (error) {
      // only words for who comes next; a full disk keeps nobody from what is there
      void messageOf(error)
    }
  }

  release(): void {
    if (this.#lock !== undefined) closeSync(this.#lock)
    this.#lock = undefined
  }
}

/** Replaces a file as a whole: readers see the old text or the new one, also after a crash. */
export function writeFileAtomically(path: string, text: string): void {
  const temporary = `${path}.new`
  try {
    const fd = openSync(temporary, constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC, 0o600)
    try {
      writeFileSync(fd, text, { flush: true })
    } finally {
      closeSync(fd)
    }
    renameSync(temporary, path)
  } catch (error) {
    rmSync(temporary, { force: true })
    throw fail('VIR_ERR_SYSTEM_ERROR', `cannot write '${path}': ${wordsOf(error)}`, error)
  }
}
