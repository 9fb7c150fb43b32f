import { Socket } from 'node:net'
import { failFrom, messageOf } from '../../error.js'
import { native } from '../../native.js'
import { QmpClient } from '../../qmp/client.js'
import { QmpClosedError, QmpError, QmpTimeoutError } from '../../qmp/error.js'
import type { QmpEvent } from '../../qmp/framing.js'
import type { BlockdevOptions } from '../../machine/blockdev.js'
import type {
  BlockCommitArguments,
  BlockDevice,
  BlockJobInfo,
  BlockStatsEntry,
  BlockStreamArguments,
  JobInfo,
} from './types.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms for commands that only look */
const QUERY = 10_000
/** ms for commands that may have to wait for the guest's I/O (a drain) */
const CONTROL = 30_000

/**
 * Of an export: may clients write; is what they write flushed before they are answered; may its node become inactive; the I/O
 * thread that serves it.
 */
export interface ExportOptions {
  writable?: boolean
  writethrough?: boolean
  /** QEMU 10.0 */
  allowInactive?: boolean
  iothread?: string | undefined
}

export interface MonitorEvents {
  onEvent: (event: QmpEvent) => void
  /** the connection is over; undefined when we closed it */
  onClose: (reason: Error | undefined) => void
  onAnomaly: (what: string) => void
  /** one that greets but does not answer in time is taken as it is */
  patient?: boolean
}

/** One method, one QMP command. Failures are VirErrors of the domain; the QMP error is their cause. */
export class Monitor {
  readonly #client: QmpClient | undefined
  readonly domain: string

  private constructor(client: QmpClient | undefined, domain: string) {
    this.#client = client
    this.domain = domain
  }

  /** Connects to the monitor socket of domain `domain`. The errors are QmpClosedError, QmpTimeoutError or the system's. */
  static async connect(path: string, domain: string, events: MonitorEvents, timeout: number): Promise<Monitor> {
    const fd = native.connectUnix(path)
    const socket = new Socket({ fd, readable: true, writable: true })
    const client = await QmpClient.connect(socket, {
      timeout,
      ...events,
      sendWithFds: (line, fds) => {
        const sent = native.sendFds(fd, line, fds)
        if (sent < line.length) socket.write(line.subarray(sent))
      },
    })
    return new Monitor(client, domain)
  }

  /** Stands for the monitor of a QEMU that runs but does not answer: every command fails. */
  static lost(domain: string): Monitor {
    return new Monitor(undefined, domain)
  }

  /** Did it answer within its time when it was connected to? */
  get hasAnswered(): boolean {
    return this.#client?.hasAnswered === true
  }

  get isClosed(): boolean {
    return this.#client?.isClosed ?? true
  }
  close(): void {
    this.#client?.close()
  }

  /** One command; `timeout` in ms, by default long enough for what has to wait for the guest's I/O. */
  async run(command: string, args: object | undefined, timeout = CONTROL, fds?: readonly number[]): Promise<unknown> {
    try {
      if (this.#client === undefined) throw new QmpClosedError('QEMU runs but did not answer when the root was opened')
      return await this.#client.execute(command, args, { timeout, ...(fds && { fds }) })
    } catch (error) {
      throw this.#explain(command, error)
    }
  }

  #explain(command: string, error: unknown): Error {
    if (error instanceof QmpError)
      return fail('VIR_ERR_INTERNAL_ERROR', `unable to execute QEMU command '${command}': ${error.message}`, error)
    if (error instanceof QmpTimeoutError)
      return fail('VIR_ERR_OPERATION_TIMEOUT', `QEMU of domain '${this.domain}' gave ${error.message}`, error)
    if (error instanceof QmpClosedError)
      return fail(
        'VIR_ERR_OPERATION_FAILED',
        `the monitor of domain '${this.domain}' is lost while '${command}' ran`,
        error,
      )
    return fail('VIR_ERR_INTERNAL_ERROR', `'${command}' could not be sent: ${messageOf(error)}`, error)
  }

  // --- the machine ---

  queryStatus(): Promise<{ running: boolean; status: string }> {
    return this.run('query-status', undefined, QUERY) as Promise<{ running: boolean; status: string }>
  }
  cont(): Promise<unknown> {
    return this.run('cont', undefined, CONTROL)
  }
  stop(): Promise<unknown> {
    return this.run('stop', undefined, CONTROL)
  }
  systemPowerdown(): Promise<unknown> {
    return this.run('system_powerdown', undefined, QUERY)
  }
  systemReset(): Promise<unknown> {
    return this.run('system_reset', undefined, QUERY)
  }
  quit(): Promise<unknown> {
    return this.run('quit', undefined, QUERY)
  }
  /** What QEMU does when the guest powers down, resets or panics (QMP set-action). */
  setAction(actions: {
    shutdown?: 'poweroff' | 'pause'
    reboot?: 'reset' | 'shutdown'
    panic?: 'pause' | 'shutdown' | 'none'
  }): Promise<unknown> {
    return this.run('set-action', actions, QUERY)
  }
  balloon(bytes: number): Promise<unknown> {
    return this.run('balloon', { value: bytes }, QUERY)
  }
  async queryBalloon(): Promise<number> {
    return ((await this.run('query-balloon', undefined, QUERY)) as { actual: number }).actual
  }
  queryChardev(): Promise<{ label: string; filename: string; 'frontend-open': boolean }[]> {
    return this.run('query-chardev', undefined, QUERY) as Promise<
      { label: string; filename: string; 'frontend-open': boolean }[]
    >
  }
  setVncPassword(password: string): Promise<unknown> {
    return this.run('set_password', { protocol: 'vnc', password }, QUERY)
  }
  /** The cable of a network device: plugged in or not. */
  setLink(name: string, up: boolean): Promise<unknown> {
    return this.run('set_link', { name, up }, QUERY)
  }
  /** A command as the user wrote it; resolves to QEMU's whole reply object as text. */
  async passThrough(command: string, args: object | undefined): Promise<unknown> {
    return this.run(command, args, CONTROL)
  }
  humanMonitorCommand(line: string): Promise<string> {
    return this.run('human-monitor-command', { 'command-line': line }, CONTROL) as Promise<string>
  }

  // --- block devices and their nodes ---

  queryBlock(): Promise<BlockDevice[]> {
    return this.run('query-block', undefined, QUERY) as Promise<BlockDevice[]>
  }
  queryBlockstats(): Promise<BlockStatsEntry[]> {
    return this.run('query-blockstats', undefined, QUERY) as Promise<BlockStatsEntry[]>
  }
  /** Names of all nodes. Never while a stream is concluded but not dismissed: QEMU 7.2 crashes on what is left of its filter. */
  async queryNodeNames(): Promise<string[]> {
    const nodes = await this.run('query-named-block-nodes', { flat: true }, QUERY)
    return (nodes as { 'node-name': string }[]).map((node) => node['node-name'])
  }
  blockdevAdd(options: BlockdevOptions): Promise<unknown> {
    return this.run('blockdev-add', options, CONTROL)
  }
  blockdevDel(nodeName: string): Promise<unknown> {
    return this.run('blockdev-del', { 'node-name': nodeName }, CONTROL)
  }
  /** `options`: all of the node's, also those that stay as they are */
  blockdevReopen(options: BlockdevOptions): Promise<unknown> {
    return this.run('blockdev-reopen', { options: [options] }, CONTROL)
  }

  /** `size` in bytes */
  blockResize(nodeName: string, size: number): Promise<unknown> {
    return this.run('block_resize', { 'node-name': nodeName, size }, CONTROL)
  }
  /** `args`: see `ioThrottleArguments` */
  blockSetIoThrottle(args: object): Promise<unknown> {
    return this.run('block_set_io_throttle', args, CONTROL)
  }

  // --- media, by the alias of the drive ---

  blockdevOpenTray(id: string, force: boolean): Promise<unknown> {
    return this.run('blockdev-open-tray', { id, force }, CONTROL)
  }
  blockdevRemoveMedium(id: string): Promise<unknown> {
    return this.run('blockdev-remove-medium', { id }, CONTROL)
  }
  blockdevInsertMedium(id: string, nodeName: string): Promise<unknown> {
    return this.run('blockdev-insert-medium', { id, 'node-name': nodeName }, CONTROL)
  }
  blockdevCloseTray(id: string): Promise<unknown> {
    return this.run('blockdev-close-tray', { id }, CONTROL)
  }

  // --- block jobs ---

  queryJobs(): Promise<JobInfo[]> {
    return this.run('query-jobs', undefined, QUERY) as Promise<JobInfo[]>
  }
  queryBlockJobs(): Promise<BlockJobInfo[]> {
    return this.run('query-block-jobs', undefined, QUERY) as Promise<BlockJobInfo[]>
  }
  /** Waits before it drops the base until it is told to, and once ended can be asked how it went until it is dismissed. */
  blockStream(args: BlockStreamArguments): Promise<unknown> {
    return this.run('block-stream', { ...args, 'auto-finalize': false, 'auto-dismiss': false }, CONTROL)
  }
  /** As `blockStream`, but one of the disk's own image waits until `jobComplete` before it comes to that. */
  blockCommit(args: BlockCommitArguments): Promise<unknown> {
    return this.run('block-commit', { ...args, 'auto-finalize': false, 'auto-dismiss': false }, CONTROL)
  }
  jobComplete(id: string): Promise<unknown> {
    return this.run('job-complete', { id }, CONTROL)
  }
  /** What QEMU holds of a node in its own caches goes to the host. */
  async flushNode(nodeName: string): Promise<void> {
    const said = await this.humanMonitorCommand(`qemu-io ${nodeName} flush`)
    if (said.trim() !== '') throw fail('VIR_ERR_OPERATION_FAILED', `node '${nodeName}' is not flushed: ${said.trim()}`)
  }
  jobFinalize(id: string): Promise<unknown> {
    return this.run('job-finalize', { id }, CONTROL)
  }
  jobCancel(id: string): Promise<unknown> {
    return this.run('job-cancel', { id }, QUERY)
  }
  jobDismiss(id: string): Promise<unknown> {
    return this.run('job-dismiss', { id }, QUERY)
  }
  blockJobResume(id: string): Promise<unknown> {
    return this.run('block-job-resume', { device: id }, QUERY)
  }
  blockJobSetSpeed(id: string, speed: number): Promise<unknown> {
    return this.run('block-job-set-speed', { device: id, speed }, QUERY)
  }

  // --- exports of the embedded NBD server ---

  async nbdServerStart(listener: number): Promise<void> {
    await this.getfd('vs-nbd', listener)
    await this.run('nbd-server-start', { addr: { type: 'fd', data: { str: 'vs-nbd' } } }, QUERY)
  }
  /** With an I/O thread the node goes there, and stays there as long as the export does. */
  blockExportAdd(id: string, nodeName: string, options: ExportOptions = {}): Promise<unknown> {
    const { writable = false, writethrough, allowInactive, iothread } = options
    const args = {
      ...{ type: 'nbd', id, 'node-name': nodeName, name: id, writable, 'allocation-depth': true },
      ...(writethrough === true && { writethrough }),
      ...(allowInactive === true && { 'allow-inactive': true }),
      ...(iothread !== undefined && { iothread, 'fixed-iothread': true }),
    }
    return this.run('block-export-add', args, CONTROL)
  }
  blockExportDel(id: string): Promise<unknown> {
    return this.run('block-export-del', { id, mode: 'hard' }, CONTROL)
  }
  queryBlockExports(): Promise<{ id: string }[]> {
    return this.run('query-block-exports', undefined, QUERY) as Promise<{ id: string }[]>
  }

  /** A descriptor under a name that other commands use, once. */
  getfd(name: string, fd: number): Promise<unknown> {
    return this.run('getfd', { fdname: name }, QUERY, [fd])
  }
  closefd(name: string): Promise<unknown> {
    return this.run('closefd', { fdname: name }, QUERY)
  }
}
