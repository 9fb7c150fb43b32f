/**
 * The whole story on one machine: a base image behind a slow link, a Linux guest that starts at once on an empty overlay of
 * it, the stream that brings the rest while the guest works, and the guest going on when the base is gone.
 * `npm run demo`, or after set-up: `node dist/scripts/demo.js [--size MIB] [--link MBIT]`.
 */
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { Connect, VIR_DOMAIN_XML_INACTIVE, type Domain } from '../src/index.js'
import { messageOf } from '../src/error.js'
import { run } from '../src/util/run.js'
import { Guest, guestFiles, GUEST_MEMORY_KIB } from '../test/support/guest.js'
import { overlay, patternImage, temporaryFolder, type Cleanup, type PatternImage } from '../test/support/images.js'
import { startNbdkit, startQemuNbd, type NbdServer } from '../test/support/nbd-server.js'
import { isZeroInBase } from '../test/support/pattern.js'
import { findProgram } from '../test/support/requires.js'
import { Screen, grouped, seconds } from './demo-screen.js'
import { runProgram } from './program.js'

const MiB = 1024 * 1024
const screen = new Screen()

interface Stage {
  /** images and sockets; the root of the driver too */
  folder: string
  t: Cleanup
  signal: AbortSignal
  /** of the base image, bytes */
  size: number
  /** Mbit/s */
  link: number
}

interface FarAway {
  base: PatternImage
  /** the slow one first */
  servers: NbdServer[]
  uri: string
}

interface Running {
  conn: Connect
  dom: Domain
  guest: Guest
  path: string
  /** ms from the first thing done for it until the guest had read a block of its disk */
  startMs: number
}

// --- 1. the other machine ----------------------------------------------------------------------------------------

async function farAway(stage: Stage): Promise<FarAway> {
  const { folder, t, size, link } = stage
  screen.chapter('A base image on another machine')
  const { value: base } = await screen.step(`base image of ${size / MiB} MiB, each block known by heart`, () =>
    patternImage(folder, size),
  )
  const far = join(folder, 'server.sock')
  const near = join(folder, 'link.sock')
  const { value: servers } = await screen.step(`qemu-nbd serves it, nbdkit makes the link ${link} Mbit/s`, async () => {
    const server = await startQemuNbd(t, { image: base.path, format: 'raw', socket: far })
    const slow = { plugin: ['nbd', `socket=${far}`], filters: ['rate'], parameters: [`rate=${link}M`], socket: near }
    return [await startNbdkit(t, slow), server]
  })
  return { base, servers, uri: servers[0]?.uri ?? '' }
}

// --- 2. start at once --------------------------------------------------------------------------------------------

async function open(stage: Stage): Promise<{ conn: Connect; type: 'kvm' | 'qemu' }> {
  const { value: conn } = await screen.step('virstream opens a root of its own', () =>
    Connect.open(`qemu:///embed?root=${join(stage.folder, 'root')}`),
  )
  stage.t.after(() => conn.close())
  const { value: problem } = await screen.step(
    (why) => `QEMU is asked what it can do: ${why === undefined ? 'KVM works' : 'no KVM here, TCG emulates the CPU'}`,
    () => conn.getDomainCapabilities(undefined, undefined, undefined, 'kvm').then(() => undefined, messageOf),
    'QEMU is asked what it can do',
  )
  return { conn, type: problem === undefined ? 'kvm' : 'qemu' }
}

async function domainXml(stage: Stage, type: string, image: string): Promise<string> {
  const { kernel, initrd, cmdline } = await guestFiles()
  return `<domain type='${type}'>
  <name>demo</name>
  <memory unit='KiB'>${GUEST_MEMORY_KIB}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>${kernel}</kernel>
    <initrd>${initrd}</initrd>
    <cmdline>${cmdline}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='${image}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <serial type='unix'><source mode='bind' path='${join(stage.folder, 'serial.sock')}'/></serial>
    <memballoon model='none'/>
  </devices>
</domain>`
}

async function startAtOnce(stage: Stage, { base, uri }: FarAway): Promise<Running> {
  screen.chapter('The guest starts at once')
  const { conn, type } = await open(stage)
  await guestFiles()
  const began = performance.now()
  const { value: path } = await screen.step('an empty overlay, its base at the other end of the link', () =>
    overlay(stage.folder, uri),
  )
  const { value: dom } = await screen.step('the domain is defined from its XML', async () =>
    conn.domainDefineXML(await domainXml(stage, type, path)),
  )
  await screen.step('it is started: QEMU runs', () => start(stage, dom))
  const { value: guest } = await screen.step('its kernel has booted, and its agent answers', () => meet(stage))
  const block = firstBlock(base.seed)
  await screen.step(`it has read block ${block} of its disk over the link, and it is right`, async () => {
    await guest.base('vda', base.seed, base.size)
    const { fields } = await guest.command(`read vda ${block}`)
    if (fields['bad'] !== '0' || fields['kind'] !== 'base') throw new Error(`block ${block} of the guest is wrong`)
  })
  const startMs = performance.now() - began
  const { lines } = await guest.command('sh uname -sr')
  const disks = [...(await guest.disks())].map(([name, bytes]) => `/dev/${name} of ${bytes / MiB} MiB`)
  screen.say(`The guest says that it is ${lines[0] ?? 'something'} with ${disks.join(', ')}; the image that it runs from
    takes ${await allocated(path)} MiB on this side.`)
  return { conn, dom, guest, path, startMs }
}

/** A start that is interrupted is waited for: QEMU is not our child and would stay. */
async function start(stage: Stage, dom: Domain): Promise<void> {
  stage.signal.throwIfAborted()
  const started = dom.create()
  const running = started.then(
    () => true,
    () => false,
  )
  stage.t.after(async () => {
    if ((await running) && (await dom.isActive())) await dom.destroy()
  })
  await started
}

async function meet(stage: Stage): Promise<Guest> {
  const guest = await Guest.connect(join(stage.folder, 'serial.sock'))
  stage.t.after(() => guest[Symbol.dispose]())
  await guest.ready()
  return guest
}

function firstBlock(seed: number): number {
  let block = 1234
  while (isZeroInBase(seed, block)) block++
  return block
}

/** MiB that a file takes on disk */
const allocated = async (path: string): Promise<number> => Math.round(((await stat(path)).blocks * 512) / MiB)

// --- 3. the stream -----------------------------------------------------------------------------------------------

async function streamWhileItWorks(stage: Stage, { dom, guest, path }: Running): Promise<number> {
  screen.chapter('Its disk follows while it works')
  screen.say('The guest reads and writes at random places and checks each block that it reads.')
  await guest.work('vda', 'slowly')
  const began = performance.now()
  const stream = await dom.stream('vda')
  const bar = screen.bar('vda', stage.size)
  const note = async (): Promise<string> => {
    const { reads, writes, bad } = await guest.stat()
    return `guest: ${grouped(reads + writes)} I/Os, ${bad} wrong`
  }
  const end = { came: false }
  const finished = stream.finished.finally(() => (end.came = true))
  finished.catch(() => undefined)
  try {
    while (!end.came) {
      const offset = (await stream.info())?.offset
      if (offset !== undefined) bar.update(offset, await note())
      await Promise.race([finished, delay(200)])
    }
    await finished
    bar.update(stage.size, await note())
  } finally {
    bar.stop()
  }
  const ms = performance.now() - began
  screen.line('the whole disk is here', seconds(ms))
  await showNoBacking(dom, path)
  return ms
}

async function showNoBacking(dom: Domain, path: string): Promise<void> {
  const { stdout } = await run('qemu-img', ['info', '-U', '--output=json', path])
  const backing = (JSON.parse(stdout) as { 'backing-filename'?: string })['backing-filename']
  const [live, kept] = [await dom.getXMLDesc(), await dom.getXMLDesc(VIR_DOMAIN_XML_INACTIVE)]
  if (backing !== undefined || !live.includes('<backingStore/>') || kept.includes('<backingStore type'))
    throw new Error('the base is still linked')
  screen.line('the link to the base is gone', 'from image and XML')
}

// --- 4. without the base -----------------------------------------------------------------------------------------

async function goOnWithoutBase(stage: Stage, { servers }: FarAway, { dom, guest, path }: Running): Promise<void> {
  screen.chapter('The other machine goes away')
  await screen.step('the NBD server and the link are stopped', async () => {
    for (const server of servers) await server.stop()
  })
  const before = await guest.stat()
  const { value: verified } = await screen.step(
    'the guest works on, and reads and checks its whole disk meanwhile',
    () => guest.verify('vda', { timeout: 300_000 }),
  )
  const after = await guest.stop()
  screen.say(`${grouped(verified.blocks)} blocks, ${grouped(verified.written)} of them its own, ${verified.bad} wrong,
    ${verified.err} unreadable; ${grouped(after.reads + after.writes - before.reads - before.writes)} other requests
    meanwhile, ${after.bad} wrong.`)
  if (verified.bad + verified.err + after.bad + after.errors > 0) throw new Error('the guest has seen wrong blocks')
  await screen.step('the guest is asked to shut down, and does', async () => {
    await dom.shutdown()
    while (await dom.isActive()) await delay(20, undefined, { signal: stage.signal })
  })
  await screen.step('qemu-img finds its image whole', () => run('qemu-img', ['check', '-q', path]))
}

// --- 5. the same by copying first ----------------------------------------------------------------------------------

async function copyFirst(stage: Stage, { servers, uri }: FarAway): Promise<number> {
  screen.chapter('For comparison: copy first, then start')
  for (const server of servers.toReversed()) await server.start()
  const target = join(stage.folder, 'copy.qcow2')
  const args = ['convert', '-W', '-m', '8', '-f', 'raw', '-O', 'qcow2', uri, target]
  const { ms } = await screen.step('qemu-img convert copies the image over the same link', () =>
    run('qemu-img', args, { timeout: 600_000, signal: stage.signal }),
  )
  return ms
}

function sumUp(startMs: number, streamMs: number, copyMs: number): void {
  screen.title('From nothing to a running guest')
  screen.compare([
    { name: 'virstream', parts: [{ ms: startMs, letter: '#' }] },
    {
      name: 'copy first',
      parts: [
        { ms: copyMs, letter: '=' },
        { ms: startMs, letter: '#' },
      ],
    },
  ])
  const times = ((copyMs + startMs) / startMs).toFixed(1)
  screen.say(`# is starting, = is copying. The guest was there ${times} times as soon, and its disk was complete
    ${seconds(startMs + streamMs)} after the first step, with the guest at work all the time.`)
}

// --- the frame -------------------------------------------------------------------------------------------------------

async function story(stage: Stage): Promise<void> {
  const far = await farAway(stage)
  const running = await startAtOnce(stage, far)
  const streamMs = await streamWhileItWorks(stage, running)
  await goOnWithoutBase(stage, far, running)
  const copyMs = await copyFirst(stage, far)
  sumUp(running.startMs, streamMs, copyMs)
}

function positive(text: string, name: string): number {
  const value = Number(text)
  if (!Number.isInteger(value) || value <= 0) throw new Error(`--${name} takes a whole number, not '${text}'`)
  return value
}

function readOptions(): Pick<Stage, 'size' | 'link'> {
  const { values } = parseArgs({
    options: { size: { type: 'string', default: '1024' }, link: { type: 'string', default: '500' } },
  })
  return { size: positive(values.size, 'size') * MiB, link: positive(values.link, 'link') }
}

function checkPrograms(): void {
  const missing = ['qemu-system-x86_64', 'qemu-img', 'qemu-nbd', 'nbdkit'].filter((name) => !findProgram(name))
  if (missing.length > 0) throw new Error(`not found: ${missing.join(', ')}; 'npm run setup' installs them on Debian`)
}

await runProgram('demo', async (t, signal) => {
  const began = performance.now()
  const options = readOptions()
  checkPrograms()
  signal.addEventListener('abort', () => screen.fallSilent())
  screen.title('virstream: a guest starts at once, its disk follows')
  await story({ ...options, t, signal, folder: await temporaryFolder(t) })
  screen.say(`The whole demo took ${seconds(performance.now() - began)}; all that it made is removed now.`)
})
