/** What a process with images of a domain is put together of: a domain's QEMU and a storage daemon alike. */
import type { DomainDef } from '../../conf/domain-def.js'
import { native, type ProcessExit, type ProcessWatch } from '../../native.js'
import type { QmpEvent } from '../../qmp/framing.js'
import type { Access } from '../access/access.js'
import { ioThreadOf } from '../../machine/alias.js'
import type { Guards } from '../blocks/block-graph.js'
import { BlockJobs } from '../blocks/blockjob.js'
import { commitReady } from './commit-settle.js'
import { completeLater, finalizeLater } from './finalize.js'
import type { Monitor, MonitorEvents } from '../monitor/monitor.js'
import { NbdExports } from '../blocks/nbd-exports.js'
import { settleLater } from './settle.js'
import { saveStatus } from '../core/status.js'
import type { Qemu } from '../core/qemu.js'
import type { Daemon, Live, Replacing, StreamHost, Vm } from '../core/vm.js'

/** Who hears what the monitor and the process of a host say. */
export interface HostListener<H> {
  event(host: H, event: QmpEvent): void
  exit(host: H, exit: ProcessExit): void
  /** its monitor connection broke; its exit may follow */
  loss?(host: H): void
  anomaly(what: string): void
}

/** What a monitor and a process say, kept until the host that it is about has been put together. */
export class Pending<H extends StreamHost> {
  readonly #to: HostListener<H>
  #queue: QmpEvent[] = []
  #host: H | undefined
  #exit: ProcessExit | undefined

  constructor(to: HostListener<H>) {
    this.#to = to
  }

  get events(): MonitorEvents {
    return {
      onEvent: (event) => {
        if (this.#host === undefined) this.#queue.push(event)
        else this.#to.event(this.#host, event)
      },
      onClose: (reason) => {
        if (reason !== undefined && this.#host !== undefined) this.#to.loss?.(this.#host)
      },
      onAnomaly: (what) => this.#to.anomaly(what),
    }
  }

  onExit(exit: ProcessExit): void {
    if (this.#host === undefined) this.#exit = exit
    else this.#to.exit(this.#host, exit)
  }

  attach(host: H): void {
    this.#host = host
    for (const event of this.#queue.splice(0)) this.#to.event(host, event)
    // it answered and was gone at once
    if (this.#exit !== undefined) this.#to.exit(host, this.#exit)
  }
}

export interface HostParts {
  id: number
  def: DomainDef
  runDir: string
  pid: number
  startTime: string
  process: ProcessWatch
  monitor: Monitor
  access: Access
  guards: Guards
  staleHeaders?: Set<string>
  replacing?: Replacing
  standIn?: string
}

/** Puts a host together; `ended` resolves once its process is gone and what it had is free. */
export function makeHost(qemu: Qemu, vm: Vm, parts: HostParts, own: Pick<Live, 'mode'>): Live
export function makeHost(qemu: Qemu, vm: Vm, parts: HostParts, own: Pick<Daemon, 'mode' | 'release'>): Daemon
export function makeHost(
  qemu: Qemu,
  vm: Vm,
  parts: HostParts,
  own: Pick<Live, 'mode'> | Pick<Daemon, 'mode' | 'release'>,
): StreamHost {
  const { monitor, runDir, access } = parts
  let markEnded!: () => void
  const ended = new Promise<void>((resolve) => {
    markEnded = resolve
  })
  const host: StreamHost = {
    staleHeaders: new Set(),
    ...parts,
    ...own,
    blockJobs: new BlockJobs({
      ready: (job) =>
        job.record.commit === undefined ? completeLater(qemu, host, job) : commitReady(qemu, vm, host, job),
      pending: (job) => finalizeLater(qemu, vm, host, job),
      concluded: (job) => settleLater(qemu, vm, host, job),
    }),
    exports: new NbdExports(monitor, runDir, {
      listen: (path, backlog) => access.listen(path, backlog),
      connect: (path) => access.makeSocket(() => native.connectUnix(path)),
      // a storage daemon has none
      threadOf: (disk) => (own.mode === 'offline' ? undefined : ioThreadOf(host.def, disk)),
    }),
    ended,
    markEnded,
  }
  access.persist = () => saveStatus(vm, host)
  access.pid = parts.pid
  return host
}
