/**
 * A process of ours that leads one life of a stream, and is killed or kills at a step of its own:
 * `node worker.js TASK`, in JSON. It says 'created' when a Linux guest boots, and goes on when it is
 * told to; 'begun' when the stream has been asked for; 'killed …'; and at its end 'steps N'.
 */
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { messageOf } from '../../src/error.js'
import { lives, Stage } from './acts.js'
import { noteWrite } from './content.js'
import { holders, killNoted, note, type Place } from './place.js'
import { random, type Plan } from './plan.js'
import { countSteps } from './steps.js'

const say = (line: string): boolean => process.stdout.write(`${line}\n`)

/** A step of a sweep: its name and how often it has come. */
export interface NamedStep {
  name: string
  time: number
}

export interface Task {
  plan: Plan
  place: Place
  /** of the server that the base comes from */
  server?: number
  /** instead of the plan's moment */
  at?: NamedStep
}

class Killer {
  readonly #task: Task
  #steps = 0
  readonly #times = new Map<string, number>()
  #done = false
  /** a Linux guest is killed when it is up, or its boot would be for nothing */
  #armed: boolean

  constructor(task: Task) {
    this.#task = task
    this.#armed = task.plan.guest !== 'linux'
  }

  arm(): void {
    this.#armed = true
  }

  get steps(): number {
    return this.#steps
  }

  step(name: string): void {
    if (!this.#armed) return
    const times = (this.#times.get(name) ?? 0) + 1
    this.#times.set(name, times)
    this.#steps++
    note(this.#task.place, `step ${this.#steps} ${times} ${name}`)
    if (!this.#done && this.#isIt(name, times)) this.#kill(name)
  }

  #isIt(name: string, times: number): boolean {
    const { at, plan } = this.#task
    if (at !== undefined) return at.name === name && at.time === times
    // later where nobody was there to be killed
    return plan.moment.by === 'step' && plan.moment.step <= this.#steps
  }

  #kill(name: string): void {
    const { place, plan, server } = this.#task
    const { victim } = plan
    const pids = victim === 'server' ? [server ?? 0] : victim === 'qemu' || victim === 'both' ? holders(place) : []
    if (victim === 'qemu' && pids.length === 0) return
    this.#done = true
    note(place, `killing at ${this.#steps} ${name}`)
    killNoted(place, pids)
    say(`killed ${victim} ${name}`)
    if (victim === 'us' || victim === 'both') process.kill(process.pid, 'SIGKILL')
    if (victim === 'term') process.kill(process.pid, 'SIGTERM')
  }
}

const DEVICE = `/machine/peripheral/virtio-disk0/virtio-backend`
const BLOCK = 4096
const MOST = 16
const FLUSH_EVERY = 5

/** Writes through the guest's device as long as the domain runs: whole blocks of one byte, flushed now and then. */
async function write(stage: Stage, isOver: () => boolean): Promise<void> {
  const { plan, place } = stage
  const next = random(plan.seed + plan.run)
  const blocks = plan.size / BLOCK
  const tell = (command: string): Promise<string> =>
    stage.dom.qemuMonitorCommand(
      JSON.stringify({
        execute: 'human-monitor-command',
        arguments: { 'command-line': `qemu-io -d ${DEVICE} "${command}"` },
      }),
    )
  for (let serial = 0; !isOver(); serial++) {
    const count = 1 + Math.floor(next() * MOST)
    const first = Math.floor(next() * (blocks - count))
    const byte = 1 + (serial % 255)
    try {
      noteWrite(place, `w ${first} ${count} ${byte}`)
      await tell(`write -P ${byte} ${first * BLOCK} ${count * BLOCK}`)
      noteWrite(place, 'W')
      if (serial % FLUSH_EVERY === 0) {
        await tell('flush')
        noteWrite(place, 'F')
      }
    } catch {
      // not running, no longer or not yet again; what was asked may have been done
    }
    await delay(15)
  }
}

async function main(task: Task): Promise<void> {
  const { plan, place } = task
  const answers = createInterface(process.stdin)
  const ready = async (): Promise<void> => {
    if (plan.guest !== 'linux') return
    say('created')
    await once(answers, 'line')
    killer.arm()
  }
  const killer = new Killer(task)
  const stage = new Stage(plan, place, ready)
  await stage.open()
  process.once('SIGTERM', () => {
    note(place, 'SIGTERM')
    void stage.conn.close().then(
      () => process.exit(0),
      (error: unknown) => {
        note(place, `failed close: ${messageOf(error)}`)
        process.exit(1)
      },
    )
  })
  countSteps(place.folder, (name) => killer.step(name))
  let over = false
  const writing = plan.guest === 'writer' ? write(stage, () => over) : undefined
  try {
    say('begun')
    await lives[plan.life](stage)
    note(place, 'complete')
  } catch (error) {
    note(place, `failed ${messageOf(error)}`)
    await afterKill(stage)
  }
  over = true
  await writing
  await stage.conn.close()
  say(`steps ${killer.steps}`)
}

/** QEMU or the daemon is gone: the domain and its streams are too, for us as for the kernel. */
async function afterKill({ plan, place, dom }: Stage): Promise<void> {
  if (plan.victim !== 'qemu') return
  const end = performance.now() + 10_000
  for (;;) {
    const active = await dom.isActive()
    // asked in the very moment it fails, as it may
    const streams = await dom.streamDiskInfo().catch(() => undefined)
    if (holders(place).length > 0 || (!active && streams?.length === 0)) return
    if (performance.now() > end) {
      note(place, `stale active ${active}, streams ${JSON.stringify(streams)}`)
      return
    }
    await delay(20)
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main(JSON.parse(process.argv[2] ?? '') as Task)
  process.exit(0)
}
