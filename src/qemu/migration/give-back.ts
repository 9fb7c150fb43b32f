/** What the destination of a migration does when its guest is wanted back before all of its disks are here. */
import * as c from '../../constants.gen.js'
import { failFrom } from '../../error.js'
import type { Incoming } from './incoming.js'
import { removeMade, undefineMade } from './arrive.js'
import { MigrationCommands } from '../monitor/migration-commands.js'
import { openMemory } from '../../migration/memory-way.js'
import { SERVICE } from '../../migration/link.js'
import { seeThrough, sendMemory } from './memory.js'
import { beginMirror, endMirrors, jobsOf, mirrorsReady } from './mirror.js'
import { disksSocket } from './record.js'
import { beginStreams } from './target-disks.js'
import { RETURN_CAPABILITIES } from './flags.js'
import { MigrationWatch } from './watch.js'
import { keepWriteBack } from './write-back.js'
import { backName } from '../blocks/nbd-exports.js'
import { terminate } from '../monitor/process.js'
import type { Qemu } from '../core/qemu.js'
import { saveStatus } from '../core/status.js'
import { stopJob } from '../streams/job-control.js'
import type { Live } from '../core/vm.js'

const fail = failFrom('VIR_FROM_QEMU')

/** 'return-begin': nothing is pulled any more. */
export async function prepareReturn(qemu: Qemu, incoming: Incoming): Promise<void> {
  const { vm, record, messages } = incoming
  incoming.isWantedBack = true
  await vm.jobs.run('migrate', async () => {
    // while this waited: who does not want it any more has said so already, and would not again
    if (incoming.messages !== messages || !incoming.isWantedBack)
      throw fail('VIR_ERR_OPERATION_ABORTED', `domain '${vm.name}' is not wanted back any more`)
    if (record.phase !== 'streaming' || vm.live === undefined || incoming.releasing)
      throw fail(
        'VIR_ERR_OPERATION_INVALID',
        `domain '${vm.name}' does not run there any more, or needs its source no more`,
      )
    for (const job of vm.live.blockJobs.all) await stopJob(qemu, vm, job.record.disk)
    incoming.enter('returning')
  })
}

/** 'return-mirror': what has been written and pulled here goes to the source's images. */
export async function mirrorBack(qemu: Qemu, incoming: Incoming): Promise<void> {
  const { live, record, migrated } = requireReturning(incoming)
  const socket = disksSocket(qemu.root, record.id)
  // the source serves again: a mirror that begins keeps all of QEMU waiting for the blocks that are being read
  incoming.relay?.retry()
  for (const [disk, job] of await jobsOf(live.monitor, migrated))
    // one that was there all the time has nothing left to copy
    if (job === undefined)
      await beginMirror(live.monitor, disk, { socket, sync: 'top', synchronous: true, name: backName(disk.target) })
  await mirrorsReady(live.monitor, migrated, () => {
    if (incoming.messages === undefined) throw fail('VIR_ERR_OPERATION_FAILED', 'the source cannot be reached')
  })
}

function requireReturning(incoming: Incoming): {
  live: Live
  record: Incoming['record']
  migrated: Incoming['migrated']
} {
  const { vm, record, migrated } = incoming
  const { live } = vm
  if (record.phase !== 'returning' || live === undefined)
    throw fail('VIR_ERR_OPERATION_INVALID', `domain '${vm.name}' is not on its way back`)
  return { live, record, migrated }
}

/** 'return-memory': the guest goes. It stands still here from then on, until the source says what became of it. */
export async function sendBack(qemu: Qemu, incoming: Incoming): Promise<void> {
  const { live, record, migrated } = requireReturning(incoming)
  const { vm, messages } = incoming
  const commands = new MigrationCommands(live.monitor)
  const watch = new MigrationWatch(live)
  try {
    await commands.setCapabilities({ ...RETURN_CAPABILITIES, 'pause-before-switchover': true })
    await commands.setUnlimited()
    const { id, key } = record
    const tunnel = incoming.relay?.tunnel
    if (tunnel === undefined) throw fail('VIR_ERR_OPERATION_FAILED', 'the source cannot be reached')
    const way = await openMemory(qemu.transports, record.params.transport, (says) =>
      tunnel.open(SERVICE.memory, { ...says, id, key }),
    )
    live.pauseReason = c.VIR_DOMAIN_PAUSED_MIGRATION
    await sendMemory(live, commands, way)
    const seen = await seeThrough(commands, watch, async () => {
      await endMirrors(live.monitor, migrated)
      await messages?.request('return-closing', {}, { timeout: 10_000 })
    })
    if (seen !== 'completed')
      throw fail('VIR_ERR_OPERATION_FAILED', (await commands.query())['error-desc'] ?? `QEMU says '${seen ?? ''}'`)
    vm.state = { state: c.VIR_DOMAIN_PAUSED, reason: c.VIR_DOMAIN_PAUSED_MIGRATION }
    saveStatus(vm, live)
  } finally {
    delete live.pauseReason
    watch.close()
  }
}

/** 'return-failed': it stays here after all. */
export async function keepAfterAll(qemu: Qemu, incoming: Incoming): Promise<void> {
  const { vm, record } = incoming
  incoming.isWantedBack = false
  if (record.phase !== 'returning') return
  await vm.jobs.run('migrate', async () => {
    const { live } = vm
    if (live !== undefined) {
      const commands = new MigrationCommands(live.monitor)
      await commands.cancel()
      await keepWriteBack(incoming, live)
      const wasRunning = vm.state.state === c.VIR_DOMAIN_RUNNING || vm.state.reason === c.VIR_DOMAIN_PAUSED_MIGRATION
      if (wasRunning && !(await live.monitor.queryStatus()).running) await live.monitor.cont()
    }
    incoming.enter('streaming')
  })
  await beginStreams(qemu, incoming)
}

/** 'return-done': it runs at the source again, nothing of it remains here. */
export async function giveUp(qemu: Qemu, incoming: Incoming): Promise<void> {
  const { vm, record } = incoming
  if (record.phase !== 'returning') return
  await vm.jobs.run('migrate', async () => {
    const { live } = vm
    if (live !== undefined) {
      live.exitCause = { reason: c.VIR_DOMAIN_SHUTOFF_MIGRATED, detail: c.VIR_DOMAIN_EVENT_STOPPED_MIGRATED }
      await terminate(live.process, live.ended, false)
    }
    undefineMade(qemu, incoming)
    vm.remains = undefined
    removeMade(record)
  })
  await incoming.forget()
  qemu.forgetIfNothing(vm)
}
