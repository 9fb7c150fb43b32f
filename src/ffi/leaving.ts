/** One migration of a domain that a libvirtd has, as long as it lasts. */
import { randomUUID } from 'node:crypto'
import { escapeText } from '../conf/serialize.js'
import type { DomainRef, MigrateParams } from '../driver.js'
import { failFrom, messageOf, VirError } from '../error.js'
import { MigrationLink, UnknownThereError } from '../migration/link.js'
import type { Tunnel } from '../tunnel/tunnel.js'

const fail = failFrom('VIR_FROM_QEMU')

export class Leaving {
  readonly ref: DomainRef
  readonly id: string
  readonly key: string
  /** as libvirtd was told them */
  readonly flags: number
  readonly params: MigrateParams
  /** libvirtd has a job for it until it is 'over', and waits for the word that ends it */
  phase: 'begun' | 'performed' | 'over' = 'begun'
  link: MigrationLink | undefined
  /** name of the destination's host */
  peer = ''
  /** the destination has said that the guest runs there */
  #hasArrived = false

  constructor(ref: DomainRef, id: string, key: string, flags: number, params: MigrateParams) {
    this.ref = ref
    this.id = id
    this.key = key
    this.flags = flags
    this.params = params
  }

  /** What a libvirtd at the destination would say: that it is another host, and that it knows the domain. */
  libvirtCookie(): string {
    const { name, uuid } = this.ref
    const host = `<hostname>${escapeText(this.peer)}</hostname><hostuuid>${randomUUID()}</hostuuid>`
    return `<qemu-migration><name>${escapeText(name)}</name><uuid>${uuid}</uuid>${host}</qemu-migration>\n`
  }

  async connect(uri: string, tunnel: Tunnel | undefined, warn: (text: string) => void): Promise<void> {
    const { id, key } = this
    this.link = new MigrationLink({
      ...{ id, key, uri, warn },
      ...(tunnel && { tunnel }),
      onOpen: (request) => request.refuse('the disks of this domain are not served'),
      onRequest: (method) => this.answer(method),
      onRestored: () => undefined,
    })
    try {
      await this.link.connect()
    } catch (error) {
      const text = `destination '${this.peer}' of domain '${this.ref.name}' cannot be reached at '${uri}': ${messageOf(error)}`
      throw fail('VIR_ERR_OPERATION_FAILED', text, error)
    }
  }

  /** What the destination tells: it forgets the migration only once it has been heard. */
  answer(method: string): object {
    if (method === 'released') this.#hasArrived = true
    return {}
  }

  /** libvirt's error, with what the QEMU at the destination said about it. */
  async withReason(error: unknown): Promise<unknown> {
    const theirs = await this.link?.request('reason', {}, 2_000).catch(() => undefined)
    if (!(error instanceof VirError) || typeof theirs !== 'string' || theirs === '') return error
    return fail(error.code, `${error.message}; at the destination: ${theirs}`, error)
  }

  /** Does it run at the destination, or will it? VIR_ERR_OPERATION_FAILED when that cannot be found out. */
  async runsThere(): Promise<boolean> {
    if (this.#hasArrived) return true
    if (this.phase !== 'performed') return false
    try {
      if (this.link?.isUp === false) await this.link.connect()
      const { phase } = (await this.link?.request('cancel')) as { phase?: unknown }
      return phase !== 'cancelled'
    } catch (error) {
      // it was called off there, or has arrived meanwhile
      if (error instanceof UnknownThereError) return this.#hasArrived
      const { name } = this.ref
      const text = `it is not known whether domain '${name}' runs at '${this.peer}': ${messageOf(error)}; here it stays paused`
      throw fail('VIR_ERR_OPERATION_FAILED', text, error)
    }
  }
}
