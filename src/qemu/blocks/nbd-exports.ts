import { randomUUID } from 'node:crypto'
import { rmSync } from 'node:fs'
import { Socket } from 'node:net'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { DiskDef } from '../../conf/domain-def.js'
import { failFrom, messageOf, VirError } from '../../error.js'
import { native } from '../../native.js'
import { ALLOCATION_DEPTH } from '../../nbd/allocation-depth.js'
import { NbdClient } from '../../nbd/client.js'
import { formatNodeName } from '../../machine/blockdev.js'
import type { Monitor } from '../monitor/monitor.js'

const fail = failFrom('VIR_FROM_QEMU')

/** QEMU takes an export away in the background */
const GONE_TRIES = 200
/** ms */
const GONE_INTERVAL = 10

/** The socket on which the exports of one process are. */
export const nbdSocket = (runDir: string): string => join(runDir, 'nbd.sock')

/** The export that a disk which comes back is written to. */
export const backName = (target: string): string => `vs-${target}-back`
/** The export of a disk, and its name for clients. */
export const exportName = (target: string): string => `vs-${target}`

/** A disk with an I/O thread cannot be exported before the guest, or its firmware, has begun to use it. */
export class NotInThread extends VirError {
  constructor(target: string, cause: unknown) {
    super('VIR_ERR_OPERATION_INVALID', 'VIR_FROM_QEMU', `the guest does not use disk '${target}' yet`, { cause })
  }
}

interface ExportWay {
  /** default: the format node of the disk's own image */
  node?: string
  writable?: boolean
  /** each write is on the host's storage before it is answered */
  writethrough?: boolean
  /** QEMU may let go of the image meanwhile, see migration/inactive-images.ts */
  allowInactive?: boolean
  /** also before the disk is in its I/O thread: who connects does so while the guest stands still */
  anyThread?: boolean
}

export interface NbdPlace {
  /** makes a listening socket that QEMU gets */
  listen: (path: string, backlog: number) => number
  /** makes a connection of which QEMU gets a copy */
  connect: (path: string) => number
  /** the I/O thread of a disk, if it has one */
  threadOf: (disk: DiskDef) => string | undefined
}

/**
 * Read-only exports of a running domain's disks from the NBD server embedded in its QEMU, on a private socket that it got
 * as a descriptor, and our own connections to them. A request through an export never drains the disk, so that it cannot
 * freeze the guest while a base does not answer.
 */
export class NbdExports {
  readonly #monitor: Monitor
  readonly #socket: string
  readonly #listen: NbdPlace['listen']
  readonly #connect: NbdPlace['connect']
  readonly #threadOf: NbdPlace['threadOf']
  readonly #clients = new Map<string, NbdClient>()
  /** connections that are being made: two at once would be refused the export's name, or one of them be forgotten */
  readonly #opening = new Map<string, Promise<NbdClient>>()
  /** by target, the name under which QEMU has our end of the connection too */
  readonly #kept = new Map<string, string>()
  /** targets whose exports have requests that are not answered */
  readonly #abandoned = new Set<string>()

  constructor(monitor: Monitor, runDir: string, { listen, connect, threadOf }: NbdPlace) {
    this.#monitor = monitor
    this.#listen = listen
    this.#connect = connect
    this.#threadOf = threadOf
    this.#socket = nbdSocket(runDir)
  }

  /** Exports the disk and connects to it; one that is there already is taken over. Rejects with `NotInThread`. */
  open(disk: DiskDef): Promise<NbdClient> {
    const { target } = disk
    const known = this.#clients.get(target)
    if (known?.connected === true) return Promise.resolve(known)
    const opening = this.#opening.get(target) ?? this.#open(disk).finally(() => this.#opening.delete(target))
    this.#opening.set(target, opening)
    return opening
  }

  async #open(disk: DiskDef): Promise<NbdClient> {
    const { target } = disk
    const id = await this.#export(exportName(target), disk)
    const fd = this.#connect(this.#socket)
    await this.#keep(target, fd)
    const socket = new Socket({ fd, readable: true, writable: true })
    socket.unref()
    const client = await NbdClient.connect(socket, { export: id, metaContexts: [ALLOCATION_DEPTH] })
    this.#clients.set(target, client)
    this.#abandoned.delete(target)
    return client
  }

  /**
   * QEMU gets our end of the connection as well, so that it never sees it close, whatever becomes of this process: 7.2 aborts
   * when a connection to a disk with an I/O thread ends (it wants to hear of that in its main thread). The storage daemon
   * takes no descriptors, and has no such threads.
   */
  async #keep(target: string, fd: number): Promise<void> {
    const name = `vs-link-${randomUUID()}`
    try {
      await this.#monitor.getfd(name, fd)
    } catch (error) {
      if (/command getfd has not been found/.test(messageOf(error))) return
      native.close(fd)
      throw error
    }
    this.#kept.set(target, name)
  }

  /** Exports the disk for others, who connect to the socket themselves; `writable` while no guest runs on it. */
  async serve(disk: DiskDef, way: Pick<ExportWay, 'node' | 'writable' | 'allowInactive'> = {}): Promise<void> {
    await this.#export(exportName(disk.target), disk, { ...way, anyThread: true })
  }

  /** A second export of a disk, under another name, that may be written: until the guest runs on it. */
  async serveBack(disk: DiskDef, way: Pick<ExportWay, 'node' | 'writethrough'> = {}): Promise<void> {
    await this.#export(backName(disk.target), disk, { ...way, writable: true, anyThread: true })
  }
  async unserveBack(target: string): Promise<void> {
    await this.#takeAway(backName(target))
  }
  servesBack(target: string): Promise<boolean> {
    return this.#isThere(backName(target))
  }

  /** Takes back what `serve` gave; whoever is connected loses the connection. */
  async unserve(target: string): Promise<void> {
    await this.#takeAway(exportName(target))
  }

  /** Nothing when it is not there. QEMU does it in the background, and until it is done the name is taken. */
  async #takeAway(id: string): Promise<void> {
    if (!(await this.#isThere(id))) return
    await this.#monitor.blockExportDel(id)
    for (let tries = 0; tries < GONE_TRIES && (await this.#isThere(id)); tries++) await delay(GONE_INTERVAL)
  }

  async #export(id: string, disk: DiskDef, way: ExportWay = {}): Promise<string> {
    if (!(await this.#isThere(id))) await this.#add(disk, id, way)
    return id
  }

  async #isThere(id: string): Promise<boolean> {
    return (await this.#monitor.queryBlockExports()).some((candidate) => candidate.id === id)
  }

  /** Only QEMU knows whether its server runs: a socket may be there from a process that was killed before it handed it over. */
  async #add(disk: DiskDef, id: string, way: ExportWay): Promise<void> {
    try {
      await this.#addTo(disk, id, way)
    } catch (error) {
      if (!/NBD server not running/.test(messageOf(error))) throw error
      await this.#startServer()
      await this.#addTo(disk, id, way)
    }
  }

  /**
   * The disk stays in its I/O thread while it is exported. QEMU would move it to its main thread each time that the guest's
   * driver, or firmware, lets go of the device, and back; with a client connected 7.2 aborts when the second move comes soon
   * after the first, as it does while a guest boots. Who has the device lets nobody else bring the disk to its thread.
   */
  async #addTo(disk: DiskDef, id: string, { node, anyThread, ...how }: ExportWay): Promise<void> {
    const { source, target } = disk
    if (source === undefined) throw fail('VIR_ERR_OPERATION_INVALID', `disk '${target}' has no medium`)
    // a node of its own is not in the guest's thread
    const iothread = node === undefined ? this.#threadOf(disk) : undefined
    const name = node ?? formatNodeName(source)
    try {
      await this.#monitor.blockExportAdd(id, name, { ...how, iothread })
    } catch (error) {
      if (iothread === undefined || !/Cannot change iothread/.test(messageOf(error))) throw error
      if (anyThread !== true) throw new NotInThread(target, error)
      await this.#monitor.blockExportAdd(id, name, how)
    }
  }

  async #startServer(): Promise<void> {
    rmSync(this.#socket, { force: true })
    const listener = this.#listen(this.#socket, 16)
    try {
      await this.#monitor.nbdServerStart(listener)
    } finally {
      native.close(listener)
    }
  }

  /** What the disk's image holds in QEMU's caches goes to the host's storage. */
  async flush(target: string): Promise<void> {
    await this.#clients.get(target)?.flush()
  }

  /**
   * Ends our connection with requests unanswered. The export stays: to take it away QEMU would wait for them, and the guest
   * with it.
   */
  abandon(target: string): void {
    this.#clients.get(target)?.destroy()
    this.#clients.delete(target)
    this.#abandoned.add(target)
  }

  /** Ends the connection and the export, also one of an earlier process; the server stays for the next one. */
  async remove(target: string): Promise<void> {
    await this.#opening.get(target)?.catch(() => undefined)
    const client = this.#clients.get(target)
    const id = exportName(target)
    if (client === undefined && (this.#abandoned.has(target) || !(await this.#isThere(id)))) return
    this.#clients.delete(target)
    // QEMU's side first, see #keep
    await this.#takeAway(id)
    client?.destroy()
    const kept = this.#kept.get(target)
    this.#kept.delete(target)
    if (kept !== undefined) await this.#monitor.closefd(kept)
  }

  /** Our connections end, the exports stay: another process may take them over. */
  close(): void {
    for (const client of this.#clients.values()) client.destroy()
    this.#clients.clear()
  }
}
