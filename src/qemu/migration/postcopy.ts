/**
 * Memory that follows its guest (post-copy), seen from the source: the guest has moved, and what it has not got yet is sent
 * as it asks for it, until all has gone over. A connection that breaks meanwhile pauses both QEMUs, and nothing is lost: the
 * rest goes over the next one.
 */
import type { Duplex } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import * as c from '../../constants.gen.js'
import { failFrom, messageOf } from '../../error.js'
import { emitLifecycle } from '../core/emit.js'
import { setState } from '../domain/events.js'
import { MigrationCommands, type MigrationStatus } from '../monitor/migration-commands.js'
import { storageOf } from './flags.js'
import { lend, NOTICE } from './memory.js'
import { letGo } from './release.js'
import { serveAside } from './serve.js'
import type { MigrationWatch, Seen } from './watch.js'
import type { Outgoing } from './outgoing.js'
import type { Qemu } from '../core/qemu.js'
import type { Live, Vm } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms between two looks at a QEMU that has still to notice that its connection is gone (see `NOTICE`) */
const POLL = 50
/** ms until what could not be gone on with is tried again */
const RETRY = 1_000

const FOLLOWING: readonly MigrationStatus[] = ['postcopy-active', 'postcopy-paused', 'postcopy-recover']

/** Whether the guest has gone, by what QEMU says of its migration: all of its memory has, or it is in the post-copy phase. */
export function guestHasGone({ status = 'none' }: { status?: MigrationStatus }): boolean {
  return status === 'completed' || FOLLOWING.includes(status)
}

/** virDomainMigrateStartPostCopy. Not a job: the migration holds the domain. */
export async function startPostcopy(qemu: Qemu, vm: Vm): Promise<void> {
  const outgoing = qemu.outgoingOf(vm)
  if (outgoing?.record.memoryFollows === true) return
  if (outgoing?.record.phase !== 'memory')
    throw fail('VIR_ERR_OPERATION_INVALID', 'post-copy can only be started while outgoing migration is in progress')
  if ((outgoing.record.flags & c.VIR_MIGRATE_POSTCOPY) === 0)
    throw fail(
      'VIR_ERR_OPERATION_INVALID',
      'switching to post-copy requires migration to be started with VIR_MIGRATE_POSTCOPY flag',
    )
  outgoing.postcopyWanted = true
  // disks may still be copied: then it is told as soon as memory goes
  await switchToPostcopy(outgoing)
}

/** VIR_DOMAIN_ABORT_JOB_POSTCOPY: both sides stand still at what is missing, until `resumePostcopy`. */
export function interruptPostcopy({ memory, record }: Outgoing): void {
  if (memory === undefined || record.memoryFollows !== true)
    throw fail('VIR_ERR_OPERATION_INVALID', 'current job is not outgoing migration in post-copy mode')
  memory.interrupt()
}

/** VIR_MIGRATE_POSTCOPY_RESUME: goes on at once with what was interrupted. Whoever wants to can wait for its end again. */
export function resumePostcopy(qemu: Qemu, vm: Vm): FollowingMemory {
  const { memory, record } = qemu.outgoingOf(vm) ?? {}
  if (memory === undefined || record?.memoryFollows !== true)
    throw fail('VIR_ERR_OPERATION_INVALID', `memory of domain '${vm.name}' does not follow it anywhere`)
  memory.goOn()
  return memory
}

/** QEMU is told, if its memory goes over and post-copy is wanted. */
export async function switchToPostcopy({ vm, commands, postcopyWanted }: Outgoing): Promise<void> {
  if (!postcopyWanted || commands === undefined) return
  if (vm.live?.pauseReason === c.VIR_DOMAIN_PAUSED_MIGRATION) vm.live.pauseReason = c.VIR_DOMAIN_PAUSED_POSTCOPY
  await commands.startPostcopy()
}

/** VIR_ERR_OPERATION_INVALID where calling a migration off would cost the guest. */
export function refusePostcopyAbort({ record, switching, postcopyWanted }: Outgoing): void {
  if (record.memoryFollows === true || (switching && postcopyWanted))
    throw fail('VIR_ERR_OPERATION_INVALID', 'cannot abort migration in post-copy mode')
}

export class FollowingMemory {
  /** All has gone over, or (rejected) never will as far as this process can tell. */
  readonly over: Promise<void>
  /** that it goes over now */
  channel: Duplex | undefined
  readonly #qemu: Qemu
  readonly #outgoing: Outgoing
  readonly #live: Live
  readonly #watch: MigrationWatch
  readonly #commands: MigrationCommands
  #isOver = false
  #isPaused = false
  #recovering = false
  #interrupted = false
  #resolve!: () => void
  #reject!: (error: Error) => void

  constructor(qemu: Qemu, outgoing: Outgoing, live: Live, watch: MigrationWatch) {
    this.#qemu = qemu
    this.#outgoing = outgoing
    this.#live = live
    this.#watch = watch
    this.#commands = new MigrationCommands(live.monitor)
    this.over = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
    this.over.catch(() => undefined)
    qemu.inBackground(`the memory of domain '${outgoing.record.name}'`, () => this.#follow())
  }

  async #follow(): Promise<void> {
    for (;;) {
      const seen = await this.#watch.until(['postcopy-active', 'postcopy-paused'])
      this.#isPaused = seen === 'postcopy-paused'
      if (seen === 'postcopy-paused') this.#pause()
      else if (seen === 'postcopy-active') this.#show()
      else return this.#end(seen)
    }
  }

  async #end(seen: Seen | undefined): Promise<void> {
    const { record } = this.#outgoing
    if (seen === 'completed') await this.#complete()
    // the destination was quicker to say that it has all, and that ended our QEMU
    else if (record.phase === 'released') await this.#outgoing.underJob(() => Promise.resolve()).then(this.#resolve)
    else if (seen === 'closed')
      this.#giveUp(`memory of domain '${record.name}' has still to go over; that goes on when its root is opened again`)
    else this.lost(`QEMU says '${seen ?? ''}'`)
  }

  /** The two cannot reach each other. */
  #pause(): void {
    this.#show()
    const { record } = this.#outgoing
    if (record.params.releaseRam === true)
      this.lost('the connection broke, and what had gone over was given back at once (releaseRam)')
    else this.recover()
  }

  #show(): void {
    const { vm, record } = this.#outgoing
    const [reason, detail] = this.#isPaused
      ? [c.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED, c.VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY_FAILED]
      : [c.VIR_DOMAIN_PAUSED_POSTCOPY, c.VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY]
    if (record.phase !== 'serving' || vm.live !== this.#live || vm.state.reason === reason) return
    setState(this.#qemu, vm, this.#live, c.VIR_DOMAIN_PAUSED, reason)
    emitLifecycle(this.#qemu, vm, c.VIR_DOMAIN_EVENT_SUSPENDED, detail)
  }

  async #complete(): Promise<void> {
    if (this.#isOver) return
    this.#isOver = true
    const outgoing = this.#outgoing
    const { record, stats } = outgoing
    record.memoryFollows = false
    outgoing.enter(record.phase)
    await stats.memoryDone(this.#commands).catch((error: unknown) => this.#qemu.warn(messageOf(error)))
    this.#watch.close()
    this.#isPaused = false
    this.#show()
    // with disks that follow the destination says when it needs the source no more
    const follows = storageOf(record.flags) === 'stream'
    if (follows && record.params.serve === 'external') await outgoing.underJob(() => serveAside(this.#qemu, outgoing))
    else if (!follows && record.phase !== 'switched') await outgoing.underJob(() => this.#letGo())
    this.#resolve()
  }

  async #letGo(): Promise<void> {
    // the destination may have said so already: then that was done while this waited for the job
    if (this.#outgoing.record.phase === 'serving') await letGo(this.#qemu, this.#outgoing)
  }

  /** The guest cannot have the rest of its memory any more. */
  lost(why: string): void {
    if (this.#isOver) return
    const { record, stats, vm } = this.#outgoing
    const text = `domain '${record.name}' is lost, '${record.peer}' does not have all of its memory: ${why}`
    stats.fail(fail('VIR_ERR_OPERATION_FAILED', text))
    this.#qemu.finishedJobs.set(vm.uuid, stats.now)
    this.#isPaused = true
    this.#show()
    this.#giveUp(text)
  }

  #giveUp(text: string): void {
    this.#isOver = true
    this.#watch.close()
    this.#reject(fail('VIR_ERR_OPERATION_FAILED', text))
  }

  /** The guest runs at the destination. */
  serve(): void {
    this.#show()
    this.recover()
  }

  interrupt(): void {
    if (this.#outgoing.record.params.releaseRam === true)
      throw fail('VIR_ERR_OPERATION_INVALID', 'memory that is given back as it goes cannot be interrupted (releaseRam)')
    this.#interrupted = true
    this.channel?.destroy()
  }

  goOn(): void {
    this.#interrupted = false
    this.recover()
  }

  /** The connection is there (again), and the guest runs at its other end. */
  recover(): void {
    const { record, link } = this.#outgoing
    if (this.#mayNot() || this.#recovering || record.phase !== 'serving' || link?.isUp !== true) return
    this.#recovering = true
    this.#qemu.inBackground(`the memory of domain '${record.name}'`, async () => {
      try {
        await this.#recover()
      } catch (error) {
        this.#qemu.warn(`memory of domain '${record.name}' cannot go on yet: ${messageOf(error)}`)
        setTimeout(() => this.recover(), RETRY).unref()
      } finally {
        this.#recovering = false
      }
    })
  }

  /** Interrupted meanwhile, or given up. */
  #mayNot(): boolean {
    return this.#isOver || this.#interrupted
  }

  async #recover(): Promise<void> {
    const { link, record, stats } = this.#outgoing
    if ((await this.#commands.query()).status === 'postcopy-active' && this.channel?.destroyed === false) return
    // what is still under way in it would go past what is asked next
    this.channel?.destroy()
    const answered = (await link?.request('memory-recover', {}, 2 * NOTICE)) as { memory?: unknown } | undefined
    if (answered?.memory === 'complete') return this.#complete()
    if (answered?.memory === 'lost') {
      this.lost('its QEMU there has ended')
      return
    }
    // the other side takes it in from now on, ours must let it out
    if (!(await untilPaused(this.#commands))) throw fail('VIR_ERR_OPERATION_FAILED', 'QEMU does not notice the loss')
    if (this.#mayNot()) return
    const way = await link?.openMemory(this.#qemu.transports, record.params.transport)
    if (way === undefined) return
    const { channel } = way
    if (this.#mayNot()) {
      channel.destroy()
      return
    }
    this.channel = channel
    stats.goBy(way)
    await lend(this.#live, way, (fd) => this.#commands.resume(fd)).catch((error: unknown) => {
      channel.destroy()
      throw error
    })
  }

  /**
   * Before the guest goes on here after all: QEMU sends nothing any more. False: it does not let the guest go on, as up to 9.2
   * when the connection broke after it had begun to send the state of the devices.
   */
  async stop(): Promise<boolean> {
    this.channel?.destroy()
    await untilPaused(this.#commands)
    const { record, vm } = this.#outgoing
    if ((await this.#live.monitor.queryStatus()).status !== 'finish-migrate') {
      this.#giveUp(`domain '${record.name}' goes on here`)
      return true
    }
    setState(this.#qemu, vm, this.#live, c.VIR_DOMAIN_PAUSED, c.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
    emitLifecycle(this.#qemu, vm, c.VIR_DOMAIN_EVENT_SUSPENDED, c.VIR_DOMAIN_EVENT_SUSPENDED_POSTCOPY_FAILED)
    this.lost('the connection broke in the moment of the switch, and this QEMU does not let it go on here')
    return false
  }

  close(): void {
    this.channel?.destroy()
    this.#watch.close()
  }
}

/** Until QEMU waits for another connection: true; false when it ended otherwise, or does not notice. */
async function untilPaused(commands: MigrationCommands): Promise<boolean> {
  const end = performance.now() + NOTICE
  while (performance.now() < end) {
    const { status } = await commands.query()
    if (status === 'postcopy-paused') return true
    if (status !== 'postcopy-active' && status !== 'postcopy-recover') return false
    await delay(POLL)
  }
  return false
}
