/** The two hosts of a campaign of migrations: a virstreamd in each, that is started again whenever it has died. */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Connect, VIR_DOMAIN_PAUSED_POSTCOPY_FAILED, VIR_DOMAIN_RUNNING } from '../../src/index.js'
import { daemonProcess, type DaemonProcess } from '../support/daemon-process.js'
import { processesOf } from '../support/domain.js'
import type { Cleanup } from '../support/images.js'
import type { Order } from './migrate-hook.js'
import { killAll } from './place.js'

/** ms that a daemon is away */
const OUTAGE = 300

export class Host {
  readonly folder: string
  readonly root: string
  readonly uri: string
  readonly image: string
  readonly serial: string
  #daemon: DaemonProcess | undefined
  #conn: Connect | undefined
  #restarting: Promise<void> | undefined
  /** what daemons said when they ended, see the hook */
  readonly lastWords: string[] = []
  /** what they have logged, known when they have ended */
  readonly logs: string[] = []
  readonly #t: Cleanup

  /** `settings`: of its root */
  constructor(t: Cleanup, folder: string, settings: object) {
    this.#t = t
    this.folder = folder
    this.root = join(folder, 'root')
    this.uri = `virstream+unix://${join(this.root, 'run/virstreamd.sock')}`
    this.image = join(folder, 'disk.qcow2')
    this.serial = join(folder, 'guest.serial')
    mkdirSync(join(this.root, 'etc'), { recursive: true })
    writeFileSync(join(this.root, 'etc/qemu.json'), JSON.stringify(settings))
  }

  get #orderFile(): string {
    return join(this.folder, 'order.json')
  }

  async start(): Promise<void> {
    rmSync(this.#orderFile, { force: true })
    const hook = new URL('migrate-hook.js', import.meta.url).href
    this.#daemon = await daemonProcess(this.#t, this.root, [], {
      NODE_OPTIONS: `--import=${hook}`,
      VIRSTREAM_CAMPAIGN_ORDER: this.#orderFile,
      VIRSTREAM_CAMPAIGN_FOLDER: this.folder,
    })
    const daemon = this.#daemon
    void daemon.end().then(({ stderr }) => {
      this.lastWords.push(/killed at '.*'/.exec(stderr)?.[0] ?? 'killed')
      this.logs.push(stderr)
    })
  }

  get isDown(): boolean {
    const { exitCode, signalCode } = this.#daemon?.child ?? {}
    return exitCode !== null || signalCode !== null
  }

  /** One that has died is there again after a moment. */
  keep(): Promise<void> {
    if (!this.isDown) return Promise.resolve()
    return (this.#restarting ??= this.#again().finally(() => (this.#restarting = undefined)))
  }

  async #again(): Promise<void> {
    await delay(OUTAGE)
    this.drop()
    await this.start()
  }

  async conn(): Promise<Connect> {
    return (this.#conn ??= await Connect.open(this.uri))
  }

  /** As if who has it had died. */
  drop(): void {
    void this.#conn?.close().catch(() => undefined)
    this.#conn = undefined
  }

  order(order: Order): void {
    writeFileSync(this.#orderFile, JSON.stringify(order))
  }
  calm(): void {
    rmSync(this.#orderFile, { force: true })
  }

  kill(): boolean {
    return !this.isDown && killAll([this.#daemon?.pid ?? 0])
  }

  /** Of the guest, or of who waits for it, or serves for it. */
  qemus(): number[] {
    return processesOf(this.folder).filter((pid) => {
      const line = existsSync(`/proc/${pid}/cmdline`) ? readFileSync(`/proc/${pid}/cmdline`, 'utf8') : ''
      return line.includes('-pidfile\0')
    })
  }

  async isRunning(name: string): Promise<boolean> {
    const domains = await (await this.conn()).listAllDomains()
    const domain = domains.find((each) => each.name === name)
    return domain !== undefined && (await domain.getState()).state === VIR_DOMAIN_RUNNING
  }

  /** Destroys a guest that QEMU lets go on nowhere (docs/migration.md). Answers whether there was one. */
  async endLost(name: string): Promise<boolean> {
    const domain = await (await this.conn()).domainLookupByName(name)
    if ((await domain.getState()).reason !== VIR_DOMAIN_PAUSED_POSTCOPY_FAILED) return false
    await domain.destroy()
    return true
  }

  /** Names of domains, records and run directories that are there still. */
  async left(): Promise<string[]> {
    const domains = await (await this.conn()).listAllDomains()
    const dirs = ['migration', 'offline', 'qemu'].flatMap((dir) =>
      readdirSync(join(this.root, 'run', dir))
        .filter((name) => name !== 'tunnel.sock')
        .map((name) => `${dir}/${name}${dir === 'migration' ? ` ${this.#phaseOf(name)}` : ''}`),
    )
    return [...domains.map(({ name }) => name), ...dirs]
  }

  #phaseOf(id: string): string {
    const path = join(this.root, 'run/migration', id, 'record.json')
    return existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as { phase: string }).phase : 'not written down'
  }

  async end(): Promise<void> {
    await this.#conn?.close().catch(() => undefined)
    this.kill()
    killAll(processesOf(this.folder))
    await this.#daemon?.end()
  }
}
