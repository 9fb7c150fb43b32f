/**
 * A second monitor of a QEMU whose memory may follow its guest. When the connection to the source breaks, QEMU stands still at
 * the first page that is missing, its main monitor with it; only commands out of band still get through, and only on a
 * connection that asked for them before. So that a later process has it as well, QEMU itself keeps a copy of our end.
 */
import { fstatSync, readdirSync, readlinkSync } from 'node:fs'
import { Socket } from 'node:net'
import { join } from 'node:path'
import { failFrom, messageOf } from '../../error.js'
import { native } from '../../native.js'
import { QmpClient, type QmpConnectOptions } from '../../qmp/client.js'
import { unixSocket } from '../../tunnel/join.js'
import type { Monitor } from '../monitor/monitor.js'
import { qemuDir, recoverySocket } from '../monitor/process.js'
import type { Live } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms for an answer, which waits for nothing in QEMU */
const TIMEOUT = 10_000
/** of the copy of our end, in QEMU */
const KEPT = 'vs-recovery'

/** where QEMU takes the rest of its memory in */
const memorySocket = (runDir: string): string => join(qemuDir(runDir), 'memory.sock')

export class RecoveryMonitor {
  /** of our end: names it among the descriptors of QEMU */
  readonly inode: number
  readonly #client: QmpClient
  readonly #path: string

  private constructor(client: QmpClient, inode: number, runDir: string) {
    this.#client = client
    this.inode = inode
    this.#path = memorySocket(runDir)
  }

  /** While QEMU still answers to everything. */
  static async open({ runDir, monitor, access }: Live): Promise<RecoveryMonitor> {
    const fd = access.makeSocket(() => native.connectUnix(recoverySocket(runDir)))
    const { ino } = fstatSync(fd)
    const client = await QmpClient.connect(streamOf(fd), options({ outOfBand: true }))
    try {
      await monitor.getfd(KEPT, fd)
    } catch (error) {
      client.close()
      throw error
    }
    return new RecoveryMonitor(client, ino, runDir)
  }

  /** What an earlier process had opened. VIR_ERR_OPERATION_FAILED where QEMU does not have it, or may not be looked into. */
  static reopen(runDir: string, pid: number, inode: number): RecoveryMonitor {
    try {
      const folder = `/proc/${pid}/fd`
      const kept = readdirSync(folder).find((name) => linkOf(join(folder, name)) === `socket:[${inode}]`)
      if (kept === undefined) throw new Error('it is not among its descriptors')
      const fd = native.copyFd(pid, Number(kept))
      return new RecoveryMonitor(QmpClient.adopt(streamOf(fd), options({})), inode, runDir)
    } catch (error) {
      const text = `the monitor that QEMU (process ${pid}) keeps for the recovery of its memory cannot be had: ${messageOf(error)}`
      throw fail('VIR_ERR_OPERATION_FAILED', text, error)
    }
  }

  /** The rest of the memory may come now. Rejects with QmpError as long as QEMU has not noticed that the connection broke. */
  async listen(): Promise<void> {
    await this.#client.execute('migrate-recover', { uri: `unix:${this.#path}` }, { timeout: TIMEOUT, outOfBand: true })
  }

  /** Where `listen` lets it come in. Rejects with TunnelError. */
  connect(): Promise<Socket> {
    return unixSocket(this.#path)
  }

  /** It is not needed any more. */
  async forget(monitor: Monitor): Promise<void> {
    this.close()
    await monitor.closefd(KEPT)
  }

  /** QEMU keeps its end, for a later process. */
  close(): void {
    this.#client.close()
  }
}

const streamOf = (fd: number): Socket => new Socket({ fd, readable: true, writable: true })

/** It hears the events that the main monitor hears as well, and the rest of a line that an earlier process began to read. */
const options = (more: Partial<QmpConnectOptions>): QmpConnectOptions => ({ timeout: TIMEOUT, ...more })

function linkOf(path: string): string | undefined {
  try {
    return readlinkSync(path)
  } catch {
    return undefined
  }
}
