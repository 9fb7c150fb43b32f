/** One open virConnectPtr: its handles on domains, its calls, its end. */
import koffi from 'koffi'
import { VIR_CONNECT_CLOSE_REASON_KEEPALIVE } from '../constants.gen.js'
import type { DomainRef, DriverHost } from '../driver.js'
import { Transports } from '../migration/transports.js'
import { failFrom, VirError } from '../error.js'
import { Authentication } from './authentication.js'
import { Lane } from './lane.js'
import { library } from './library.js'
import type { Library } from './library.js'
import type { AnswerOf, ArgsOf, Blocking } from './symbols.js'

const fail = failFrom('VIR_FROM_NONE')

const silent = (): VirError => fail('VIR_ERR_INVALID_CONN', 'the server of the connection has fallen silent')

const READ_ONLY = 1 // VIR_CONNECT_RO
/**
 * Seconds between questions whether the other side lives, and how many may go unanswered. More than with virsh: a libvirtd
 * reads nothing while five requests of a client are under way, and those at a QEMU that hangs end after 30 s.
 */
const KEEP_ALIVE = { interval: 5, count: 8 }
/** handles that are kept although nothing uses them */
const MOST_HANDLES = 4096

interface Handle {
  readonly uuid: string
  readonly at: bigint
  users: number
  dropped: boolean
}

export class Connection {
  readonly host: DriverHost
  readonly lib: Library
  /** that the memory of guests may go by */
  readonly transports: Transports
  /** given to libvirt as the opaque of callbacks */
  readonly id: number
  /** the hypervisor is in this process and in memory: nothing waits */
  readonly here: boolean
  /** what libvirt is asked for runs on this machine, as far as the URI tells */
  readonly isOfThisHost: boolean
  readonly #handles = new Map<string, Handle>()
  readonly #lane: Lane
  #at = 0n
  #lost = false
  /** calls that nobody waits for any more may still use all that libvirt has given us: nothing is given back */
  #abandoned = false
  #closing: Promise<void> | undefined
  #beforeClose: (() => Promise<void>)[] = []
  readonly #whenLost: (() => void)[] = []

  private constructor(uri: URL, host: DriverHost, lib: Library) {
    this.host = host
    this.lib = lib
    this.transports = new Transports(host.transports)
    this.isOfThisHost = uri.host === ''
    this.here = uri.protocol === 'test:' && this.isOfThisHost
    this.id = lib.listen(({ number }) => {
      this.#lose(number)
    })
    this.#lane = new Lane(
      () => lib.stretch(this.id),
      () => void this.call('virConnectGetLibVersion', this.#at, new Uint8Array(8)).catch(() => undefined),
      () => this.#hangUp(),
    )
  }

  /** Opens `uri` as libvirt reads it. Rejects with libvirt's own error. */
  static async open(uri: URL, host: DriverHost): Promise<Connection> {
    const lib = library()
    const connection = new Connection(uri, host, lib)
    const authentication =
      host.authenticate && new Authentication(lib, (asked) => host.authenticate?.(asked) ?? Promise.resolve([]))
    try {
      await lib.call('virInitialize')
      const flags = host.readOnly ? READ_ONLY : 0
      const { id } = connection
      connection.#at = await lib.callIn(id, 'virConnectOpenAuth', uri.href, authentication?.asStruct() ?? null, flags)
    } catch (error) {
      lib.unlisten(connection.id)
      throw error
    } finally {
      authentication?.end()
    }
    await connection.#watch()
    return connection
  }

  get at(): bigint {
    return this.#at
  }

  get closed(): boolean {
    return this.#closing !== undefined
  }

  /** the other side is gone */
  get lost(): boolean {
    return this.#lost
  }

  /** Runs a function of libvirt, off this thread unless it cannot wait. */
  async call<Name extends keyof Blocking>(
    name: Name,
    ...args: ArgsOf<Blocking[Name]['args']>
  ): Promise<AnswerOf<Blocking[Name]>> {
    if (this.#abandoned) throw silent()
    return this.here ? this.lib.callHere(name, ...args) : this.#lane.watch(this.lib.callIn(this.id, name, ...args))
  }

  /** As `numbersIn` of the library; for connections that may wait only. */
  numbers(
    domains: readonly { uuid: string; domain: bigint }[],
    stats: number,
    names: readonly string[],
  ): Promise<Float64Array> {
    if (this.#abandoned) return Promise.reject(silent())
    return this.#lane.watch(this.lib.numbersIn(this.id, domains, stats, names))
  }

  /** As `call`, for a function that answers text to be freed. */
  async text(name: TextFunction, ...args: unknown[]): Promise<string> {
    const run = this.call.bind(this) as (name: string, ...args: unknown[]) => Promise<bigint>
    return this.lib.takeText(await run(name, ...args))
  }

  /** Runs `use` with a handle on the domain, which stays valid while it runs. */
  async withDomain<T>(ref: DomainRef, use: (domain: bigint) => Promise<T>): Promise<T> {
    const known = this.#handles.get(ref.uuid)
    if (known !== undefined) known.users += 1
    const handle = known ?? (await this.#lookUp(ref.uuid))
    try {
      return await use(handle.at)
    } catch (error) {
      if (error instanceof VirError && error.code === 'VIR_ERR_NO_DOMAIN') void this.#drop(handle)
      throw error
    } finally {
      handle.users -= 1
      if (handle.dropped && handle.users === 0) void this.#free(handle)
    }
  }

  /** Takes over a handle that libvirt gave us, and says whose it is. */
  take(at: bigint): DomainRef {
    const ref = this.refOf(at)
    const known = this.#handles.get(ref.uuid)
    if (known !== undefined) void this.#drop(known)
    const handle = { uuid: ref.uuid, at, users: 0, dropped: false }
    if (this.closed) void this.#free(handle)
    else this.#handles.set(ref.uuid, handle)
    if (this.#handles.size > MOST_HANDLES) this.#dropOldest()
    return ref
  }

  /** Of a handle that stays libvirt's. */
  refOf(at: bigint): DomainRef {
    const id = this.lib.now('virDomainGetID', at) | 0
    return {
      name: koffi.decode.string(this.lib.now('virDomainGetName', at)),
      uuid: this.uuidOf(at),
      id,
    }
  }

  uuidOf(domain: bigint): string {
    const uuid = Buffer.alloc(37)
    this.lib.now('virDomainGetUUIDString', domain, uuid)
    return uuid.toString('latin1', 0, 36)
  }

  /** `step` runs when the connection is being closed, while it still can be used. */
  onClose(step: () => Promise<void>): void {
    this.#beforeClose.push(step)
  }

  /** `step` runs when the other side is gone. */
  onLost(step: () => void): void {
    this.#whenLost.push(step)
  }

  #lose(reason: number): void {
    if (this.#lost) return
    this.#lost = true
    for (const step of this.#whenLost) step()
    this.host.emit({ kind: 'close', reason })
  }

  /** The server answers nothing: what waits for it fails. */
  #hangUp(): void {
    if (this.#abandoned || this.lib.hangUp(this.id)) return
    this.#abandoned = true
    // libvirt's own keep-alive would have one call fail and the others wait for ever, see Silence
    this.lib.call('virConnectSetKeepAlive', this.#at, 0, 0).catch(() => undefined)
    this.lib.abandon(this.id, silent())
    this.#lose(VIR_CONNECT_CLOSE_REASON_KEEPALIVE)
  }

  /** Gives everything back; what is still running keeps its handles until it is through. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async #close(): Promise<void> {
    const log = (error: unknown): void => this.host.logger.debug({ err: error }, 'closing a connection of libvirt')
    for (const step of this.#beforeClose.splice(0)) await step().catch(log)
    await this.call('virConnectUnregisterCloseCallback', this.#at, this.lib.functions.closed).catch(log)
    this.lib.unlisten(this.id)
    if (!this.#abandoned) {
      await Promise.all([...this.#handles.values()].map((handle) => this.#drop(handle)))
      // nothing is left to do where the other side is gone: the last reference goes all the same
      await this.call('virConnectClose', this.#at).catch(log)
    }
    this.#lane.end()
  }

  /** What not every driver has: keep-alive, and being told of the end. */
  async #watch(): Promise<void> {
    const optional = async (what: Promise<unknown>): Promise<void> => {
      await what.catch((error: unknown) => this.host.logger.debug({ err: error }, 'optional call of libvirt'))
    }
    if (this.here) return
    await optional(this.call('virConnectSetKeepAlive', this.#at, KEEP_ALIVE.interval, KEEP_ALIVE.count))
    const { closed } = this.lib.functions
    await optional(this.call('virConnectRegisterCloseCallback', this.#at, closed, BigInt(this.id), null))
  }

  /** Its user is counted: another answer for the same domain gives back a handle that has none. */
  async #lookUp(uuid: string): Promise<Handle> {
    if (this.closed) throw fail('VIR_ERR_INVALID_CONN', 'the connection is closed')
    this.take(await this.call('virDomainLookupByUUIDString', this.#at, uuid))
    const handle = this.#handles.get(uuid)
    if (handle === undefined) throw fail('VIR_ERR_INVALID_CONN', 'the connection is closed')
    handle.users += 1
    return handle
  }

  async #drop(handle: Handle): Promise<void> {
    if (this.#handles.get(handle.uuid) === handle) this.#handles.delete(handle.uuid)
    if (handle.dropped) return
    handle.dropped = true
    if (handle.users === 0) await this.#free(handle)
  }

  #dropOldest(): void {
    for (const handle of this.#handles.values()) {
      if (handle.users > 0) continue
      void this.#drop(handle)
      return
    }
  }

  /** While the connection itself is held, giving a handle back is a matter of memory only. */
  async #free(handle: Handle): Promise<void> {
    if (this.#abandoned) return
    if (this.#closing === undefined || this.here) this.lib.callHere('virDomainFree', handle.at)
    else await this.lib.call('virDomainFree', handle.at).catch(() => undefined)
  }
}

type TextFunction =
  | 'virConnectGetHostname'
  | 'virConnectGetCapabilities'
  | 'virConnectGetDomainCapabilities'
  | 'virDomainGetXMLDesc'
  | 'virDomainSaveImageGetXMLDesc'
