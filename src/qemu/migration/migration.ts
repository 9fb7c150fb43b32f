/** The operations of migration, and what a process that opens a root does about those that it finds in it. */
import type { HypervisorOps } from '../../driver.js'
import { failFrom } from '../../error.js'
import { readCookie } from '../../migration/cookie.js'
import { routeIncoming } from './requests.js'
import { abort, begin, perform, refuseSecond } from './source.js'
import { prepare } from './target.js'
import type { Qemu } from '../core/qemu.js'
import * as c from '../../constants.gen.js'
import { confirm } from './leave.js'
import { cancel, finish } from './arrive.js'
import { abandon } from './abandon.js'
import { VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST } from '../../stream-flags.js'
import { checkMigrationFlags, isOffline } from './flags.js'
import { beginOffline, confirmOffline, finishOffline, prepareOffline } from './offline.js'
import { bringBack } from './return.js'
import { interruptPostcopy, refusePostcopyAbort, resumePostcopy, startPostcopy } from './postcopy.js'

const fail = failFrom('VIR_FROM_QEMU')

type MigrationOps = Pick<
  HypervisorOps,
  | 'domainMigrateBegin'
  | 'domainMigratePrepare'
  | 'domainMigratePerform'
  | 'domainMigrateFinish'
  | 'domainMigrateConfirm'
  | 'migrationChannel'
  | 'domainAbortJob'
  | 'domainMigrateStartPostCopy'
  | 'domainGetJobStats'
>

const NOTHING = {
  ...{ type: c.VIR_DOMAIN_JOB_NONE, operation: c.VIR_DOMAIN_JOB_OPERATION_UNKNOWN, timeElapsed: 0 },
  ...{ dataTotal: 0, dataProcessed: 0, dataRemaining: 0, memTotal: 0, memProcessed: 0, memRemaining: 0 },
  ...{ diskTotal: 0, diskProcessed: 0, diskRemaining: 0, disks: [] },
}

const resumes = (flags: number): boolean => (flags & c.VIR_MIGRATE_POSTCOPY_RESUME) !== 0

export function migrationOps(qemu: Qemu): MigrationOps {
  return {
    async domainMigrateBegin(ref, params, flags) {
      const vm = qemu.require(ref)
      if (!isOffline(flags)) vm.requireLive()
      if (resumes(flags)) {
        resumePostcopy(qemu, vm)
        return { xml: '', cookie: '' }
      }
      checkMigrationFlags(params, flags)
      refuseSecond(qemu, vm)
      return vm.jobs.run('migrate', async () =>
        isOffline(flags) ? beginOffline(qemu, vm, params) : begin(qemu, vm, params, flags),
      )
    },

    async domainMigratePrepare(params, flags, cookie, xml) {
      checkMigrationFlags(params, flags)
      return isOffline(flags)
        ? prepareOffline(qemu, params, { cookie, xml })
        : prepare(qemu, params, flags, { cookie, xml })
    },

    async domainMigratePerform(ref, _params, flags, cookie, uri, tunnel) {
      const vm = qemu.require(ref)
      if (isOffline(flags)) return { cookie }
      return vm.jobs.run('migrate', () => perform(qemu, vm, { cookie, uri, tunnel }))
    },

    async domainMigrateFinish(_params, flags, text, cancelled) {
      const cookie = await readCookie(text)
      if (isOffline(flags)) return cancelled ? undefined : finishOffline(qemu, cookie)
      const incoming = qemu.incoming.get(cookie.id)
      if (cancelled) {
        if (incoming !== undefined) await cancel(qemu, incoming, 'it was called off')
        return undefined
      }
      if (incoming === undefined || incoming.record.key !== cookie.key)
        throw fail('VIR_ERR_OPERATION_FAILED', 'there is no such migration here (any more)')
      return finish(qemu, incoming, cookie.locks)
    },

    async domainMigrateConfirm(ref, _params, flags, _cookie, cancelled) {
      // a transient domain that has moved, or whose QEMU died on the way, has gone
      if (qemu.find(ref.uuid) === undefined) return
      const vm = qemu.require(ref)
      if (isOffline(flags)) {
        if (!cancelled) await vm.jobs.run('migrate', () => confirmOffline(qemu, vm, flags))
        return
      }
      const outgoing = qemu.outgoingOf(vm)
      if (resumes(flags)) {
        await outgoing?.memory?.over
        return
      }
      await vm.jobs.run('migrate', () => confirm(qemu, vm, cancelled))
      // the guest has moved; virDomainMigrate answers when all of its memory has, too
      if (!cancelled) await outgoing?.memory?.over
    },

    migrationChannel: (request, tunnel) => routeIncoming(qemu, request, tunnel),

    async domainAbortJob(ref, flags) {
      const vm = qemu.require(ref)
      const outgoing = qemu.outgoingOf(vm)
      if (outgoing === undefined) vm.requireLive()
      if (outgoing === undefined) throw fail('VIR_ERR_OPERATION_INVALID', `no job is active on domain '${vm.name}'`)
      if ((flags & c.VIR_DOMAIN_ABORT_JOB_POSTCOPY) !== 0) {
        interruptPostcopy(outgoing)
        return
      }
      const isLost = (flags & VIR_DOMAIN_ABORT_JOB_DESTINATION_LOST) !== 0
      if (!isLost) refusePostcopyAbort(outgoing)
      if (['begun', 'memory'].includes(outgoing.record.phase)) await abort(outgoing)
      else if (isLost) await vm.jobs.run('migrate', () => abandon(qemu, outgoing), Infinity)
      else await vm.jobs.run('migrate', () => bringBack(qemu, outgoing))
    },

    domainMigrateStartPostCopy: async (ref) => startPostcopy(qemu, qemu.require(ref)),

    async domainGetJobStats(ref, flags) {
      const vm = qemu.require(ref)
      if ((flags & c.VIR_DOMAIN_JOB_STATS_COMPLETED) !== 0) {
        const finished = qemu.finishedJobs.get(vm.uuid)
        if ((flags & c.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED) === 0) qemu.finishedJobs.delete(vm.uuid)
        return finished ?? NOTHING
      }
      const [job] = [qemu.outgoingOf(vm), ...qemu.incomingsOf(vm)].filter((each) => each !== undefined)
      return (await job?.stats.look()) ?? NOTHING
    },
  }
}
