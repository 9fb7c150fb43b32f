/**
 * libvirt's library in this process: loaded once, when the first URI needs it. koffi finds its functions, calls those that
 * answer at once and is called back by it; what may wait runs on threads of the native addon (see native.ts).
 */
import koffi from 'koffi'
import type { LibraryHandle } from 'koffi'
import { errnoOf, failFrom, messageOf } from '../error.js'
import type { VirError } from '../error.js'
import { native } from '../native.js'
import type { LibvirtHost, LibvirtNotice } from '../native.js'
import { toVirError } from './errors.js'
import { blocking, immediate } from './symbols.js'
import type { AnswerOf, ArgsOf, Blocking, Immediate, Kind, Signature } from './symbols.js'

const fail = failFrom('VIR_FROM_NONE')

/** How koffi names the kinds of arguments. */
const koffiTypes: Readonly<Record<Kind, string>> = {
  text: 'const char *',
  address: 'void *',
  bytes: 'void *',
  int: 'int',
  uint: 'unsigned int',
  ulong: 'unsigned long long',
}

/** What the addon's `domainNumbers` is made of, in its order. */
const statsFunctions = ['virDomainListGetStats', 'virDomainGetUUID', 'virDomainStatsRecordListFree'] as const

interface Pending {
  name: string
  lane: number
  /** kept: bytes among them are written to when the call is answered */
  args: readonly unknown[]
  resolve: (answer: number | bigint) => void
  reject: (error: VirError) => void
}

type Direct = (...args: unknown[]) => number | bigint | null

export class Library {
  readonly #handles = new Map<string, LibraryHandle>()
  readonly #addresses = new Map<string, bigint>()
  readonly #direct = new Map<string, Direct>()
  readonly #pending = new Map<number, Pending>()
  readonly #listeners = new Map<number, (notice: LibvirtNotice) => void>()
  readonly #host: LibvirtHost
  readonly #free: Direct
  #nextCall = 1
  #nextListener = 1

  constructor() {
    this.#handles.set('libvirt.so.0', load('libvirt.so.0'))
    this.#free = koffi.load(null).func('free', 'void', ['void *']) as Direct
    try {
      this.#host = native.hostLibvirt(this.#find('virSaveLastError', 'libvirt.so.0'), (done, notices) =>
        this.#wake(done, notices),
      )
    } catch (error) {
      if (errnoOf(error) !== 'EBUSY') throw error
      throw fail('VIR_ERR_OPERATION_UNSUPPORTED', 'another thread of this process uses libvirt, which serves one only')
    }
    const { functions } = this.#host
    const { addHandle, updateHandle, removeHandle, addTimeout, updateTimeout, removeTimeout } = functions
    // before anything else: connections look once for an event loop, when they are opened
    if (this.#host.isFirst)
      this.now('virEventRegisterImpl', addHandle, updateHandle, removeHandle, addTimeout, updateTimeout, removeTimeout)
    // errors are thrown, not printed
    this.now('virSetErrorFunc', null, functions.ignore)
  }

  /** C functions of ours that libvirt may call from any of its threads. */
  get functions(): LibvirtHost['functions'] {
    return this.#host.functions
  }

  /** calls that have not been answered */
  get pending(): number {
    return this.#pending.size
  }

  /** Runs a function of libvirt off this thread. Rejects with libvirt's own error; VIR_ERR_NO_SUPPORT for one that this libvirt lacks. */
  call<Name extends keyof Blocking>(
    name: Name,
    ...args: ArgsOf<Blocking[Name]['args']>
  ): Promise<AnswerOf<Blocking[Name]>> {
    return this.callIn(0, name, ...args)
  }

  /** As `call`: of the calls of one lane a few run at a time, in their order. */
  callIn<Name extends keyof Blocking>(
    lane: number,
    name: Name,
    ...args: ArgsOf<Blocking[Name]['args']>
  ): Promise<AnswerOf<Blocking[Name]>> {
    return new Promise((resolve, reject) => {
      const { library, answers }: Signature = blocking[name]
      const pending = { name, lane, args, resolve: resolve as Pending['resolve'], reject }
      this.#submit(this.#find(name, library), answers === 'address', pending)
    })
  }

  /**
   * What virDomainListGetStats tells of `domains`, as numbers: of each, in their order, those called `names`, NaN where it
   * does not tell. Rejects as `call` does.
   */
  numbersIn(
    lane: number,
    domains: readonly { uuid: string; domain: bigint }[],
    stats: number,
    names: readonly string[],
  ): Promise<Float64Array> {
    return new Promise((resolve, reject) => {
      const functions = statsFunctions.map((name) => this.#find(name, 'libvirt.so.0'))
      const numbers = new Float64Array(domains.length * names.length).fill(NaN)
      const lists = [BigUint64Array.from(functions), BigUint64Array.of(...domains.map(({ domain }) => domain), 0n)]
      const [libvirt, list, into] = [...lists, numbers].map(({ buffer }) => new Uint8Array(buffer))
      this.#submit(this.#host.functions.domainNumbers, false, {
        name: 'virDomainListGetStats',
        lane,
        args: [libvirt, list, domains.map(({ uuid }) => uuid).join(' '), stats, names.join(' '), into],
        resolve: () => resolve(numbers),
        reject,
      })
    })
  }

  /** One more call of a lane runs, if one waits. */
  stretch(lane: number): void {
    this.#host.stretch(lane)
  }

  /** What waits at the connection of a lane fails, as if the other side had gone. False: that cannot be brought about. */
  hangUp(lane: number): boolean {
    return this.#host.hangUp(lane)
  }

  /** Whoever waits for calls of a lane is told `error`. The calls go on, and what they were given must stay. */
  abandon(lane: number, error: VirError): void {
    for (const pending of this.#pending.values()) if (pending.lane === lane) pending.reject(error)
  }

  /** Calls a function that answers from memory; what it answers is not judged. */
  now<Name extends keyof Immediate>(name: Name, ...args: ArgsOf<Immediate[Name]['args']>): AnswerOf<Immediate[Name]> {
    return (this.#function(name, immediate[name])(...args) ?? 0n) as AnswerOf<Immediate[Name]>
  }

  /** As `call`, on this thread: for drivers inside this process whose functions never wait. */
  callHere<Name extends keyof Blocking>(name: Name, ...args: ArgsOf<Blocking[Name]['args']>): AnswerOf<Blocking[Name]> {
    const signature: Signature = blocking[name]
    const answer = this.#function(name, signature)(...args) ?? 0n
    const failed = typeof answer === 'bigint' ? answer === 0n : answer < 0
    if (failed) throw toVirError(this.now('virGetLastError'), name)
    return answer as AnswerOf<Blocking[Name]>
  }

  /** The error of the last call of `now`. */
  lastError(name: string): VirError {
    return toVirError(this.now('virGetLastError'), name)
  }

  /** Text that the caller of a function has to free. */
  takeText(at: bigint): string {
    const text = koffi.decode.string(at)
    this.#free(at)
    return text
  }

  free(at: bigint): void {
    this.#free(at)
  }

  /** Answers a number for `listener`, to be given as opaque to `functions.authenticate` or `functions.closed`. */
  listen(listener: (notice: LibvirtNotice) => void): number {
    const id = this.#nextListener++
    this.#listeners.set(id, listener)
    return id
  }
  unlisten(id: number): void {
    this.#listeners.delete(id)
  }
  answer(token: number, answer: number): void {
    this.#host.answer(token, answer)
  }

  #submit(address: bigint, answersAddress: boolean, pending: Pending): void {
    const id = this.#nextCall++
    this.#host.call(id, pending.lane, address, answersAddress, pending.args)
    this.#pending.set(id, pending)
  }

  #function(name: string, { library, answers, args }: Signature): Direct {
    const known = this.#direct.get(name)
    if (known !== undefined) return known
    this.#find(name, library)
    const types = args.map((kind) => koffiTypes[kind])
    const made = this.#library(library).func(name, answers === 'int' ? 'int' : 'void *', types) as Direct
    this.#direct.set(name, made)
    return made
  }

  #library(file: string): LibraryHandle {
    const known = this.#handles.get(file) ?? load(file)
    this.#handles.set(file, known)
    return known
  }

  #find(name: string, file: string): bigint {
    const known = this.#addresses.get(name)
    if (known !== undefined) return known
    try {
      const found = koffi.address(this.#library(file).symbol(name))
      this.#addresses.set(name, found)
      return found
    } catch (error) {
      throw fail('VIR_ERR_NO_SUPPORT', `the installed libvirt has no function '${name}'`, error)
    }
  }

  #wake(done: readonly (number | bigint)[], notices: readonly LibvirtNotice[]): void {
    for (let at = 0; at < done.length; at += 3) {
      const [id, answer, error] = done.slice(at, at + 3) as [number, number | bigint, bigint]
      const pending = this.#pending.get(id)
      this.#pending.delete(id)
      const failed = typeof answer === 'bigint' ? answer === 0n : answer < 0
      if (failed) pending?.reject(this.#takeError(error, pending.name))
      else pending?.resolve(answer)
    }
    for (const notice of notices) {
      const listener = this.#listeners.get(notice.opaque)
      if (listener !== undefined) listener(notice)
      else if (notice.isQuestion) this.#host.answer(notice.token, -1)
    }
  }

  #takeError(at: bigint, name: string): VirError {
    const error = toVirError(at, name)
    if (at !== 0n) this.now('virFreeError', at)
    return error
  }
}

function load(file: string): LibraryHandle {
  try {
    return koffi.load(file)
  } catch (error) {
    const packages =
      file === 'libvirt.so.0' ? "package 'libvirt0' of Debian and Ubuntu, 'libvirt-libs' of Fedora" : file
    throw fail(
      'VIR_ERR_NO_CONNECT',
      `libvirt's library '${file}' cannot be loaded (${packages}): ${messageOf(error)}`,
      error,
    )
  }
}

let loaded: Library | undefined

/** The library, loaded now if it has not been. VIR_ERR_NO_CONNECT where it is not installed. */
export function library(): Library {
  loaded ??= new Library()
  return loaded
}
