/** The host's side of the test guest (scripts/guest): its files, and its agent over a serial line. */
import { once } from 'node:events'
import { createConnection } from 'node:net'
import { fileURLToPath } from 'node:url'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import type { Duplex } from 'node:stream'
import { run } from '../../src/util/run.js'

/**
 * RAM of a test guest in KiB. QEMU's emulation loses dirty pages in live migration when the size is a multiple of 256 KiB,
 * so it is not one.
 */
export const GUEST_MEMORY_KIB = 131_080

/** What `<os>` of a test guest says; boots in about two seconds where the CPU is emulated. */
export interface GuestFiles {
  kernel: string
  initrd: string
  cmdline: string
}

/**
 * Without tests of ciphers, and without copying by 'rep', one byte at a time where the CPU is emulated: a quarter of the boot.
 * The kernel panics if its timer does not tick within the first moment, which a busy host may not let it have.
 */
const CMDLINE = 'console=ttyS0 quiet no_timer_check cryptomgr.notests clearcpuid=erms,fsrm,rep_good'

const repository = fileURLToPath(new URL('../../..', import.meta.url))

/** Builds the guest unless that has been done. The generic one has drivers for SATA and USB too, and starts more slowly. */
export async function guestFiles(flavour: 'cloud' | 'generic' = 'cloud'): Promise<GuestFiles> {
  await run(join(repository, 'scripts/guest/build.sh'), [flavour], { timeout: 600_000 })
  const folder = join(repository, '.cache', flavour === 'cloud' ? 'guest' : 'guest-generic')
  return { kernel: join(folder, 'vmlinux'), initrd: join(folder, 'initramfs.cpio'), cmdline: CMDLINE }
}

export interface GuestAnswer {
  /** what followed 'ok' */
  text: string
  /** the lines that came before the last one */
  lines: string[]
  /** `key=value` words of the text */
  fields: Record<string, string>
}

export interface GuestStat {
  reads: number
  writes: number
  /** blocks read that did not hold what they must */
  bad: number
  errors: number
  /** slowest request so far, and since the last stat */
  maxMs: number
  recentMaxMs: number
  /** how long the oldest unanswered request has been waiting */
  pendingMs: number
}

/** How long a guest's requests on one disk took, in ms. */
export interface GuestLatency {
  count: number
  p50: number
  p99: number
  max: number
}

export interface GuestVerify {
  bad: number
  err: number
  /** number of the first bad block, -1: none */
  first: number
  /** blocks that the guest has written */
  written: number
  blocks: number
}

/** The guest said 'error', went away, or said nothing in time. The message ends with its last lines. */
export class GuestError extends Error {
  override readonly name = 'GuestError'
}

interface Waiting {
  lines: string[]
  resolve: (answer: GuestAnswer) => void
  reject: (error: GuestError) => void
}

export interface CommandOptions {
  /** milliseconds, default 60 000 */
  timeout?: number
}

export class Guest implements Disposable {
  /** '! …' lines: wrong blocks and failed requests, as they were seen */
  readonly alerts: string[] = []
  /** when each 'TICK' came (performance.now()), with the guest's own clock */
  readonly ticks: { at: number; guestMs: number }[] = []
  /** the last lines, of whatever kind */
  readonly output: string[] = []
  readonly #stream: Duplex
  readonly #waiting = new Map<string, Waiting>()
  #lastId = 0
  #rest = ''
  #ended: string | undefined

  constructor(stream: Duplex) {
    this.#stream = stream
    stream.on('data', (bytes: Buffer) => {
      this.#receive(bytes.toString('latin1'))
    })
    stream.on('error', (error) => {
      this.#end(error.message)
    })
    stream.on('close', () => {
      this.#end('its serial line was closed')
    })
    stream.on('end', () => {
      this.#end('its serial line was closed')
    })
  }

  /** Connects to the serial line's unix socket, which may still have to appear. */
  static async connect(path: string, timeout = 60_000): Promise<Guest> {
    const end = performance.now() + timeout
    for (;;) {
      const socket = createConnection(path)
      try {
        await once(socket, 'connect')
        return new Guest(socket)
      } catch (error) {
        if (performance.now() > end) throw error
        await delay(20)
      }
    }
  }

  /** Resolves when the agent answers: just booted, or up for long. */
  async ready(timeout = 120_000): Promise<void> {
    const end = performance.now() + timeout
    // what is said before it listens is lost; on a busy machine an answer takes its time
    for (let patience = Math.min(500, timeout); ; patience = Math.min(2 * patience, 2_000)) {
      try {
        await this.command('ping', { timeout: patience })
        return
      } catch (error) {
        if (this.#ended !== undefined || performance.now() > end) throw error
      }
    }
  }

  /** One command, e.g. 'verify vda'. Commands may overlap. */
  command(line: string, { timeout = 60_000 }: CommandOptions = {}): Promise<GuestAnswer> {
    if (this.#ended !== undefined) return Promise.reject(this.#error(`'${line}': ${this.#ended}`))
    const id = `#${String(++this.#lastId)}`
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#waiting.delete(id)
        reject(this.#error(`no answer to '${line}' in ${timeout} ms`))
      }, timeout)
      const settle = <T>(then: (value: T) => void) => {
        return (value: T) => {
          clearTimeout(timer)
          this.#waiting.delete(id)
          then(value)
        }
      }
      this.#waiting.set(id, { lines: [], resolve: settle(resolve), reject: settle(reject) })
      this.#stream.write(`${id} ${line}\n`)
    })
  }

  /** name → bytes */
  async disks(): Promise<Map<string, number>> {
    const { lines } = await this.command('disks')
    return new Map(lines.map((line) => [line.split(' ')[0] ?? '', Number(line.split(' ')[1])]))
  }

  /** Tells what the disk held when the guest got it: the base pattern of `seed`, on its first `size` bytes; zeros else. */
  async base(disk: string, seed: number, size?: number): Promise<void> {
    await this.command(`base ${disk} ${seed}${size === undefined ? '' : ` ${size / 4096}`}`)
  }

  /** Starts random reads and writes, each checked; 'slowly': 100 a second at most, 'reads' or 'writes': only those. */
  async work(disk: string, ...options: ('slowly' | 'reads' | 'writes')[]): Promise<void> {
    await this.command(['work', disk, ...options].join(' '))
  }

  /** Ends the work on all disks, or on one, and answers the totals. */
  async stop(disk = ''): Promise<GuestStat> {
    return toStat(await this.command(`stop ${disk}`.trim()))
  }

  async stat(): Promise<GuestStat> {
    return toStat(await this.command('stat'))
  }

  /** Of the requests since the last such call; the first one only begins to take notes. */
  async latency(disk: string): Promise<GuestLatency> {
    const { fields: f } = await this.command(`latency ${disk}`)
    return {
      count: Number(f['count']),
      p50: Number(f['p50_ms']),
      p99: Number(f['p99_ms']),
      max: Number(f['max_ms']),
    }
  }

  /** Reads the whole disk and compares each block with what it must hold; works beside 'work'. */
  async verify(disk: string, options?: CommandOptions): Promise<GuestVerify> {
    return toVerify(await this.command(`verify ${disk}`, options))
  }

  /** Like verify, after a reboot: a block that an earlier life of the guest wrote whole and in its place is right. */
  async adopt(disk: string, options?: CommandOptions): Promise<GuestVerify> {
    return toVerify(await this.command(`adopt ${disk}`, options))
  }

  /** What the digest of the disk must be, from the guest's memory alone; `checkPattern` tells what it is. */
  async digest(disk: string): Promise<string> {
    const { fields } = await this.command(`digest ${disk}`)
    return fields['digest'] ?? ''
  }

  [Symbol.dispose](): void {
    this.#stream.destroy()
  }

  #receive(text: string): void {
    const lines = (this.#rest + text).split('\n')
    this.#rest = lines.pop() ?? ''
    for (const line of lines) this.#line(line.trimEnd())
  }

  #line(line: string): void {
    if (line === '') return
    const tick = /^TICK \d+ (\d+)$/.exec(line)
    if (tick !== null) {
      this.ticks.push({ at: performance.now(), guestMs: Number(tick[1]) })
      return
    }
    this.output.push(line)
    if (this.output.length > 40) this.output.shift()
    if (line.startsWith('! ')) this.alerts.push(line)
    const answer = /(#\d+) (\.|ok|error)(?: (.*))?$/.exec(line)
    const waiting = this.#waiting.get(answer?.[1] ?? '')
    if (answer === null || waiting === undefined) return
    const text = answer[3] ?? ''
    if (answer[2] === '.') waiting.lines.push(text)
    else if (answer[2] === 'error') waiting.reject(this.#error(text))
    else waiting.resolve({ text, lines: waiting.lines, fields: fieldsOf(text) })
  }

  #end(reason: string): void {
    this.#ended ??= reason
    for (const waiting of [...this.#waiting.values()]) waiting.reject(this.#error(reason))
  }

  #error(message: string): GuestError {
    return new GuestError(`guest: ${message}\n${this.output.map((line) => `  | ${line}`).join('\n')}`)
  }
}

function fieldsOf(text: string): Record<string, string> {
  return Object.fromEntries(
    text.split(' ').flatMap((word) => {
      const at = word.indexOf('=')
      return at > 0 ? [[word.slice(0, at), word.slice(at + 1)]] : []
    }),
  )
}

function toStat({ fields: f }: GuestAnswer): GuestStat {
  return {
    reads: Number(f['reads']),
    writes: Number(f['writes']),
    bad: Number(f['bad']),
    errors: Number(f['errors']),
    maxMs: Number(f['max_ms']),
    recentMaxMs: Number(f['recent_max_ms']),
    pendingMs: Number(f['pending_ms']),
  }
}

function toVerify({ fields: f }: GuestAnswer): GuestVerify {
  return {
    bad: Number(f['bad']),
    err: Number(f['err']),
    first: Number(f['first']),
    written: Number(f['written']),
    blocks: Number(f['blocks']),
  }
}
