/** One run: images, a server, a definition; a process of ours that leads a stream's life; the kill. */
import { spawn, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { Connect } from '../../src/index.js'
import { run } from '../../src/util/run.js'
import { diskXml, guestXml, plainXml } from '../support/domain.js'
import { overlay, patternImage, type Cleanup, type PatternImage } from '../support/images.js'
import { startQemuNbd, type NbdServer } from '../support/nbd-server.js'
import { LinuxGuest } from './linux.js'
import { holders, killNoted, NAME, note, notes, type Place } from './place.js'
import type { Plan } from './plan.js'
import type { NamedStep, Task } from './worker.js'

/** ms that a life may take, with a Linux guest that boots in it */
const LIFETIME = 90_000
/** ms that the base is away */
const OUTAGE = 800

export interface Scene {
  plan: Plan
  place: Place
  base: PatternImage
  /** hold the local images of the chain, the disk's own first */
  images: string[]
  server: NbdServer | undefined
  guest: LinuxGuest | undefined
}

/** Everything that a life needs, in a folder of its own. */
export async function prepare(t: Cleanup, plan: Plan): Promise<Scene> {
  const folder = await mkdtemp(join(process.env['VIRSTREAM_TEST_DIR'] ?? tmpdir(), 'virstream-test-'))
  t.after(() => rm(folder, { recursive: true, force: true }))
  await chmod(folder, 0o755)
  const base = await patternImage(folder, plan.size, plan.run + 1)
  const server =
    plan.base === 'nbd'
      ? await startQemuNbd(t, { image: base.path, format: 'raw', socket: baseSocket(folder) })
      : undefined
  if (server !== undefined) await openToAll(folder)
  const below = server?.uri ?? base.path
  const partial = plan.life === 'partial' ? [await overlay(folder, below, { name: 'middle.qcow2' })] : []
  const [backing = below] = partial
  const image = await overlay(folder, backing, partial.length > 0 ? { backingFormat: 'qcow2' } : {})
  const local = server === undefined ? [base.path] : []
  const images = [image, ...partial, ...local]
  for (const path of images) await chmod(path, 0o600)
  const uri = `qemu:///embed?root=${join(folder, 'root')}`
  const place = { folder, uri, image, backing, partialBase: below, serial: join(folder, `${NAME}.serial`) }
  const scene = { plan, place, base, images, server, guest: undefined }
  await define(scene)
  return scene
}

const baseSocket = (folder: string): string => join(folder, 'base.sock')

/** Whoever QEMU is may connect to the base. */
const openToAll = (folder: string): Promise<void> => chmod(baseSocket(folder), 0o666)

async function define({ plan, place, server, base }: Scene): Promise<void> {
  const { folder, image, uri } = place
  const settings = {
    none: {},
    locks: { lockManager: 'ofd' },
    labels: { lockManager: 'ofd', security: ['dac'], user: 'nobody' },
  }[plan.access]
  await mkdir(join(folder, 'root/etc'), { recursive: true })
  await writeFile(join(folder, 'root/etc/qemu.json'), JSON.stringify(settings))
  const last =
    server === undefined
      ? `<backingStore type='file'><format type='raw'/><source file='${base.path}'/><backingStore/></backingStore>`
      : `<backingStore type='network'><format type='raw'/><source protocol='nbd'><host transport='unix' socket='${baseSocket(folder)}'/></source><backingStore/></backingStore>`
  const chain =
    plan.life === 'partial'
      ? `<backingStore type='file'><format type='qcow2'/><source file='${join(folder, 'middle.qcow2')}'/>${last}</backingStore>`
      : last
  const devices = diskXml('vda', image, plan.named ? { extra: chain } : {})
  const request = `<metadata><v:stream xmlns:v='urn:virstream:stream:1' disk='vda' bandwidth='${plan.bandwidth}'/></metadata>`
  const options = { name: NAME, devices, ...(plan.life === 'boot' && { extra: request }) }
  await using conn = await Connect.open(uri)
  await conn.domainDefineXML(plan.guest === 'linux' ? await guestXml(folder, options) : plainXml(options))
}

/** How a life went: somebody was killed, or it came to its end before anybody was. */
export interface Outcome {
  killed: boolean
  /** at which step, if at one */
  where: string
  steps: number
  /** it did not end by itself */
  hung: boolean
}

/** Leads the life of the plan; `at`: the kill is at that step instead of the plan's moment. */
export async function live(scene: Scene, at?: NamedStep): Promise<Outcome> {
  const { plan, place, server } = scene
  const task: Task = { plan, place, ...(server?.pid !== undefined && { server: server.pid }), ...(at && { at }) }
  const script = fileURLToPath(new URL('worker.js', import.meta.url))
  const child = spawn(process.execPath, [script, JSON.stringify(task)], { stdio: ['pipe', 'pipe', 'inherit'] })
  const outcome: Outcome = { killed: false, where: '', steps: 0, hung: false }
  const exited = once(child, 'exit')
  const over = new AbortController()
  const lines = createInterface({ input: child.stdout })
  const work: Promise<void>[] = []
  const errors: unknown[] = []
  const begin = (job: Promise<void>): void => void work.push(job.catch((error: unknown) => void errors.push(error)))
  lines.on('line', (line) => {
    const [word, ...rest] = line.split(' ')
    if (word === 'created') begin(bootGuest(scene, child))
    if (word === 'begun' && plan.moment.by === 'time' && at === undefined)
      begin(killLater(scene, child, plan.moment.ms, over.signal, outcome))
    if (word === 'killed') {
      outcome.killed = true
      outcome.where = rest.slice(1).join(' ')
      if (rest[0] === 'server') begin(bringBack(scene))
    }
    if (word === 'steps') outcome.steps = Number(rest[0])
  })
  const timer = setTimeout(() => {
    outcome.hung = true
    child.kill('SIGKILL')
  }, LIFETIME)
  const [status] = (await exited) as [number | null]
  clearTimeout(timer)
  over.abort()
  await Promise.all(work)
  if (status !== 0 && status !== null) throw new Error(`our process ended with status ${status}`)
  if (errors.length > 0) throw new AggregateError(errors, `what went on beside the life failed: ${String(errors[0])}`)
  return outcome
}

async function bootGuest(scene: Scene, child: ChildProcess): Promise<void> {
  if (scene.guest !== undefined) return
  scene.guest = await LinuxGuest.connect(scene.place, scene.base)
  child.stdin?.write('go\n')
}

async function killLater(
  scene: Scene,
  child: ChildProcess,
  ms: number,
  signal: AbortSignal,
  outcome: Outcome,
): Promise<void> {
  const { plan, place, server } = scene
  if (plan.guest === 'linux') while (scene.guest === undefined && !signal.aborted) await delay(20)
  await delay(ms, undefined, { signal }).catch(() => undefined)
  if (signal.aborted) return
  outcome.where = `${ms} ms`
  note(place, `killing after ${ms} ms`)
  const own = child.pid ?? 0
  const over = (): boolean => signal.aborted
  switch (plan.victim) {
    case 'us':
      outcome.killed = child.kill('SIGKILL')
      return
    case 'term':
      outcome.killed = child.kill('SIGTERM')
      return
    case 'both':
      outcome.killed = killNoted(place, [...holders(place), own])
      return
    case 'qemu':
      while (!outcome.killed && !over()) {
        outcome.killed = killNoted(place, holders(place))
        // it may have still to come
        await delay(5)
      }
      return
    case 'server':
      await server?.kill()
      outcome.killed = true
      await bringBack(scene)
  }
}

async function bringBack({ server, place }: Scene): Promise<void> {
  await delay(OUTAGE)
  await server?.start()
  await openToAll(place.folder)
}

export const noted = (scene: Scene, line: string): boolean => notes(scene.place).includes(line)

/** The first words that follow `word` in the notes. */
export const notedAfter = (scene: Scene, word: string): string[] =>
  notes(scene.place).flatMap((line) => (line.startsWith(`${word} `) ? [line.slice(word.length + 1)] : []))

/** What qemu-img finds wrong with an image that nobody has open; clusters that nobody refers to are no fault after a kill. */
export async function faults(image: string, leaks: boolean): Promise<string | undefined> {
  return run('qemu-img', ['check', '-q', '-f', 'qcow2', image]).then(
    () => undefined,
    (error: unknown) => {
      const { status, message } = error as { status?: number; message: string }
      return leaks && status === 3 ? undefined : message
    },
  )
}
