/** What is known of the streams that this connection follows, and its events on their way to listeners. */
import * as c from '../constants.gen.js'
import type { DomainEvent, DomainRef } from '../driver.js'
import { blockJobInfo } from './block.js'
import type { Connection } from './connection.js'
import { disksOf } from './disks.js'

/** ms between looks at a stream */
const INTERVAL = 1000

type Said = DomainEvent extends infer Event ? (Event extends DomainEvent ? Omit<Event, 'domain'> : never) : never
type BlockJobSaid = Extract<Said, { kind: 'block-job' }>

interface Followed {
  domain: DomainRef
  disk: string
  /** bytes */
  size: number
  offset: number
}

export class Streams {
  readonly #conn: Connection
  readonly #followed = new Map<string, Followed>()
  /** path of the disk that an event by its target is about to name */
  #path = ''
  #timer: NodeJS.Timeout | undefined
  /** a look is under way, of a server that takes its time */
  #looking = false

  constructor(conn: Connection) {
    this.#conn = conn
    conn.onClose(() => {
      this.#forgetAll()
      return Promise.resolve()
    })
  }

  /** Begins to tell of a stream's progress, until it ends. */
  follow(domain: DomainRef, disk: string, size: number): void {
    const { name, uuid, id } = domain
    this.#followed.set(key(domain, disk), { domain: { name, uuid, id }, disk, size, offset: 0 })
    if (this.#timer !== undefined || this.#conn.closed) return
    // whoever waits for a stream keeps the process alive by this
    this.#timer = setInterval(() => void this.#look(), INTERVAL)
  }

  forget(domain: DomainRef, disk: string): void {
    this.#followed.delete(key(domain, disk))
    if (this.#followed.size > 0) return
    clearInterval(this.#timer)
    this.#timer = undefined
  }

  /** An event of libvirt. */
  hear(domain: DomainRef, said: Said): void {
    if (said.kind === 'block-job') this.#hearBlockJob(domain, said)
    else if (said.kind === 'io-error') void this.#hearIoError(domain, said)
    else {
      if (said.kind === 'lifecycle' && said.event === c.VIR_DOMAIN_EVENT_STOPPED)
        for (const followed of [...this.#followed.values()])
          if (followed.domain.uuid === domain.uuid) this.forget(domain, followed.disk)
      this.#conn.host.emit({ ...said, domain })
    }
  }

  #forgetAll(): void {
    clearInterval(this.#timer)
    this.#timer = undefined
    this.#followed.clear()
  }

  /** libvirt tells each twice: by path, then by target. */
  #hearBlockJob(domain: DomainRef, said: BlockJobSaid): void {
    if (said.disk === '') {
      this.#path = said.path
      return
    }
    const followed = this.#followed.get(key(domain, said.disk))
    if (said.status === c.VIR_DOMAIN_BLOCK_JOB_COMPLETED && followed !== undefined)
      this.#advance(followed, followed.size)
    if (said.status !== c.VIR_DOMAIN_BLOCK_JOB_READY) this.forget(domain, said.disk)
    this.#conn.host.emit({ ...said, path: this.#path, domain })
    this.#path = ''
  }

  /** libvirt names the device only. */
  async #hearIoError(domain: DomainRef, said: Extract<Said, { kind: 'io-error' }>): Promise<void> {
    const disks = await disksOf(this.#conn, domain).catch(() => [])
    const disk = disks.find(({ alias }) => alias === said.alias)?.target ?? ''
    this.#conn.host.emit({ ...said, disk, domain })
  }

  async #look(): Promise<void> {
    if (this.#conn.lost) this.#forgetAll()
    if (this.#looking) return
    this.#looking = true
    try {
      for (const followed of [...this.#followed.values()]) await this.#lookAt(followed)
    } finally {
      this.#looking = false
    }
  }

  async #lookAt(followed: Followed): Promise<void> {
    const { domain, disk, size } = followed
    const info = await this.#conn.withDomain(domain, (at) => blockJobInfo(this.#conn, at, disk)).catch(() => undefined)
    if (info === undefined || !this.#followed.has(key(domain, disk))) return
    if (info.end > 0) this.#advance(followed, Math.min(info.cur, size))
  }

  #advance(followed: Followed, offset: number): void {
    if (offset <= followed.offset) return
    followed.offset = offset
    const { domain, disk, size } = followed
    this.#conn.host.emit({ kind: 'stream-progress', domain, disk, offset, size })
  }
}

const key = ({ uuid }: DomainRef, disk: string): string => `${uuid} ${disk}`
