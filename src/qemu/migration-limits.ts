/** How fast memory may go and how long the guest may stand still: of migrations to come, and of one that is under way. */
import * as c from '../constants.gen.js'
import type { HypervisorOps } from '../driver.js'
import { failFrom } from '../error.js'
import { MigrationCommands } from './migration-commands.js'
import type { Qemu } from './qemu.js'

const fail = failFrom('VIR_FROM_QEMU')

const MIB = 1024 * 1024
/** MiB/s, libvirt's figure for no limit */
const NO_LIMIT = 8_796_093_022_207
/** bytes/s that QEMU takes for no limit; a JSON number keeps no more */
const QEMU_MOST = 2 ** 53 - 1
/** ms that QEMU takes at most */
const DOWNTIME_MOST = 2_000_000

type LimitOps = Pick<
  HypervisorOps,
  | 'domainMigrateSetMaxDowntime'
  | 'domainMigrateGetMaxDowntime'
  | 'domainMigrateSetMaxSpeed'
  | 'domainMigrateGetMaxSpeed'
>

/** 0: no limit */
const toQemu = (speed: number): number => (speed === 0 ? QEMU_MOST : Math.min(speed * MIB, QEMU_MOST))

/** None of them is a job: they have to get through while a migration holds the domain. */
export function limitOps(qemu: Qemu): LimitOps {
  return {
    async domainMigrateSetMaxDowntime(ref, downtime) {
      const { monitor } = qemu.require(ref).requireLive()
      if (downtime > DOWNTIME_MOST)
        throw fail('VIR_ERR_OVERFLOW', `downtime must be at most ${DOWNTIME_MOST} ms, not '${downtime}'`)
      await new MigrationCommands(monitor).setParameters({ 'downtime-limit': downtime })
    },

    async domainMigrateGetMaxDowntime(ref) {
      const { monitor } = qemu.require(ref).requireLive()
      return (await new MigrationCommands(monitor).queryParameters())['downtime-limit']
    },

    async domainMigrateSetMaxSpeed(ref, speed, flags) {
      const vm = qemu.require(ref)
      if (speed > NO_LIMIT)
        throw fail('VIR_ERR_OVERFLOW', `bandwidth must be at most ${NO_LIMIT} MiB/s, not '${speed}'`)
      if ((flags & c.VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY) !== 0) {
        const { monitor } = vm.requireLive()
        await new MigrationCommands(monitor).setParameters({ 'max-postcopy-bandwidth': toQemu(speed) })
        return
      }
      if (vm.live !== undefined)
        await new MigrationCommands(vm.live.monitor).setParameters({ 'max-bandwidth': toQemu(speed) })
      vm.migrationSpeed = toQemu(speed)
    },

    async domainMigrateGetMaxSpeed(ref, flags) {
      const vm = qemu.require(ref)
      const { migrationSpeed = QEMU_MOST } = vm
      const postcopy = (flags & c.VIR_DOMAIN_MIGRATE_MAX_SPEED_POSTCOPY) !== 0
      const bytes = postcopy
        ? (await new MigrationCommands(vm.requireLive().monitor).queryParameters())['max-postcopy-bandwidth']
        : migrationSpeed
      return bytes === QEMU_MOST ? NO_LIMIT : Math.floor(bytes / MIB)
    },
  }
}
