/** Memory that follows its guest (post-copy), seen from the destination. */
import { readFileSync } from 'node:fs'
import type { Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import * as c from '../../constants.gen.js'
import { failFrom, messageOf } from '../../error.js'
import { QmpError } from '../../qmp/error.js'
import { acceptMemory } from '../../migration/memory-way.js'
import { joinDuplex } from '../../tunnel/join.js'
import type { ChannelRequest } from '../../tunnel/requests.js'
import { emitLifecycle } from '../core/emit.js'
import { setState } from '../domain/events.js'
import type { Incoming } from './incoming.js'
import { cancel, followDisks } from './arrive.js'
import { MigrationCommands } from '../monitor/migration-commands.js'
import { storageOf } from './flags.js'
import { NOTICE, takeMemory } from './memory.js'
import { saveRecord } from './record.js'
import { MigrationWatch } from './watch.js'
import type { Qemu } from '../core/qemu.js'
import { catchUp } from '../domain/reconnect.js'
import { untilAnswers } from '../core/standing-still.js'
import { RecoveryMonitor } from './recovery-monitor.js'
import type { Live } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** ms between two looks at a QEMU that takes the state of the devices in */
const POLL = 20

/** A page that the guest waits for comes behind what is on its way already: no more than the link needs. */
const WINDOWS = { floor: 64 * 1024 }

const SYSCTL = '/proc/sys/vm/unprivileged_userfaultfd'

/** At prepare: VIR_ERR_OPERATION_UNSUPPORTED where QEMU may not have userfaultfd, or its memory is of a kind that can't. */
export async function preparePostcopy(qemu: Qemu, { record, memory }: Incoming, live: Live): Promise<void> {
  const { def, monitor } = live
  try {
    await new MigrationCommands(monitor).setCapabilities({ 'postcopy-ram': true })
  } catch (error) {
    const hint = userfaultfdIsOpen()
      ? ''
      : '; it needs userfaultfd: to run as root or with CAP_SYS_PTRACE, or sysctl vm.unprivileged_userfaultfd=1'
    const text = `post-copy of memory is not possible for domain '${def.name}' here, QEMU says: ${messageOf(error)}${hint}`
    throw fail('VIR_ERR_OPERATION_UNSUPPORTED', text, error)
  }
  memory.recovery = await RecoveryMonitor.open(live)
  record.recovery = memory.recovery.inode
  saveRecord(qemu.root, record)
}

function userfaultfdIsOpen(): boolean {
  try {
    return readFileSync(SYSCTL, 'utf8').trim() === '1'
  } catch {
    return false
  }
}

/**
 * QEMU has begun to take in what it must have before the guest may run; whoever asks for the guest before that would be
 * told that it is here when it is not.
 */
export async function stateIsHere({ monitor }: Live): Promise<void> {
  while ((await monitor.queryStatus()).status === 'inmigrate') await delay(POLL)
}

/** A channel with memory: the first one, or one that takes the place of one that broke. */
export async function takeChannel(
  qemu: Qemu,
  { record, vm, memory }: Incoming,
  request: ChannelRequest,
): Promise<void> {
  if (record.memoryFollows !== true) {
    const windows = (record.flags & c.VIR_MIGRATE_POSTCOPY) === 0 ? undefined : WINDOWS
    const live = record.phase === 'incoming' ? vm.live : undefined
    memory.channel = await takeMemory(request, live, qemu.transports, windows)
    return
  }
  let socket: Socket | undefined
  try {
    socket = await memory.recovery?.connect()
    if (socket === undefined) throw new Error('nobody waits for memory')
    const { channel, through } = await acceptMemory(qemu.transports, request, WINDOWS)
    memory.channel = channel
    joinDuplex(channel, socket, through).catch(() => undefined)
  } catch (error) {
    // QEMU would wait for memory on it
    socket?.destroy()
    request.refuse(messageOf(error))
  }
}

/**
 * 'memory-recover': the source wants to go on. 'waits' when QEMU does, too. It is asked nothing but that, since it stands
 * still where it misses a page.
 */
export async function prepareRecovery({ record, vm, memory }: Incoming): Promise<{ memory: string }> {
  memory.channel?.destroy()
  const end = performance.now() + NOTICE
  for (;;) {
    if (record.memoryFollows !== true) return { memory: 'complete' }
    if (vm.live === undefined) return { memory: 'lost' }
    try {
      if (memory.recovery === undefined) throw new Error('its monitor for that is lost')
      await memory.recovery.listen()
      return { memory: 'waits' }
    } catch (error) {
      if (error instanceof QmpError && performance.now() < end) {
        await delay(POLL)
        continue
      }
      const text = `QEMU of domain '${vm.name}' cannot take the rest of its memory in now: ${messageOf(error)}`
      throw fail('VIR_ERR_OPERATION_FAILED', text, error)
    }
  }
}

/** A later process: QEMU goes on taking memory in, or waits for who sends it. */
export function watchRest(qemu: Qemu, incoming: Incoming, live: Live): void {
  const { record, memory } = incoming
  const watch = new MigrationWatch(live)
  incoming.watch = watch
  if (record.recovery !== undefined) memory.recovery = RecoveryMonitor.reopen(live.runDir, live.pid, record.recovery)
  qemu.inBackground(`the memory of domain '${record.name}'`, async () => {
    if (!(await untilAnswers(live, () => watch.isClosed))) return
    await catchUp(qemu, incoming.vm, live)
    const { status = 'none' } = await new MigrationCommands(live.monitor).query()
    watch.now(status)
    await followRest(qemu, incoming, live)
  })
}

/** From the moment in which the guest may run here until all of its memory is here. */
export async function followRest(qemu: Qemu, incoming: Incoming, live: Live): Promise<void> {
  const { vm, watch } = incoming
  const show = (reason: number, detail: number): void => {
    if (vm.state.state !== c.VIR_DOMAIN_RUNNING || vm.live !== live || vm.state.reason === reason) return
    setState(qemu, vm, live, c.VIR_DOMAIN_RUNNING, reason)
    emitLifecycle(qemu, vm, c.VIR_DOMAIN_EVENT_RESUMED, detail)
  }
  for (;;) {
    const seen = await watch?.until(['postcopy-active', 'postcopy-paused'])
    if (seen === 'postcopy-active') show(c.VIR_DOMAIN_RUNNING_POSTCOPY, c.VIR_DOMAIN_EVENT_RESUMED_POSTCOPY)
    else if (seen === 'postcopy-paused')
      show(c.VIR_DOMAIN_RUNNING_POSTCOPY_FAILED, c.VIR_DOMAIN_EVENT_RESUMED_POSTCOPY_FAILED)
    else if (seen === 'completed') {
      show(c.VIR_DOMAIN_RUNNING_MIGRATED, c.VIR_DOMAIN_EVENT_RESUMED_MIGRATED)
      await memoryIsHere(qemu, incoming)
      return
    } else {
      if (seen !== 'closed') await memoryIsLost(qemu, incoming)
      return
    }
  }
}

async function memoryIsHere(qemu: Qemu, incoming: Incoming): Promise<void> {
  const { record, watch, memory, vm } = incoming
  watch?.close()
  record.memoryFollows = false
  incoming.enter(record.phase)
  if (vm.live !== undefined)
    await memory.recovery?.forget(vm.live.monitor).catch((error: unknown) => qemu.warn(messageOf(error)))
  if (record.phase === 'streaming') await followDisks(qemu, incoming)
}

/** Its QEMU is gone, and the guest with it: what remains is to be told, and disks that may still follow. */
async function memoryIsLost(qemu: Qemu, incoming: Incoming): Promise<void> {
  const { record, messages, vm } = incoming
  if (record.phase !== 'streaming') {
    await cancel(qemu, incoming, `QEMU of domain '${vm.name}' ended before the guest ran`)
    return
  }
  record.memoryFollows = false
  incoming.enter('streaming')
  incoming.stats.fail(fail('VIR_ERR_OPERATION_FAILED', `domain '${vm.name}' ended before all of its memory was here`))
  await messages?.request('memory-lost', {}, { timeout: 10_000 }).catch((error: unknown) => qemu.warn(messageOf(error)))
  if (storageOf(record.flags) !== 'stream') await incoming.forget()
}
