/**
 * Begins streams at random moments of the boot of guests whose disks have I/O threads: `node dist/test/campaign/boots.js
 * [--engine job|pull] [--base local|nbd] [--seed N] [--from K] [--runs N]`. QEMU moves such a disk between its threads when
 * firmware and guest take hold of the device and when they reset it.
 */
import assert from 'node:assert/strict'
import { randomInt } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import { runProgram, Stack } from '../../scripts/program.js'
import { messageOf } from '../../src/error.js'
import { VIR_DOMAIN_RUNNING, type Domain } from '../../src/index.js'
import { agentOf, diskXml, guestXml, testRoot, until, type TestRoot } from '../support/domain.js'
import { backingOf, overlay, patternImage, type Cleanup, type PatternImage } from '../support/images.js'
import { startQemuNbd } from '../support/nbd-server.js'
import { random } from './plan.js'

const MiB = 1024 * 1024
/** ms after the start by which the guest is up, on a machine with other work too */
const BOOT = 6_000
const CONTROLLER = `<controller type='scsi' model='virtio-scsi'><driver iothread='2'/></controller>`
const DISKS = [
  { target: 'vda', bus: 'virtio', driver: "iothread='1'" },
  { target: 'vdb', bus: 'virtio', driver: "iothread='1'" },
  { target: 'sda', bus: 'scsi', driver: '' },
] as const

/** ms after the start; 'boot': by the definition's metadata */
type Moment = number | 'boot'

export interface Boot {
  engine: 'job' | 'pull'
  base: 'local' | 'nbd'
  /** one for each disk */
  moments: readonly Moment[]
}

/** Number `run` of the boots of `seed`. */
export function makeBoot(seed: number, run: number, engine: Boot['engine'], base: Boot['base']): Boot {
  const next = random(Math.imul(seed, 0x9e3779b1) ^ Math.imul(run + 1, 0x85ebca6b))
  const moment = (): Moment => (next() < 0.15 ? 'boot' : Math.floor(next() * next() * BOOT))
  return { engine, base, moments: DISKS.map(moment) }
}

interface Disk {
  target: string
  base: PatternImage
  path: string
}

async function disksOf(t: Cleanup, { folder }: TestRoot, { base: kind }: Boot): Promise<Disk[]> {
  const disks: Disk[] = []
  for (const [i, { target }] of DISKS.entries()) {
    const base = await patternImage(folder, (8 + 4 * i) * MiB, 5 + i)
    const server =
      kind === 'nbd' &&
      (await startQemuNbd(t, { image: base.path, format: 'raw', socket: join(folder, `${target}.sock`) }))
    const path = await overlay(folder, server === false ? base.path : server.uri, { name: `${target}.qcow2` })
    disks.push({ target, base, path })
  }
  return disks
}

async function streamAt(dom: Domain, { target, path }: Disk, moment: Moment, engine: Boot['engine']): Promise<void> {
  if (moment !== 'boot') {
    await delay(moment)
    await (
      await dom.stream(target, { engine })
    ).finished
  }
  await until('it has let go of its base', async () => (await backingOf(path)) === undefined)
  await until('it is settled', async () => !(await dom.streamDiskInfo()).some(({ disk }) => disk === target))
}

/** One boot. Throws when QEMU ends or a block is wrong. */
export async function bootOnce(t: Cleanup, boot: Boot): Promise<void> {
  const root = await testRoot(t)
  const disks = await disksOf(t, root, boot)
  const requests = boot.moments.flatMap((moment, i) =>
    moment === 'boot' ? [`<v:stream xmlns:v='urn:virstream:stream:1' disk='${DISKS[i]?.target ?? ''}'/>`] : [],
  )
  const devices = disks.map(({ target, path }, i) => diskXml(target, path, { ...DISKS[i] })).join('') + CONTROLLER
  const extra = `<iothreads>2</iothreads>${requests.length > 0 ? `<metadata>${requests.join('')}</metadata>` : ''}`
  const dom = await root.conn.domainDefineXML(await guestXml(root.folder, { devices, extra }))
  await dom.create()
  try {
    const [guest] = await Promise.all([
      agentOf(t, root.folder),
      ...disks.map((disk, i) => streamAt(dom, disk, boot.moments[i] ?? 0, boot.engine)),
    ])
    const names = new Map([...(await guest.disks())].map(([name, size]) => [size, name]))
    for (const { base } of disks) {
      const name = names.get(base.size) ?? ''
      await guest.base(name, base.seed, base.size)
      const { bad, err } = await guest.verify(name)
      assert.deepEqual({ bad, err }, { bad: 0, err: 0 })
    }
    assert.equal((await dom.getState()).state, VIR_DOMAIN_RUNNING)
  } catch (error) {
    const log = await readFile(join(root.folder, 'root/log/qemu/guest.log'), 'utf8').catch(() => '')
    throw new Error(`${messageOf(error)}; QEMU's last words: ${log.slice(-500)}`, { cause: error })
  }
  await dom.destroy()
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      engine: { type: 'string', multiple: true },
      base: { type: 'string', multiple: true },
      seed: { type: 'string' },
      from: { type: 'string', default: '0' },
      runs: { type: 'string', default: '40' },
    },
  })
  const seed = values.seed === undefined ? randomInt(1_000_000) : Number(values.seed)
  const engines = (values.engine ?? ['job', 'pull']) as Boot['engine'][]
  const bases = (values.base ?? ['local', 'nbd']) as Boot['base'][]
  let wrong = 0
  for (let run = Number(values.from); run < Number(values.from) + Number(values.runs); run++)
    for (const engine of engines) {
      const boot = makeBoot(seed, run, engine, bases[run % bases.length] ?? 'local')
      const stack = new Stack()
      const problem = await bootOnce(stack, boot).then(() => undefined, messageOf)
      await stack.undo(console.error)
      if (problem !== undefined) wrong++
      console.log(`${run} ${engine}, ${boot.base}, ${boot.moments.join(' ')}: ${problem ?? 'ok'}`)
    }
  console.log(`seed ${seed}, ${wrong} wrong`)
  if (wrong > 0) throw new Error(`${wrong} boots went wrong`)
}

if (process.argv[1]?.endsWith('boots.js') === true) await runProgram('boots', main)
