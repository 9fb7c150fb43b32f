/** Domains of the live tests: our own driver, real QEMU, the test guest on the serial line. */
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import {
  Connect,
  VIR_DOMAIN_SHUTOFF,
  VIR_DOMAIN_START_PAUSED,
  type ConnectEvent,
  type Domain,
  type OpenOptions,
  type VirErrorCode,
} from '../../src/index.js'
import { Guest, guestFiles, GUEST_MEMORY_KIB, type GuestFiles } from './guest.js'
import type { Cleanup } from './images.js'

export interface TestRoot {
  /** folder of the test: images go here; the root is its 'root' */
  folder: string
  uri: string
  conn: Connect
  options: OpenOptions
}

/**
 * A connection to a root of its own; at the end of the test every domain in it is destroyed, it is closed and its folder
 * removed. What the domains need (servers) is asked for afterwards: hooks of a test run in their order.
 */
export async function testRoot(t: Cleanup, options: OpenOptions = {}): Promise<TestRoot> {
  const folder = await mkdtemp(join(process.env['VIRSTREAM_TEST_DIR'] ?? tmpdir(), 'virstream-test-'))
  const uri = `qemu:///embed?root=${join(folder, 'root')}`
  const conn = await Connect.open(uri, options)
  const root = { folder, uri, conn, options }
  t.after(async () => {
    await root.conn.close().catch(() => undefined)
    killLeftovers(folder)
    await rm(folder, { recursive: true, force: true })
  })
  return root
}

/** Pids of the processes whose command line names something below `folder`. */
export function processesOf(folder: string): number[] {
  return readdirSync('/proc')
    .map(Number)
    .filter((pid) => pid > 0 && pid !== process.pid && commandLine(pid).includes(folder))
}

function commandLine(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8')
  } catch {
    return ''
  }
}

function killLeftovers(folder: string): void {
  for (const pid of processesOf(folder)) {
    try {
      process.kill(pid, 'SIGKILL')
    } catch {
      // it has just ended
    }
  }
}

/** Closes the connection and opens the root again, as a new process would. */
export async function reopen(root: TestRoot): Promise<void> {
  await root.conn.close()
  root.conn = await Connect.open(root.uri, root.options)
}

/** What is expected of a call that fails, for `assert.rejects`. */
export function virError(code: VirErrorCode, message: RegExp): { name: string; code: string; message: RegExp } {
  return { name: 'VirError', code, message }
}

/** Every event of a connection from now on, as it comes. */
export function recordEvents(conn: Connect): ConnectEvent[] {
  const events: ConnectEvent[] = []
  const follow = async (): Promise<void> => {
    for await (const event of conn.domainEvents()) events.push(event)
  }
  void follow()
  return events
}

/** `event/detail` of the lifecycle events of a domain, in order. */
export function lifecycleOf(events: readonly ConnectEvent[]): string[] {
  return events.flatMap((event) => (event.kind === 'lifecycle' ? [`${event.event}/${event.detail}`] : []))
}

/** Folder of a running domain below its root. */
export function runDirOf(root: Pick<TestRoot, 'folder'>, dom: Domain): string {
  return join(root.folder, 'root/run/qemu', String(dom.id))
}

/** The process of a running domain. */
export function qemuPid(root: Pick<TestRoot, 'folder'>, dom: Domain): number {
  return Number(readFileSync(join(runDirOf(root, dom), 'pid'), 'utf8'))
}

/** Nothing of a domain that ended is left: no process, no run directory. */
export function assertNothingRuns(root: TestRoot): void {
  const guests = processesOf(root.folder).filter((pid) => commandLine(pid).includes('-pidfile'))
  assert.deepEqual(guests, [])
  assert.deepEqual(readdirSync(join(root.folder, 'root/run/qemu')), [])
}

export interface DomainOptions {
  name?: string
  /** XML of the disks and whatever else goes under <devices> */
  devices: string
  flavour?: 'cloud' | 'generic'
  machine?: string
  /** XML of the domain outside <devices> */
  extra?: string
  /** attributes of the root element, e.g. a namespace */
  attributes?: string
  memory?: number
  /** 'qemu' (emulated CPU) unless said */
  type?: string
}

/** XML of a domain that runs the test guest, its agent on the first serial port, a unix socket. */
export async function guestXml(folder: string, options: DomainOptions): Promise<string> {
  const files = await guestFiles(options.flavour ?? 'cloud')
  return domainXml(join(folder, `${options.name ?? 'guest'}.serial`), files, options)
}

/** XML of a domain without a guest: enough for what concerns QEMU and its disks alone. */
export function plainXml(options: DomainOptions): string {
  return domainXml(undefined, undefined, { memory: 65_536, ...options })
}

function domainXml(serial: string | undefined, files: GuestFiles | undefined, options: DomainOptions): string {
  const boot =
    files && `<kernel>${files.kernel}</kernel><initrd>${files.initrd}</initrd><cmdline>${files.cmdline}</cmdline>`
  const line = serial && `<serial type='unix'><source mode='bind' path='${serial}'/></serial>`
  return `<domain type='${options.type ?? 'qemu'}' ${options.attributes ?? ''}>
  <name>${options.name ?? 'guest'}</name>
  <uuid>${randomUUID()}</uuid>
  <memory unit='KiB'>${options.memory ?? GUEST_MEMORY_KIB}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='${options.machine ?? 'q35'}'>hvm</type>
    ${boot ?? ''}
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  ${options.extra ?? ''}
  <devices>
    ${options.devices}
    ${line ?? ''}
    <memballoon model='none'/>
  </devices>
</domain>`
}

/** XML of a disk. */
export function diskXml(
  target: string,
  path: string,
  options: { format?: string; bus?: string; driver?: string; extra?: string } = {},
): string {
  return `<disk type='file' device='disk'>
      <driver name='qemu' type='${options.format ?? 'qcow2'}' ${options.driver ?? ''}/>
      <source file='${path}'/>
      <target dev='${target}' bus='${options.bus ?? 'virtio'}'/>
      ${options.extra ?? ''}
    </disk>`
}

/** Defines a domain without a guest and starts it, its CPUs stopped. */
export async function startPlain(root: TestRoot, options: DomainOptions): Promise<Domain> {
  const dom = await root.conn.domainDefineXML(plainXml(options))
  await dom.create(VIR_DOMAIN_START_PAUSED)
  return dom
}

/** Connects to the agent of a running guest. */
export async function agentOf(t: Cleanup, folder: string, name = 'guest'): Promise<Guest> {
  const guest = await Guest.connect(join(folder, `${name}.serial`))
  t.after(() => guest[Symbol.dispose]())
  await guest.ready()
  return guest
}

/** Defines and starts a domain with the test guest, and waits until its agent answers. */
export async function startGuest(
  t: Cleanup,
  root: Pick<TestRoot, 'folder' | 'conn'>,
  options: DomainOptions,
): Promise<{ dom: Domain; guest: Guest }> {
  const dom = await root.conn.domainDefineXML(await guestXml(root.folder, options))
  await dom.create()
  return { dom, guest: await agentOf(t, root.folder, options.name) }
}

/** Polls until `condition` holds; says `what` when it never does. */
export async function until(
  what: string,
  condition: () => Promise<boolean> | boolean,
  timeout = 60_000,
): Promise<void> {
  const end = performance.now() + timeout
  while (!(await condition())) {
    if (performance.now() > end) throw new Error(`not within ${timeout} ms: ${what}`)
    await delay(50)
  }
}

/** Powers the guest down and waits until its domain is shut off. */
export async function powerOff(dom: Domain, guest: Guest): Promise<void> {
  await guest.command('poweroff').catch(() => undefined)
  await until('the domain is shut off', async () => (await dom.getState()).state === VIR_DOMAIN_SHUTOFF)
}
