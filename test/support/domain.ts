/** Domains of the live tests: our own driver, real QEMU, the test guest on the serial line. */
import { randomUUID } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { Connect, VIR_DOMAIN_SHUTOFF, type Domain } from '../../src/index.js'
import { Guest, guestFiles, GUEST_MEMORY_KIB, type GuestFiles } from './guest.js'
import { temporaryFolder, type Cleanup } from './images.js'

export interface TestRoot {
  /** folder of the test: images go here; the root is its 'root' */
  folder: string
  uri: string
  conn: Connect
}

/** A connection to a root of its own; at the end of the test every domain in it is destroyed and it is closed. */
export async function testRoot(t: Cleanup): Promise<TestRoot> {
  const folder = await temporaryFolder(t)
  const uri = `qemu:///embed?root=${join(folder, 'root')}`
  const conn = await Connect.open(uri)
  const root = { folder, uri, conn }
  t.after(async () => {
    await destroyAll(root.conn)
    await root.conn.close()
  })
  return root
}

/** Closes the connection and opens the root again, as a new process would. */
export async function reopen(root: TestRoot): Promise<void> {
  await root.conn.close()
  root.conn = await Connect.open(root.uri)
}

export async function destroyAll(conn: Connect): Promise<void> {
  for (const dom of await conn.listAllDomains(0)) if (await dom.isActive()) await dom.destroy()
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
}

/** XML of a domain that runs the test guest, its agent on the first serial port, a unix socket. */
export async function guestXml(folder: string, options: DomainOptions): Promise<string> {
  const files = await guestFiles(options.flavour ?? 'cloud')
  return domainXml(join(folder, `${options.name ?? 'guest'}.serial`), files, options)
}

function domainXml(serial: string, files: GuestFiles, options: DomainOptions): string {
  return `<domain type='qemu' ${options.attributes ?? ''}>
  <name>${options.name ?? 'guest'}</name>
  <uuid>${randomUUID()}</uuid>
  <memory unit='KiB'>${options.memory ?? GUEST_MEMORY_KIB}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='${options.machine ?? 'q35'}'>hvm</type>
    <kernel>${files.kernel}</kernel>
    <initrd>${files.initrd}</initrd>
    <cmdline>${files.cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  ${options.extra ?? ''}
  <devices>
    ${options.devices}
    <serial type='unix'><source mode='bind' path='${serial}'/></serial>
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
  root: TestRoot,
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
